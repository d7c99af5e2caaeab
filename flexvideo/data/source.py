"""Clips by number: what training and evaluation read, whether it lies in files or is drawn."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple, TypeAlias, final

import torch
from jaxtyping import UInt8
from torch import Tensor

from flexvideo.data.clips import Sampling, Size, fit, resize, sample_frames
from flexvideo.data.decode import read_frames
from flexvideo.data.index import VideoIndex
from flexvideo.data.motion import RenderedSet
from flexvideo.data.records import Problem, VideoRecord, VideoSet, require_known_classes
from flexvideo.data.render import render
from flexvideo.errors import ConfigError, VideoError, VideoWarning

OnError = Literal["raise", "skip"]

_INSTANTS = 1 << 20  # a drawn clip has no frames of its own to choose from: so many to begin with


class Box(NamedTuple):
    """A rectangle of pixels: its upper left corner and its sides."""

    top: int
    left: int
    height: int
    width: int


Crop: TypeAlias = Callable[[int, int], Box]
"""Tells what to keep of frames of a height and a width."""

Choose: TypeAlias = Callable[[int], list[int]]
"""Tells which of a number of frames to take."""


class ClipSource(ABC):
    """Labelled clips by number; what `read` gives depends on its arguments alone, in every process.

    Frames are given on `device`; those of a GPU are read by the process that wants them.
    """

    name: str
    classes: tuple[str, ...]
    flip_ok: bool
    on_error: OnError = "raise"
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.skipped: dict[int, Problem] = {}

    @property
    @abstractmethod
    def labels(self) -> tuple[int, ...]:
        """Label of every clip: the number of its class."""

    @abstractmethod
    def identify(self, index: int) -> str:
        """Say which clip that is, for messages and result files: its path, or "motion 17"."""

    @abstractmethod
    def take(self, index: int, choose: Choose, size: Size) -> UInt8[Tensor, "t h w 3"]:
        """Get the chosen frames, at their own size or at the one they are wanted at."""

    def __len__(self) -> int:
        return len(self.labels)

    @final
    def read(
        self,
        index: int,
        *,
        frames: int,
        size: Size,
        sampling: Sampling = "uniform",
        clip: int = 0,
        clips: int = 1,
        seed: int = 0,
        crop: Crop | None = None,
    ) -> UInt8[Tensor, "t h w 3"]:
        """Read a clip.

        Args:
            index: which one, from 0.
            frames: how many; where there are fewer, some are repeated.
            size: short side in pixels, then the centre square; or exactly (height, width), whatever becomes
                of the aspect ratio; or None for the clip's own size.
            sampling: rule by which frames are chosen; see `sample_frames`.
            clip: which of the clips taken from one video, from 0.
            clips: how many different clips the video is to give.
            seed: of the random samplings.
            crop: what to keep of each frame; it is cut out first, so that there is one resize only.

        Raises:
            VideoError: the clip cannot be read; pass it on to `skip`.
            IndexError: no such clip.
        """

        def choose(count: int) -> list[int]:
            return sample_frames(count, frames, sampling=sampling, clip=clip, clips=clips, seed=seed)

        return _shape(self.take(index, choose, size), size, crop)

    @final
    def skip(self, index: int, error: VideoError) -> None:
        """Note in `skipped` a clip that could not be read, with one warning; raise unless told to skip.

        Args:
            index: which one.
            error: what `read` raised.

        Raises:
            VideoError: that error, unless `on_error` is "skip".
        """
        if self.on_error == "raise":
            raise error
        if index not in self.skipped:
            who = self.identify(index)
            self.skipped[index] = Problem(who, str(error).removeprefix(who).strip())
            warnings.warn(f"{self.name}: skipped {self.skipped[index]}", VideoWarning, stacklevel=2)

    def listed(self) -> VideoSet:
        """List the clips as records."""
        records = tuple(VideoRecord(self.identify(i), label, str(i)) for i, label in enumerate(self.labels))
        return VideoSet(self.name, "clips", records, self.classes, flip_ok=self.flip_ok)


class VideoSource(ClipSource):
    """The videos of a set; of a record with a start or an end, only what lies between.

    Args:
        videos: such as `open_dataset` gives.
        on_error: what `skip` does about a file that cannot be read: "raise" the error, or "skip" the file and
            report it once.

    Raises:
        DatasetError: a video without label.
        ConfigError: another `on_error`.

    Example:
        >>> videos = VideoSet("toys", "train", (VideoRecord("a.mp4", 0, "a"),), classes=("jump", "run"))
        >>> VideoSource(videos).identify(0)
        'a.mp4'
    """

    def __init__(self, videos: VideoSet, *, on_error: OnError = "raise"):
        super().__init__()
        if on_error not in ("raise", "skip"):
            raise ConfigError(f'`on_error` is "raise" or "skip", got {on_error!r}.')
        self.videos, self.on_error = videos, on_error
        self.name, self.classes, self.flip_ok = videos.title, videos.classes, videos.flip_ok
        self._labels = videos.labels

    @property
    def labels(self) -> tuple[int, ...]:
        """Label of every video."""
        return self._labels

    def identify(self, index: int) -> str:
        """Give the path of a video."""
        return self.videos[index].path

    def listed(self) -> VideoSet:
        """Give the set."""
        return self.videos

    def take(self, index: int, choose: Choose, size: Size) -> UInt8[Tensor, "t h w 3"]:
        """Decode the chosen frames of the part that counts."""
        record = self.videos[index]

        def numbers(video: VideoIndex) -> list[int]:
            part = video.within(record.start, record.end)
            return [part[number] for number in choose(len(part))]

        return read_frames(record.path, numbers)


class RenderedSource(ClipSource):
    """The clips of a rendered set, without files.

    Args:
        clips: such as a `MotionSet`.
        name: of the set.
        split: of the set; messages call clip 17 "<name> <split> 17".
        native: pixels of a square or (height, width) at which clips are drawn, to be cut and resized like
            videos of that size; None draws them at the size that is asked for.
        flip_ok: whether a mirrored clip keeps its label; never so where classes tell left from right.

    Example:
        >>> from flexvideo.data.motion import MotionSet
        >>> source = RenderedSource(MotionSet("train", per_class=2))
        >>> source.read(17, frames=4, size=32).shape, source.identify(17)
        (torch.Size([4, 32, 32, 3]), 'motion 17')
    """

    def __init__(
        self,
        clips: RenderedSet,
        *,
        name: str = "motion",
        split: str | None = None,
        native: int | tuple[int, int] | None = None,
        flip_ok: bool = False,
    ):
        super().__init__()
        self.name = name if split is None else f"{name} {split}"
        self.clips, self.native, self.flip_ok, self.classes = clips, native, flip_ok, clips.classes
        self._set = (name, split or "clips")

    @property
    def labels(self) -> tuple[int, ...]:
        """Label of every clip."""
        return self.clips.labels

    def identify(self, index: int) -> str:
        """Give the name of the set and the number of the clip."""
        return f"{self.name} {index}"

    def listed(self) -> VideoSet:
        """List the clips as records of the set."""
        name, split = self._set
        return replace(super().listed(), name=name, split=split)

    def take(self, index: int, choose: Choose, size: Size) -> UInt8[Tensor, "t h w 3"]:
        """Draw the frames at the chosen instants."""
        drawn = self.native or size
        if drawn is None:
            raise ConfigError(f"{self.name} is drawn and has no size of its own; give `size` or `native`.")
        times = torch.tensor(choose(_INSTANTS), dtype=torch.float64) / _INSTANTS
        scene = self.clips.scene(index, times * self.clips.duration(index)).to("cpu")
        return render(scene, (drawn, drawn) if isinstance(drawn, int) else drawn)


def require_learnable(train: ClipSource, test: ClipSource) -> None:
    """Refuse to try on one source what another cannot teach: call this wherever two splits meet.

    Args:
        train: what is learnt from, or the gallery.
        test: what it is tried on, or the queries.

    Raises:
        DatasetError: their classes differ, or a class of the second has no clip in the first.

    Example:
        >>> from flexvideo.data.motion import MotionSet
        >>> source = RenderedSource(MotionSet("train", per_class=2))
        >>> require_learnable(source, source)
    """
    require_known_classes(train.listed(), test.listed())


def _shape(frames: UInt8[Tensor, "t h w c"], size: Size, crop: Crop | None) -> UInt8[Tensor, "t H W c"]:
    """Bring frames to a size: as `fit` does, or what a crop keeps of them, resized once."""
    if crop is None:
        return fit(frames, size)
    top, left, height, width = crop(frames.shape[1], frames.shape[2])
    kept = frames[:, top : top + height, left : left + width]
    return kept if size is None else resize(kept, (size, size) if isinstance(size, int) else size)
