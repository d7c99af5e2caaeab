"""Video files and list files on a disk, and the match between what a list names and what is there."""

import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flexvideo.data.records import Problem, VideoRecord, plural
from flexvideo.errors import DatasetError, DatasetWarning

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv"}
)
NO_FILE = "no such file"
_LONG = 300  # characters of a path that a message shows
_UNDECODED = re.compile("[\udc80-\udcff]")  # what `surrogateescape` makes of bytes that are not UTF-8


def is_video(name: str) -> bool:
    """Tell a video by its name; the shadow files `._name` that macOS leaves on other disks are none.

    Example:
        >>> is_video("clip.MP4"), is_video("clip.mp4.part"), is_video("._clip.mp4")
        (True, False, False)
    """
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES and not name.startswith(".")


def stem(path: str) -> str:
    """Name of a file without folder and suffix, for a video may have been transcoded to another container."""
    return os.path.splitext(os.path.basename(path))[0]


def video_files(root: str | Path) -> list[str]:
    """List the videos at any depth below a folder, sorted; links to folders are followed, each once.

    Args:
        root: a folder.

    Raises:
        DatasetError: there is no such folder.

    Example:
        >>> video_files("/data/UCF-101")[0]  # doctest: +SKIP
        '/data/UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi'
    """
    return sorted(_walked(str(require_folder(root))))


def by_key(paths: Sequence[str], key: Callable[[str], str], *, preferred: str = "") -> dict[str, str]:
    """Index files by a key; of several with the same key the first one counts, with a warning.

    Args:
        paths: files.
        key: of a path.
        preferred: files with this in their path go before others, without a warning.
    """
    files: dict[str, str] = {}
    twice: list[tuple[str, str]] = []
    for path in sorted(paths, key=lambda path: not (preferred and preferred in path)):
        kept = files.setdefault(key(path), path)
        if kept != path and not (preferred and preferred in kept):
            twice.append((kept, path))
    if twice:
        warnings.warn(
            f"{plural(len(twice), 'video')} can be found twice, such as {twice[0][0]} and {twice[0][1]}; the "
            "first is used. Name a folder that holds each video once.",
            DatasetWarning,
            stacklevel=3,
        )
    return files


def match(
    wanted: Sequence[tuple[str, VideoRecord]],
    files: Mapping[str, str],
    *,
    title: str,
    root: str | Path,
    source: str | Path,
) -> tuple[tuple[VideoRecord, ...], tuple[Problem, ...]]:
    """Give the listed videos that are there, and those that are not, with one warning about them.

    Args:
        wanted: key and record of every video listed; the path of the record is the name it should have.
        files: path by key, of the files that are there.
        title: of the data set and split.
        root: where was looked.
        source: the list.

    Raises:
        DatasetError: not one is there.
    """
    records = tuple(replace(record, path=files[key]) for key, record in wanted if key in files)
    missing = tuple(Problem(record.path, NO_FILE) for key, record in wanted if key not in files)
    if not records:
        raise DatasetError(_none_there(title, [record for _, record in wanted], files, root, source))
    if missing:
        names = ", ".join(problem.path for problem in missing[:3]) + (", ..." if len(missing) > 3 else "")
        warnings.warn(
            f"{title}: {len(missing):,} of the {plural(len(wanted), 'video')} that {source} lists are not "
            f"under {root} ({names}); they are left out, and listed in `.omitted`.",
            DatasetWarning,
            stacklevel=3,
        )
    return records, missing


def present(paths: Iterable[str]) -> dict[str, str]:
    """Give those of the paths that exist, as keys and values.

    Args:
        paths: files; their folders are listed, for asking after every file takes long on a shared disk.
    """
    folders: dict[str, set[str]] = {}
    for folder in {os.path.dirname(path) for path in paths}:
        folders[folder] = set(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else set()
    return {path: path for path in paths if os.path.basename(path) in folders[os.path.dirname(path)]}


def find_lists(
    root: str | Path,
    annotations: str | Path | None,
    patterns: Sequence[str],
    *,
    folders: Sequence[str],
    title: str,
    remedy: str,
) -> list[Path]:
    """Find the list files of a data set: in the folder given, else in and beside the folder of the videos.

    Args:
        root: folder of the videos.
        annotations: folder of the lists; None looks around.
        patterns: names of the file, `*` for anything, the usual one first.
        folders: names of the folder in which they often are.
        title: of the data set.
        remedy: where to get them.

    Raises:
        DatasetError: they are not there.
    """
    base = Path(root)
    around = [
        base,
        *(base / name for name in folders),
        *(base.parent / name for name in folders),
        base.parent,
    ]
    tried = around if annotations is None else [require_folder(annotations)]
    for folder in tried:
        for pattern in patterns:
            lists = sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))
            if lists:
                return lists
    looked = ", ".join(map(str, tried))
    raise DatasetError(
        f"{title} needs {' or '.join(patterns)}, which is not in {looked}. {remedy}; if it lies elsewhere, "
        "name its folder as `annotations`."
    )


def require_folder(path: str | Path) -> Path:
    """Give the folder back, or say that it is none."""
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        raise DatasetError(f"{folder} {kind}; a folder of the data set was expected.")
    return folder


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file that hold something; file names in odd encodings survive.

    Args:
        path: the file.

    Raises:
        DatasetError: it holds zero bytes, as text in 16 bits a letter does too.
    """
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    if "\0" in text:
        raise DatasetError(f"{path} is no text in UTF-8, as a list should be.")
    # Tabs at the end stay, as they may separate empty columns.
    return [line.strip(" \r") for line in text.split("\n") if line.strip()]


def _walked(root: str) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise error

    seen: set[tuple[int, int]] = set()
    for folder, inner, names in os.walk(root, followlinks=True, onerror=refuse):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            inner.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield from (os.path.join(folder, name) for name in names if is_video(name))


def _none_there(
    title: str,
    wanted: Sequence[VideoRecord],
    files: Mapping[str, str],
    root: str | Path,
    source: str | Path,
) -> str:
    if not wanted:
        return f"{title}: {source} lists no video of this split."
    looked = wanted[0].path if len(wanted[0].path) < _LONG else f"{wanted[0].path[:_LONG]}..."
    odd = any(_UNDECODED.search(record.path) for record in wanted)
    encoding = f" {source} is not in UTF-8, in which names of files are: save it so." if odd else ""
    there = f"such as {next(iter(files.values()))}" if files else "none"
    return (
        f"{title}: not one of the {plural(len(wanted), 'video')} that {source} lists is under {root}; looked "
        f"for {looked}, found {plural(len(files), 'video')}, {there}. Name the folder that holds the videos."
        f"{encoding}"
    )
