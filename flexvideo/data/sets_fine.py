"""Actions that differ only in the order or direction of movement: Something-Something V2, Diving-48."""

import json
from pathlib import Path
from typing import Any, TypeVar

from flexvideo.data.files import by_key, find_lists, match, read_lines, require_folder, stem, video_files
from flexvideo.data.records import Splits, VideoRecord, VideoSet
from flexvideo.errors import DatasetError, brief

SSV2 = Splits("Something-Something V2", ("train", "val", "test"))
DIVING48 = Splits("Diving-48", ("train", "test"))
_Kind = TypeVar("_Kind", str, int, list, dict)
_KINDS = {str: "text", int: "a whole number", list: "a list", dict: "an object"}
_SSV2_FILES = {"train": "train", "val": "validation", "test": "test"}


def from_ssv2(root: str | Path, *, split: str, annotations: str | Path | None = None) -> VideoSet:
    """Open Something-Something V2: 174 classes, 168,913 videos for training and 24,777 for validation.

    Classes tell left from right, so its videos must never be mirrored: `flip_ok` is False. The test split has
    labels only where `test-answers.csv` lies beside its list.

    Args:
        root: folder with `<id>.webm` at any depth.
        split: "train", "val" or "test".
        annotations: folder with `labels.json`, `train.json`, `validation.json` (or the older
            `something-something-v2-*.json`); None looks in and beside the root.

    Raises:
        DatasetError: no list, an unknown label, or no video.

    Example:
        >>> from_ssv2("/data/ssv2", split="val").flip_ok  # doctest: +SKIP
        False
    """
    SSV2.check(split)
    root, title = require_folder(root), f"{SSV2.title} {split}"
    label_file, source = (_ssv2_list(root, annotations, name) for name in ("labels", _SSV2_FILES[split]))
    number = _ssv2_numbers(label_file)
    answers = _ssv2_answers(source.parent / "test-answers.csv") if split == "test" else {}
    wanted = []
    for entry in load_json(source, list):
        video = required(entry, "id", str, source=source)
        asked = split == "test" and "template" not in entry
        name = answers.get(video) if asked else required(entry, "template", str, source=source)
        # Templates mark what varies: "Putting [something] on a surface".
        label = None if name is None else number.get(name.replace("[", "").replace("]", ""), -1)
        if label == -1:
            raise DatasetError(
                f"{source}: {video} is {name!r}, outside the {len(number)} classes of {label_file}."
            )
        wanted.append((video, VideoRecord(f"{video}.webm", label, video)))
    records, missing = match(wanted, by_key(video_files(root), stem), title=title, root=root, source=source)
    classes = tuple(sorted(number, key=number.__getitem__))
    return VideoSet(SSV2.title, split, records, classes, flip_ok=False, omitted=missing)


def from_diving48(root: str | Path, *, split: str, annotations: str | Path | None = None) -> VideoSet:
    """Open Diving-48, version 2 of its labels: 48 kinds of dive, about 17,000 videos.

    Args:
        root: folder with `<video>_<number>.mp4` at any depth.
        split: "train" or "test".
        annotations: folder with `Diving48_V2_train.json`, `Diving48_V2_test.json` and `Diving48_vocab.json`;
            None looks in and beside the root.

    Raises:
        DatasetError: no list, a label outside the classes, or no video.

    Example:
        >>> from_diving48("/data/diving48", split="test")  # doctest: +SKIP
    """
    DIVING48.check(split)
    root, title = require_folder(root), f"{DIVING48.title} {split}"

    def find(name: str) -> Path:
        return find_lists(
            root,
            annotations,
            [name],
            folders=["annotations"],
            title=title,
            remedy="Download it from the home of Diving48 (svcl.ucsd.edu/projects/resound)",
        )[0]

    source = find(f"Diving48_V2_{split}.json")
    classes = tuple(" ".join(parts) for parts in load_json(find("Diving48_vocab.json"), list))
    wanted = []
    for entry in load_json(source, list):
        video = required(entry, "vid_name", str, source=source)
        label = required(entry, "label", int, source=source)
        wanted.append((video, VideoRecord(f"{video}.mp4", label, video)))
    records, missing = match(wanted, by_key(video_files(root), stem), title=title, root=root, source=source)
    return VideoSet(DIVING48.title, split, records, classes, omitted=missing)


def load_json(path: Path, kind: type[_Kind]) -> _Kind:
    """Read a JSON file, or say that it is none: downloads that failed leave a page of HTML."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DatasetError(f"{path} is no JSON file ({error}): download it again.") from error
    if not isinstance(found, kind):
        raise DatasetError(f"{path} should hold {_KINDS[kind]}, and is {brief(found)}: download it again.")
    return found


def required(entry: Any, name: str, kind: type[_Kind], *, source: Path) -> _Kind:
    """Give what an entry of a JSON file has under a name, or say that it should be there.

    Args:
        entry: as it was read.
        name: of what is wanted.
        kind: of what is wanted.
        source: the file.

    Raises:
        DatasetError: it is not there, or of another kind.

    Example:
        >>> required({"id": "7"}, "id", str, source=Path("train.json"))
        '7'
    """
    found = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(found, kind):
        raise DatasetError(
            f"{source} has {brief(entry)}, in which {name!r} should be {_KINDS[kind]}: download it again."
        )
    return found


def _ssv2_list(root: Path, annotations: str | Path | None, name: str) -> Path:
    return find_lists(
        root,
        annotations,
        [f"{name}.json", f"something-something-v2-{name}.json"],
        folders=["labels", "annotations"],
        title=SSV2.title,
        remedy="Download the package of labels from Qualcomm's page of the data set",
    )[0]


def _ssv2_numbers(source: Path) -> dict[str, int]:
    labels = load_json(source, dict)
    if not all(str(label).isdecimal() for label in labels.values()):
        raise DatasetError(f"{source} should number the classes, and is {brief(labels)}: download it again.")
    return {name: int(label) for name, label in labels.items()}


def _ssv2_answers(source: Path) -> dict[str, str]:
    """Class by video, where the answers of the test split are at hand."""
    if not source.is_file():
        return {}
    parts = (line.partition(";") for line in read_lines(source))
    return {video: name for video, _, name in parts}
