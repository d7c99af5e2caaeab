"""Clips drawn once to a file, which every process maps: neither drawing nor memory is in the way."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

import flexvideo as fv
from flexvideo.data.clips import Size
from flexvideo.data.motion import RenderedSet
from flexvideo.data.records import VideoRecord, VideoSet
from flexvideo.data.source import Choose, ClipSource
from flexvideo.errors import CheckpointWarning, ConfigError

_AT_ONCE = 16  # clips drawn in one pass


class TensorSource(ClipSource):
    """Videos that are there already, as clips are read from files.

    Args:
        videos: all of one length and size, on any device.
        labels: of the videos.
        classes: names of the classes.
        name: of the data.
        split: of the data.
        most: clips of each class at most, spread over all of them.
    """

    flip_ok = False

    def __init__(
        self,
        videos: UInt8[Tensor, "n t h w 3"],
        labels: Sequence[int],
        classes: Sequence[str],
        *,
        name: str,
        split: str,
        most: int | None = None,
    ) -> None:
        super().__init__()
        self.name, self.split, self.classes = name, split, tuple(classes)
        self._videos, self.device = videos, videos.device
        self._rows = _spread(labels, most or len(labels))
        self._labels = tuple(labels[row] for row in self._rows)

    @property
    def labels(self) -> tuple[int, ...]:
        return self._labels

    def identify(self, index: int) -> str:
        return f"{self.name} {self.split} {self._rows[index]}"

    def listed(self) -> VideoSet:
        listed = enumerate(self._labels)
        records = tuple(VideoRecord(self.identify(index), label, str(index)) for index, label in listed)
        return VideoSet(self.name, self.split, records, self.classes, flip_ok=False)

    def take(self, index: int, choose: Choose, size: Size) -> UInt8[Tensor, "t h w 3"]:
        video = self._videos[self._rows[index]]
        return video[torch.tensor(choose(len(video))).to(self.device, non_blocking=True)]


def drawn(
    path: Path, clips: RenderedSet, *, frames: int, size: int, device: torch.device | str
) -> UInt8[Tensor, "n t h w 3"]:
    """All clips of a set, from a file that is drawn where it is not there."""
    shape = (len(clips), frames, size, size, 3)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.unlink(missing_ok=True)
        videos = _mapped(part, shape)
        for start in range(0, len(clips), _AT_ONCE):
            rows = range(start, min(start + _AT_ONCE, len(clips)))
            found = clips.batch(rows, frames=frames, size=size, device=device)
            videos[rows.start : rows.stop] = found.cpu()
        part.rename(path)
    # A shorter file would be made longer, by clips of nothing.
    if path.stat().st_size != math.prod(shape):
        raise ConfigError(
            f"{path} holds the clips of another set or size: remove it, or name another --work."
        )
    return _mapped(path, shape)


def _mapped(path: Path, shape: tuple[int, ...]) -> UInt8[Tensor, "n t h w 3"]:
    return torch.from_file(str(path), shared=True, size=math.prod(shape), dtype=torch.uint8).view(shape)


def _spread(labels: Sequence[int], most: int) -> list[int]:
    """Rows of so many clips of each class at most, spread over all that it has; in order."""
    members: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        members.setdefault(label, []).append(row)
    kept = [rows[n * len(rows) // most] for rows in members.values() for n in range(most)]
    return sorted(set(kept))


def load_start(folder: Path, device: torch.device | str) -> fv.VideoMamba:
    """The pretrained model of a folder, which has no head yet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)
        return fv.load(folder / "start", device=device)
