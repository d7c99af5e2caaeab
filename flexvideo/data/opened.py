"""Sources by name, as a command line has them: `open_source("ucf101:/data/ucf101", split="train")`."""

from pathlib import Path
from typing import Literal

from flexvideo.data.datasets import DATASETS, open_dataset
from flexvideo.data.mocap import MocapSet
from flexvideo.data.motion import SPLITS, MotionSet
from flexvideo.data.source import ClipSource, OnError, RenderedSource, VideoSource
from flexvideo.errors import ConfigError, MotionError

UNSEEN_STYLES = ("elderly", "happy", "old", "tired", "youthful")
"""How motion capture of the split "test" is performed; all other styles are "train"."""


def open_source(
    spec: str,
    *,
    split: str | None = None,
    fold: int | str | None = None,
    annotations: str | Path | None = None,
    on_error: OnError = "raise",
) -> ClipSource:
    """Open one split of a data set, of files or drawn, as a source of clips.

    Args:
        spec: "motion:short" or "motion:long", the procedural set, or "motion:short:20" for 20 clips of each
            class; "mocap:FILE", a file of `convert_bvh`, drawn; or kind and place of a data set, as
            `open_dataset` takes them.
        split: such as "train". Of motion capture, "test" is the styles in `UNSEEN_STYLES`, "train" is the
            others, and None is both.
        fold: which of the official divisions of a data set; None is the usual one.
        annotations: folder of the list files of a data set.
        on_error: what to do about videos that cannot be read: "raise" or "skip".

    Raises:
        ConfigError: an unknown kind, split or fold.
        DatasetError: lists or videos are not there or contradict each other.
        MotionError: a motion capture file that cannot be read, or holds no clip of that split.

    Example:
        >>> source = open_source("motion:short", split="test")
        >>> len(source), source.classes[source.labels[9]]
        (1800, 'stand_up')
    """
    kind, _, place = spec.partition(":")
    if kind in ("motion", "mocap") and (fold, annotations) != (None, None):
        raise ConfigError(f"{spec} is drawn: it has no folds and no annotations; leave these out.")
    length, colon, count = place.partition(":")
    if kind == "motion" and length in ("short", "long") and (count.isdecimal() or not colon):
        return _open_motion(length, split, per_class=int(count or 100))
    if kind == "mocap" and place:
        clips = _open_mocap(Path(place).expanduser(), split)
        return RenderedSource(clips, name="mocap", split=split or "all")
    if kind in DATASETS:
        videos = open_dataset(spec, split=split, fold=fold, annotations=annotations)
        return VideoSource(videos, on_error=on_error)
    raise ConfigError(
        f"{spec!r} names no source of clips: write motion:short, motion:long, motion:short:20 for 20 clips a "
        "class, mocap:FILE, or the kind and the folder of a data set, such as ucf101:/data/ucf101. Kinds: "
        f"{', '.join(DATASETS)}."
    )


def _open_motion(kind: Literal["short", "long"], split: str | None, *, per_class: int) -> RenderedSource:
    if split is None:
        raise ConfigError(f"Name a split of motion:{kind}: {', '.join(SPLITS)}.")
    return RenderedSource(
        MotionSet(split, kind=kind, per_class=per_class), name=f"motion {kind}", split=split
    )


def _open_mocap(path: Path, split: str | None) -> MocapSet:
    clips = MocapSet(path)
    if split is None:
        return clips
    styles = {take.style for take in clips.takes}
    kept = {"train": styles.difference(UNSEEN_STYLES), "test": styles.intersection(UNSEEN_STYLES)}
    if split not in kept:
        raise ConfigError(f"Motion capture has no split {split!r}; it has: {', '.join(kept)}.")
    if not kept[split]:
        raise MotionError(
            f"{path} has no clip of split {split!r}: its styles are {', '.join(sorted(styles))}, and those "
            f"of split 'test' are {', '.join(UNSEEN_STYLES)}. Name no split, and divide it by `MocapSet`."
        )
    return MocapSet(path, actions=clips.classes, styles=sorted(kept[split]))
