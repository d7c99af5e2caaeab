"""Clips kept in memory, for sources that are small and slow to read."""

from collections.abc import Callable

import torch
from jaxtyping import UInt8
from torch import Tensor

from flexvideo.data.clips import Size
from flexvideo.data.records import VideoSet
from flexvideo.data.source import Choose, ClipSource


class HeldSource(ClipSource):
    """The clips of a source as videos in memory, of so many frames of one size, from which clips are read.

    Args:
        source: of which every clip is read once, now.
        frames: of a held video.
        size: of a held video in pixels, a number for a square or (height, width).
        progress: called with the number of clips read, and their total.

    Raises:
        VideoError: a clip that cannot be read.

    Example:
        >>> from flexvideo.data.motion import MotionSet
        >>> from flexvideo.data.source import RenderedSource
        >>> held = HeldSource(RenderedSource(MotionSet(actions=("bow",), per_class=2)), frames=8, size=32)
        >>> held.read(1, frames=4, size=16).shape, held.identify(1)
        (torch.Size([4, 16, 16, 3]), 'motion 1')
    """

    def __init__(
        self,
        source: ClipSource,
        *,
        frames: int,
        size: int | tuple[int, int],
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.classes, self.flip_ok = source.name, source.classes, source.flip_ok
        self._source, self._labels = source, source.labels
        videos = []
        for index in range(len(source)):
            videos.append(source.read(index, frames=frames, size=size))
            if progress is not None:
                progress(index + 1, len(source))
        # One block, shared with the processes that read, which would otherwise copy it.
        self._videos: UInt8[Tensor, "n t h w 3"] = torch.stack(videos).share_memory_()

    @property
    def labels(self) -> tuple[int, ...]:
        """Label of every clip."""
        return self._labels

    def identify(self, index: int) -> str:
        """Say which clip of the source that is."""
        return self._source.identify(index)

    def listed(self) -> VideoSet:
        """List the clips as the source does."""
        return self._source.listed()

    def take(self, index: int, choose: Choose, size: Size) -> UInt8[Tensor, "t h w 3"]:
        """Get frames of the clip as it is held."""
        video = self._videos[index]
        return video[torch.tensor(choose(len(video)))]
