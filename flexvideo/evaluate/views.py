"""Everything that a grid of geometries looks at in one video, from a single decode.

The frames of every view are exactly those that reading it alone gives: the decode is of the union of their
numbers, at the video's own size, and each view is resized once, from there. Clips that are drawn without a
size of their own are drawn anew for each cell, which is exact too.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from flexvideo.data.clips import Sampling, crop, fit, resize, sample_frames
from flexvideo.data.source import ClipSource, RenderedSource
from flexvideo.errors import ConfigError
from flexvideo.evaluate.grid import Cell


@dataclass(frozen=True)
class Views:
    """How many clips and crops of a video are looked at, and how they are chosen.

    Args:
        clips: spread over the video, as `sample_frames` numbers them.
        crops: 1 for the square in the centre; several are squares spread along the longer side.
        sampling: rule by which the frames of a clip are chosen.
        seed: of the random samplings.

    Raises:
        ConfigError: a number below 1.

    Example:
        >>> Views(clips=4, crops=3).count
        12
    """

    clips: int = 1
    crops: int = 1
    sampling: Sampling = "uniform"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clips < 1 or self.crops < 1:
            raise ConfigError(f"A video needs at least 1 clip and 1 crop, got {self.clips} and {self.crops}.")
        sample_frames(1, 1, sampling=self.sampling, clips=self.clips)

    @property
    def count(self) -> int:
        """Views of one video."""
        return self.clips * self.crops

    def frames(self, count: int, frames: int, clip: int) -> list[int]:
        """Numbers of the frames of one clip."""
        return sample_frames(
            count, frames, sampling=self.sampling, clip=clip, clips=self.clips, seed=self.seed
        )


def read_views(
    source: ClipSource, index: int, grid: Sequence[Cell], views: Views
) -> dict[Cell, list[UInt8[Tensor, "t r r 3"]]]:
    """Read for every cell all views of one video, clip after clip, with the crops of each together.

    Args:
        source: where the video is.
        index: which one.
        grid: the cells.
        views: which clips and crops.

    Raises:
        VideoError: the video cannot be read.
        ConfigError: several crops of what has no size of its own.

    Example:
        >>> from flexvideo.data.motion import MotionSet
        >>> source = RenderedSource(MotionSet("test", per_class=1))
        >>> found = read_views(source, 3, [Cell(2, 32), Cell(4, 16)], Views())
        >>> [view.shape for view in found[Cell(4, 16)]]
        [torch.Size([4, 16, 16, 3])]
    """
    if isinstance(source, RenderedSource) and source.native is None:
        return _drawn(source, index, grid, views)
    chosen: dict[tuple[int, int], list[int]] = {}

    def choose(count: int) -> list[int]:  # asked again where a video turns out to be shorter than it says
        for frames in {cell.frames for cell in grid}:
            for clip in range(views.clips):
                chosen[frames, clip] = views.frames(count, frames, clip)
        return _union(chosen.values())

    frames = source.take(index, choose, None)
    place = {number: row for row, number in enumerate(_union(chosen.values()))}
    rows = {key: torch.tensor([place[number] for number in numbers]) for key, numbers in chosen.items()}
    found: dict[Cell, list[Tensor]] = {}
    for size in {cell.size for cell in grid}:
        crops = _crops(frames, size, views.crops)
        for cell in (cell for cell in grid if cell.size == size):
            clips = (rows[cell.frames, clip] for clip in range(views.clips))
            found[cell] = [kept[clip] for clip in clips for kept in crops]
    return found


def _union(chosen: Iterable[list[int]]) -> list[int]:
    return sorted(set().union(*chosen))


def _drawn(
    source: RenderedSource, index: int, grid: Sequence[Cell], views: Views
) -> dict[Cell, list[UInt8[Tensor, "t r r 3"]]]:
    if views.crops > 1:
        raise ConfigError(
            f"{source.name} is drawn as squares, of which {views.crops} crops are all the same: use 1 crop, "
            "or give the source a `native` size."
        )
    return {
        cell: [
            source.read(
                index,
                frames=cell.frames,
                size=cell.size,
                sampling=views.sampling,
                clip=clip,
                clips=views.clips,
                seed=views.seed,
            )
            for clip in range(views.clips)
        ]
        for cell in grid
    }


def _crops(frames: UInt8[Tensor, "t h w 3"], size: int, crops: int) -> list[UInt8[Tensor, "t r r 3"]]:
    """Squares of all frames, resized once."""
    if crops == 1:
        return [fit(frames, size)]
    height, width = frames.shape[1:3]
    short = min(height, width)
    resized = resize(frames, (size * height // short, size * width // short))
    return [crop(resized, (size, size), position=place / (crops - 1)) for place in range(crops)]
