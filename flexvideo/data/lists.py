"""List files: one video a line, in the ways that video code bases write them."""

import csv
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flexvideo.data.files import VIDEO_SUFFIXES, match, present, read_lines
from flexvideo.data.records import VideoRecord, VideoSet
from flexvideo.errors import ConfigError, DatasetError

PATH_NAMES = ("path", "video_path", "file", "filepath", "file_path", "filename", "file_name", "video")
LABEL_NAMES = ("label", "class_id", "label_id", "target", "class", "category", "action")
_SEPARATORS = "\t,;|"
_SUFFIXES = "|".join(suffix[1:] for suffix in sorted(VIDEO_SUFFIXES))
_VIDEO = re.compile(rf"(?P<path>.*\.(?:{_SUFFIXES}))(?:\s+(?P<rest>.*))?", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d+")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a list file, as it is written.

    Args:
        path: of the video, as the list has it.
        label: number or name of its class; None where the line ends after the path.
        start: seconds, where the list has such a column.
        end: likewise.
    """

    path: str
    label: str | None = None
    start: float | None = None
    end: float | None = None


def read_rows(path: str | Path) -> list[Row]:
    """Read a list file: columns between tabs, commas, semicolons, bars or blanks, with a header or without.

    Without a header a line is `path`, `path label`, or `path frames label` (the number of frames is not
    believed). Paths may hold blanks. No sign begins a comment: file names of HMDB51 begin with `#`.

    Args:
        path: a text file.

    Raises:
        DatasetError: there is no such file, it is empty, or a line cannot be understood.

    Example:
        >>> read_rows("train.csv")[0]  # doctest: +SKIP
        Row(path='abseiling/a b.mp4', label='0', start=None, end=None)
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DatasetError(f"The list {path} does not exist.")
    lines = read_lines(path)
    if not lines:
        raise DatasetError(f"The list {path} is empty.")
    header = _header(lines[0])
    if header:
        separator, names = header
        return [_named_row(path, n, _cells(line, separator), names) for n, line in enumerate(lines[1:], 2)]
    separator = _sniffed(lines)
    rows = [_row(path, n, line, separator) for n, line in enumerate(lines, 1)]
    _check_first(path, rows)
    return rows


def from_list(
    path: str | Path,
    *,
    prefix: str | Path | None = None,
    classes: Sequence[str] | None = None,
) -> VideoSet:
    """Open the videos of a list file as it is read by `read_rows`.

    Labels are numbers from 0, -1 for none, or names. Without `classes` the names found, sorted, are the
    classes; or the numbers up to the highest found.

    Args:
        path: a text file.
        prefix: folder that relative paths begin from; None is the folder of the list.
        classes: names of all classes in order, such as those of the list that was trained on.

    Raises:
        DatasetError: the list cannot be understood, a label is outside the classes, or no video is there.

    Example:
        >>> from_list("val.csv", prefix="/data/k400")  # doctest: +SKIP
    """
    path = Path(path).expanduser()
    rows = read_rows(path)
    labels, known = _labels(path, [row.label for row in rows], classes)
    root = (path.parent if prefix is None else Path(prefix).expanduser()).absolute()
    wanted = [
        (place, VideoRecord(place, label, row.path, row.start, row.end))
        for row, label in zip(rows, labels, strict=True)
        for place in [os.path.join(root, row.path)]
    ]
    records, missing = match(
        wanted, present([place for place, _ in wanted]), title=path.name, root=root, source=path
    )
    return VideoSet(path.name, path.stem, records, classes=known, omitted=missing)


def class_names(path: str | Path, *, known: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Give the classes of a list file, for other lists of the same data set.

    Args:
        path: a text file.
        known: classes of another list, which come first; numbers in the file are places among them.

    Example:
        >>> class_names("train.csv")  # doctest: +SKIP
        ('jump', 'run')
    """
    written = {row.label for row in read_rows(path) if row.label is not None}
    if all(map(_NUMBER.fullmatch, written)):
        return known + tuple(map(str, range(len(known), 1 + max(map(int, written), default=-1))))
    return known + tuple(sorted(written.difference(known)))


def write_list(
    path: str | Path, records: Iterable[VideoRecord], *, classes: Sequence[str] | None = None
) -> None:
    """Write records as `path,label`, which `from_list` and other code bases read.

    A header goes before segments, and before names of classes.

    Args:
        path: the file to write.
        records: paths are written in full, so that the list can be moved; no label is written as -1, or as
            nothing among names.
        classes: names to write for the labels; None writes numbers, as do names of which one is a number.

    Raises:
        ConfigError: the file cannot be written, such as to a full disk.

    Example:
        >>> write_list("good.csv", videos, classes=videos.classes)  # doctest: +SKIP
    """
    records = list(records)
    names = None if any(map(_NUMBER.fullmatch, classes or ())) else classes
    rows = [(os.path.abspath(r.path), _written(r.label, names), r.start, r.end) for r in records]
    columns = 4 if any(r.start is not None or r.end is not None for r in records) else 2
    try:
        with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file, lineterminator="\n")
            if names is not None or columns == 4:
                writer.writerow(("path", "label", "start", "end")[:columns])
            writer.writerows(row[:columns] for row in rows)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}.") from error


def _written(label: int | None, names: Sequence[str] | None) -> str | int:
    if names is None:
        return -1 if label is None else label
    return "" if label is None else names[label]


def _header(line: str) -> tuple[str | None, list[str]] | None:
    """Separator and names of columns, where the first line is a header."""
    for separator in (*_SEPARATORS, None):
        names = [cell.strip().lower() for cell in _cells(line, separator)]
        if any(name in PATH_NAMES for name in names) and not any(map(_VIDEO.fullmatch, names)):
            return separator, names
    return None


def _cells(line: str, separator: str | None) -> list[str]:
    if separator is None:
        return line.split()
    return next(csv.reader([line], delimiter=separator))


def _sniffed(lines: list[str]) -> str | None:
    """Find the separator that every line has, and after whose last place no path follows; None is a blank."""
    for separator in _SEPARATORS:
        if all(separator in line for line in lines):
            last = [_cells(line, separator)[-1] for line in lines]
            if not any(map(_VIDEO.match, last)):
                return separator
    return None


def _named_row(path: Path, number: int, cells: list[str], names: list[str]) -> Row:
    if len(cells) != len(names):
        raise DatasetError(
            f"{path}, line {number}, has {len(cells)} columns, and the header has {len(names)}: "
            f"{', '.join(names)}. Put paths that hold the separator in quotes."
        )
    values = dict(zip(names, map(str.strip, cells), strict=True))
    label = next((values[name] for name in LABEL_NAMES if name in values), None)
    start, end = (_seconds(path, number, values.get(name, "")) for name in ("start", "end"))
    return Row(next(values[name] for name in PATH_NAMES if name in values), label or None, start, end)


def _seconds(path: Path, number: int, text: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError as error:
        raise DatasetError(
            f"{path}, line {number}: {text!r} is no number of seconds, which `start` and `end` are."
        ) from error


def _row(path: Path, number: int, line: str, separator: str | None) -> Row:
    """Take a line apart from its right end, as the path may hold the separator."""
    if separator is not None:
        *head, label = _cells(line, separator)
        place = separator.join(head)
        if len(head) > 1 and not _VIDEO.fullmatch(place.strip()):
            place = separator.join(head[:-1]) if _NUMBER.fullmatch(head[-1].strip()) else ""
        place, label = place.strip(), label.strip()
    else:
        video = _VIDEO.fullmatch(line)
        place, label = (video["path"], video["rest"] or "") if video else _from_right(line)
        frames_and_label = re.fullmatch(r"\d+\s+(-?\d+)", label)
        label = frames_and_label[1] if frames_and_label else label
    if not place or re.fullmatch(r"-?\d+(\s+-?\d+)+", label):
        raise DatasetError(
            f"{path}, line {number}, is not `path`, `path label` or `path frames label`: {line!r}. Give "
            "other columns names in a header, such as `path,label,start,end`."
        )
    return Row(place, label or None)


def _from_right(line: str) -> tuple[str, str]:
    """Path and label where the path has no suffix of a video."""
    place, _, label = line.rpartition(" ") if " " in line else (line, "", "")
    shorter, _, frames = place.rpartition(" ")
    return (shorter, label) if shorter and _NUMBER.fullmatch(frames) else (place.strip(), label)


def _check_first(path: Path, rows: list[Row]) -> None:
    """Refuse a header of unknown names, which would become the first video."""
    others = [row.label is not None and bool(_NUMBER.fullmatch(row.label)) for row in rows[1:]]
    first = rows[0].label
    if others and all(others) and (first is None or not _NUMBER.fullmatch(first)):
        raise DatasetError(
            f"{path} begins with label {first!r}, and all other labels are numbers. If this is a header, "
            f"name the columns `path` and `label` (also known: {', '.join(PATH_NAMES + LABEL_NAMES)})."
        )


def _labels(
    path: Path, written: list[str | None], classes: Sequence[str] | None
) -> tuple[list[int | None], tuple[str, ...]]:
    known = [label for label in written if label is not None]
    if all(map(_NUMBER.fullmatch, known)):
        numbers = [None if label is None or label == "-1" else int(label) for label in written]
        highest = max((number for number in numbers if number is not None), default=-1)
        return numbers, tuple(classes) if classes else tuple(map(str, range(highest + 1)))
    names = tuple(classes) if classes else tuple(sorted(set(known)))
    place = {name: number for number, name in enumerate(names)}
    for label in known:
        if label not in place:
            raise DatasetError(
                f"{path} has a video of class {label!r}, outside the {len(names)} classes given: "
                f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}."
            )
    return [None if label is None else place[label] for label in written], names
