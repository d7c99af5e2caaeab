"""Data sets by name, as they lie on a disk: `open_dataset("ucf101:/data/ucf101", split="train", fold=1)`."""

import os
import warnings
from collections.abc import Callable, Sequence
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
from flexvideo.errors import ConfigError, DatasetError, DatasetWarning

_LIST_SUFFIXES = (".csv", ".txt", ".tsv", ".list")
_OTHER_SUFFIXES = ", ".join(_LIST_SUFFIXES[1:])
_HELD_OUT = ("val", "valid", "validation", "test", "testing")
_SPLIT_NAMES = frozenset({"train", "training", *_HELD_OUT})


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
    videos may be mirrored; if not, `dataclasses.replace(videos, flip_ok=False)`. Their splits are numbered as
    "train" is, if there is one; classes that it lacks come after its own, with a warning.

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
    dataset, root = _kind_and_root(spec)
    if split is None and dataset.splits.names:
        raise ConfigError(f"Name a split of {dataset.splits.title}: {', '.join(dataset.splits.names)}.")
    if dataset.splits.folds:
        chosen = dataset.splits.folds[0] if fold is None else str(fold)
        return dataset.read(root, split=split, fold=chosen, annotations=annotations)
    if fold is not None:
        raise ConfigError(f"{dataset.splits.title} has no folds; leave `fold` out (got {fold!r}).")
    return dataset.read(root, split=split, annotations=annotations)


def first_split(spec: str, *, annotations: str | Path | None = None) -> str | None:
    """Name the split of a data set that is learnt from; None where it is not divided into splits.

    Args:
        spec: kind and folder, such as "ucf101:/data/ucf101".
        annotations: folder of the list files, if elsewhere.

    Raises:
        ConfigError: an unknown kind.

    Example:
        >>> first_split("hmdb51:/data/hmdb51")
        'train'
    """
    dataset, root = _kind_and_root(spec)
    names = dataset.splits.names or _splits_of(dataset, Path(annotations or root).expanduser())
    return next((name for name in names if name.lower().startswith("train")), names[0] if names else None)


def held_out_split(spec: str, *, annotations: str | Path | None = None) -> str | None:
    """Name the split of a data set on which a training is measured; None where there is none.

    Args:
        spec: kind and folder, such as "ucf101:/data/ucf101".
        annotations: folder of the list files, if elsewhere.

    Raises:
        ConfigError: an unknown kind.

    Example:
        >>> held_out_split("k400:/data/k400"), held_out_split("folder:/nowhere")
        ('val', None)
    """
    dataset, root = _kind_and_root(spec)
    if dataset.splits.names:
        return dataset.splits.names[1]
    place = Path(annotations or root).expanduser()
    listed = _lists if dataset is DATASETS["list"] else _subfolders
    found = listed(place) if place.is_dir() else ()
    return next((name for held_out in _HELD_OUT for name in found if name.lower() == held_out), None)


def from_folder(root: str | Path, *, split: str | None = None) -> VideoSet:
    """Open a folder that holds a folder for every class; the classes are their names, sorted.

    Args:
        root: `ROOT/<class>/...`, or with a split `ROOT/<split>/<class>/...`.
        split: name of a folder. Its classes are then numbered as those of the split "train", if there is
            one; those that "train" lacks come after them, with a warning.

    Raises:
        DatasetError: no such folder, or no classes or no videos in it.

    Example:
        >>> from_folder("/data/mine", split="val")  # doctest: +SKIP
    """
    root = require_folder(root)
    top = _split_folder(root, split) if split else root
    found = _subfolders(top)
    if split is None and _are_splits(found):
        raise DatasetError(
            f"{root} holds splits ({', '.join(found)}), not classes: name the split that is wanted."
        )
    train = root / "train"
    learnt = _subfolders(train) if split and train.is_dir() else found
    classes = [*learnt, *(name for name in found if name not in learnt)]
    _warn_of_unknown(top, classes[len(learnt) :], train)
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
    filled = {record.label for record in records}
    if empty := [name for label, name in enumerate(classes) if name in found and label not in filled]:
        warnings.warn(
            f"{top} has folders without a video, which count as classes all the same: {_few(empty)}.",
            DatasetWarning,
            stacklevel=2,
        )
    return VideoSet(root.name, split or "all", records, tuple(classes))


def _kind_and_root(spec: str) -> tuple[Dataset, Path]:
    kind, _, place = spec.partition(":")
    if not place or kind not in DATASETS:
        raise ConfigError(
            f"{spec!r} names no data set: write its kind, a colon and its folder, such as "
            f"ucf101:/data/ucf101. Kinds: {', '.join(DATASETS)}."
        )
    return DATASETS[kind], Path(place).expanduser()


def _splits_of(dataset: Dataset, root: Path) -> tuple[str, ...]:
    """Splits that a folder of lists, or one of folders, is divided into."""
    if not root.is_dir():
        return ()
    if dataset is DATASETS["list"]:
        return tuple(_lists(root))
    found = _subfolders(root)
    return tuple(found) if _are_splits(found) else ()


def _are_splits(names: list[str]) -> bool:
    return bool(names) and _SPLIT_NAMES.issuperset(name.lower() for name in names)


def _split_folder(root: Path, split: str) -> Path:
    found = [] if (root / split).is_dir() else _subfolders(root)
    if _are_splits(found):
        raise DatasetError(f"{root} has no split {split!r}; it has: {', '.join(found)}.")
    if found:
        raise DatasetError(
            f"{root} has no split {split!r}: it holds {_few(found)}. If these are its classes, name no split "
            "(--split none)."
        )
    return require_folder(root / split)


def _warn_of_unknown(place: Path, unknown: Sequence[str], train: Path) -> None:
    if unknown:
        warnings.warn(
            f"{place} has classes that {train} lacks, so that they cannot be learnt there: {_few(unknown)}. "
            "Before measuring on it, add videos of them there, or take them out.",
            DatasetWarning,
            stacklevel=3,
        )


def _few(names: Sequence[str]) -> str:
    return f"{', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"


def _subfolders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _open_folder(root: Path, *, split: str | None, annotations: str | Path | None) -> VideoSet:
    if annotations is not None:
        raise ConfigError("`folder` takes no `annotations`: names of folders are its classes. Use `list`.")
    return from_folder(root, split=split)


def _open_list(root: Path, *, split: str | None, annotations: str | Path | None) -> VideoSet:
    if root.is_file() or (not root.exists() and root.suffix.lower() in _LIST_SUFFIXES):
        if root.is_file() and (split, annotations) != (None, None):
            raise ConfigError(
                f"list:{root} is one list, so it has no split {split!r}. Leave out `split` (--split none) "
                "and `annotations`, or name the folder of train.csv, val.csv and so on."
            )
        return from_list(root)
    folder = require_folder(root if annotations is None else annotations)
    lists = _lists(folder)
    if split not in lists:
        wanted = "is a folder" if split is None else f"has no list {split}.csv (nor {_OTHER_SUFFIXES})"
        there = ", ".join(path.name for path in lists.values())
        remedy = f"It has {there}: name one of these as split." if lists else "It has no lists."
        raise DatasetError(f"{folder} {wanted}. {remedy}")
    classes = None
    if "train" in lists and split != "train":
        learnt = class_names(lists["train"])
        classes = class_names(lists[split], known=learnt)
        _warn_of_unknown(lists[split], classes[len(learnt) :], lists["train"])
    videos = from_list(lists[split], prefix=require_folder(root), classes=classes)
    return replace(videos, name=folder.name)


def _lists(folder: Path) -> dict[str, Path]:
    """List files of a folder by the split that they are named after."""
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in _LIST_SUFFIXES}


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

ON_DISK = (
    f"{', '.join(DATASETS)}; folder:ROOT holds ROOT/<split>/<class>/..., list:ROOT holds ROOT/<split>.csv of "
    "lines `path,label`"
)
"""The kinds for a command line, with the layout of those that are no official data set."""
