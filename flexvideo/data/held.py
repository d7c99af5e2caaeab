"""Clips kept in memory, for sources that are small and slow to read."""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import UInt8
from torch import Tensor

from flexvideo.data.clips import Size
from flexvideo.data.records import VideoSet
from flexvideo.data.source import Choose, ClipSource
from flexvideo.devices import usable_device
from flexvideo.errors import MemoryLimitError, VideoError


class HeldSource(ClipSource):
    """The clips of a source as videos in memory, of so many frames of one size, from which clips are read.

    Where the source skips what cannot be read, such clips are reported and left out.

    Args:
        source: of which every clip is read once, now.
        frames: of a held video.
        size: of a held video in pixels, a number for a square or (height, width).
        device: whose memory it is. On a GPU clips are cut out and resized there, which spares the processes
            that would read them; they are resized as `flexvideo.data.clips.resize` says.
        progress: called with the number of clips read, and their total.

    Raises:
        ConfigError: a device that cannot be used here.
        VideoError: a clip that cannot be read, where the source does not skip such, or not one that can.
        MemoryLimitError: not enough memory for all of them.

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
        device: torch.device | str = "cpu",
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.classes, self.flip_ok = source.name, source.classes, source.flip_ok
        self.device = usable_device(device)
        self._source = source
        self._kept: list[int] = []  # clips of the source
        height, width = (size, size) if isinstance(size, int) else size
        self._videos = _room(len(source), frames, height, width, self.device)
        for index in range(len(source)):
            try:
                self._videos[len(self._kept)] = source.read(index, frames=frames, size=size)
                self._kept.append(index)
            except VideoError as error:
                source.skip(index, error)
            if progress is not None:
                progress(index + 1, len(source))
        if not self._kept:
            raise VideoError(f"Not one clip of {self.name} could be read: there is nothing to hold.")
        self._labels = tuple(source.labels[index] for index in self._kept)

    @property
    def labels(self) -> tuple[int, ...]:
        """Label of every clip."""
        return self._labels

    @property
    def videos(self) -> UInt8[Tensor, "n t h w 3"]:
        """The clips as they are held."""
        return self._videos[: len(self._kept)]

    def identify(self, index: int) -> str:
        """Say which clip of the source that is."""
        return self._source.identify(self._kept[index])

    def listed(self) -> VideoSet:
        """List the clips that are held as the source does."""
        videos, skipped = self._source.listed(), self._source.skipped.values()
        kept = tuple(videos[index] for index in self._kept)
        return replace(videos, records=kept, omitted=(*videos.omitted, *skipped))

    def take(self, index: int, choose: Choose, size: Size) -> UInt8[Tensor, "t h w 3"]:
        """Get frames of the clip as it is held."""
        video = self._videos[index]
        # Not made on the device: that would wait until a GPU has done all that it was asked to before.
        return video[torch.tensor(choose(len(video))).to(self.device, non_blocking=True)]


def _room(
    clips: int, frames: int, height: int, width: int, device: torch.device
) -> UInt8[Tensor, "n t h w 3"]:
    try:
        return torch.empty(clips, frames, height, width, 3, dtype=torch.uint8, device=device)
    except RuntimeError as error:  # torch's way of saying so, on any device
        size = clips * frames * height * width * 3 / 2**30
        raise MemoryLimitError(
            f"{clips} clips of {frames} frames of {height} x {width} px take {size:,.0f} GiB, which "
            f"{device} does not have: hold fewer or smaller frames, or read the clips as they come."
        ) from error
