"""Data sets by name, as they lie on a disk: `open_dataset("ucf101:/data/ucf101", split="train", fold=1)`."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from flexvideo.data.files import require_folder, video_files
from flexvideo.data.lists import class_names, from_list
from flexvideo.data.records import Splits, VideoRecord, VideoSet
from flexvideo.data.sets_fine import DIVING48, SSV2, from_diving48, from_ssv2
from flexvideo.data.sets_long import BREAKFAST, COIN, from_breakfast, from_coin
from flexvideo.data.sets_short import (
    HMDB51,
    KINETICS400,
    UCF101,
    from_hmdb51,
    from_kinetics400,
    from_ucf101,
)
from flexvideo.errors import ConfigError, DatasetError

_LIST_SUFFIXES = (".csv", ".txt", ".tsv", ".list")
_SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})


@dataclass(frozen=True)
class Dataset:
    """A kind of data set.

    Args:
        splits: what can be asked of it.
        read: opens a split, given a root and the keywords `split`, `annotations` and, with folds, `fold`.
    """

    splits: Splits
    read: Callable[..., VideoSet]


def open_dataset(
    spec: str,
    *,
    split: str | None = None,
    fold: int | str | None = None,
    annotations: str | Path | None = None,
) -> VideoSet:
    """Open one split of a data set by its kind and place.

    Kinds are the keys of `DATASETS`: k400, ucf101, hmdb51, coin, breakfast, ssv2, diving48; `folder:ROOT`
    with `ROOT/<split>/<class>/...`, or without a split `ROOT/<class>/...`; and `list:ROOT` with
    `ROOT/<split>.csv` (or .txt, .tsv, .list), or without a split `list:FILE`. Videos that are listed and not
    there are left out with a warning, and kept in `.omitted`. Folders and lists do not tell whether their
    videos may be mirrored; if not, `dataclasses.replace(videos, flip_ok=False)`.

    Args:
        spec: kind and folder, such as "ucf101:/data/ucf101".
        split: such as "train"; `DATASETS[kind].splits` names them.
        fold: which of the official divisions; None is the usual one.
        annotations: folder of the list files; None looks in and beside the root. For `list`, relative paths
            of videos begin from the root.

    Raises:
        ConfigError: an unknown kind, split or fold.
        DatasetError: lists or videos are not there or contradict each other.

    Example:
        >>> len(open_dataset("ucf101:/data/ucf101", split="test", fold=1))  # doctest: +SKIP
        3783
    """
    kind, _, place = spec.partition(":")
    if not place or kind not in DATASETS:
        raise ConfigError(
            f"{spec!r} names no data set: write its kind, a colon and its folder, such as "
            f"ucf101:/data/ucf101. Kinds: {', '.join(DATASETS)}."
        )
    dataset, root = DATASETS[kind], Path(place).expanduser()
    if split is None and dataset.splits.names:
        raise ConfigError(f"Name a split of {dataset.splits.title}: {', '.join(dataset.splits.names)}.")
    if dataset.splits.folds:
        chosen = dataset.splits.folds[0] if fold is None else str(fold)
        return dataset.read(root, split=split, fold=chosen, annotations=annotations)
    if fold is not None:
        raise ConfigError(f"{dataset.splits.title} has no folds; leave `fold` out (got {fold!r}).")
    return dataset.read(root, split=split, annotations=annotations)


def from_folder(root: str | Path, *, split: str | None = None) -> VideoSet:
    """Open a folder that holds a folder for every class; the classes are their names, sorted.

    Args:
        root: `ROOT/<class>/...`, or with a split `ROOT/<split>/<class>/...`.
        split: name of a folder. The classes are then those of the split "train", if there is one.

    Raises:
        DatasetError: no such folder, no classes or no videos in it, or a class that "train" does not have.

    Example:
        >>> from_folder("/data/mine", split="val")  # doctest: +SKIP
    """
    root = require_folder(root)
    top = require_folder(root / split) if split else root
    found = _subfolders(top)
    if split is None and found and _SPLIT_NAMES.issuperset(name.lower() for name in found):
        raise DatasetError(
            f"{root} holds splits ({', '.join(found)}), not classes: name the split that is wanted."
        )
    train = root / "train"
    classes = _subfolders(train) if split and train.is_dir() else found
    unknown = [name for name in found if name not in classes]
    if unknown:
        raise DatasetError(
            f"{top} has class {unknown[0]!r}, which {train} does not have, so it cannot be learnt: it has "
            f"{len(classes)}, {', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}."
        )
    records = tuple(
        VideoRecord(path, label, os.path.relpath(path, top))
        for label, name in enumerate(classes)
        if name in found
        for path in video_files(top / name)
    )
    if not records:
        raise DatasetError(
            f"{top} has {len(found)} folders, and no video in any of them; one folder for each class was "
            "expected, with videos inside."
        )
    return VideoSet(root.name, split or "all", records, tuple(classes))


def _subfolders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _open_folder(root: Path, *, split: str | None, annotations: str | Path | None) -> VideoSet:
    if annotations is not None:
        raise ConfigError("`folder` takes no `annotations`: names of folders are its classes. Use `list`.")
    return from_folder(root, split=split)


def _open_list(root: Path, *, split: str | None, annotations: str | Path | None) -> VideoSet:
    if root.is_file():
        if split is not None or annotations is not None:
            raise ConfigError(
                f"list:{root} is one list, so it has no split {split!r}. Leave out `split` and "
                "`annotations`, or name the folder of train.csv, val.csv and so on."
            )
        return from_list(root)
    folder = require_folder(root if annotations is None else annotations)
    lists = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in _LIST_SUFFIXES}
    if split not in lists:
        raise DatasetError(
            f"{folder} has no list {split}.csv (nor {', '.join(_LIST_SUFFIXES[1:])}). It has "
            f"{', '.join(path.name for path in lists.values()) or 'no lists'}: name one of these as split."
        )
    classes = class_names(lists["train"]) if "train" in lists and split != "train" else None
    videos = from_list(lists[split], prefix=require_folder(root), classes=classes)
    return replace(videos, name=folder.name)


DATASETS = {
    "k400": Dataset(KINETICS400, from_kinetics400),
    "ucf101": Dataset(UCF101, from_ucf101),
    "hmdb51": Dataset(HMDB51, from_hmdb51),
    "coin": Dataset(COIN, from_coin),
    "breakfast": Dataset(BREAKFAST, from_breakfast),
    "ssv2": Dataset(SSV2, from_ssv2),
    "diving48": Dataset(DIVING48, from_diving48),
    "folder": Dataset(Splits("folder", ()), _open_folder),
    "list": Dataset(Splits("list", ()), _open_list),
}
