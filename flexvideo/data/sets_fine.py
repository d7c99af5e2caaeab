"""Actions that differ only in the order or direction of movement: Something-Something V2, Diving-48."""

import json
from pathlib import Path
from typing import Any

from flexvideo.data.files import by_key, find_lists, match, read_lines, require_folder, stem, video_files
from flexvideo.data.records import Splits, VideoRecord, VideoSet
from flexvideo.errors import DatasetError

SSV2 = Splits("Something-Something V2", ("train", "val", "test"))
DIVING48 = Splits("Diving-48", ("train", "test"))
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
    number = {name: int(label) for name, label in load_json(label_file).items()}
    answers = _ssv2_answers(source.parent / "test-answers.csv") if split == "test" else {}
    wanted = []
    for entry in load_json(source):
        name = entry.get("template", answers.get(entry["id"]))
        # Templates mark what varies: "Putting [something] on a surface".
        label = None if name is None else number.get(name.replace("[", "").replace("]", ""), -1)
        if label == -1:
            raise DatasetError(
                f"{source}: {entry['id']} is {name!r}, outside the {len(number)} classes of {label_file}."
            )
        wanted.append((entry["id"], VideoRecord(f"{entry['id']}.webm", label, entry["id"])))
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
    classes = tuple(" ".join(parts) for parts in load_json(find("Diving48_vocab.json")))
    wanted = [
        (entry["vid_name"], VideoRecord(f"{entry['vid_name']}.mp4", entry["label"], entry["vid_name"]))
        for entry in load_json(source)
    ]
    records, missing = match(wanted, by_key(video_files(root), stem), title=title, root=root, source=source)
    return VideoSet(DIVING48.title, split, records, classes, omitted=missing)


def load_json(path: Path) -> Any:
    """Read a JSON file, or say that it is none: downloads that failed leave a page of HTML."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DatasetError(f"{path} is no JSON file ({error}): download it again.") from error


def _ssv2_list(root: Path, annotations: str | Path | None, name: str) -> Path:
    return find_lists(
        root,
        annotations,
        [f"{name}.json", f"something-something-v2-{name}.json"],
        folders=["labels", "annotations"],
        title=SSV2.title,
        remedy="Download the package of labels from Qualcomm's page of the data set",
    )[0]


def _ssv2_answers(source: Path) -> dict[str, str]:
    """Class by video, where the answers of the test split are at hand."""
    if not source.is_file():
        return {}
    return dict(line.split(";", 1) for line in read_lines(source))
