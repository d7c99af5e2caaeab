"""Video files to frames by number, exactly, with PyAV; nothing that a header claims is believed.

A video is indexed by reading its packets without decoding them. Where they tell which frame is which, frames
are reached by seeking; elsewhere, and where the decoder contradicts the index, by decoding from the start.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from jaxtyping import UInt8
from torch import Tensor

from flexvideo.data.index import Packet, VideoIndex, index_of, seconds_of
from flexvideo.errors import MissingExtraError, VideoError, VideoWarning

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

VP8_SHOWN = 0x10  # the bit in the first byte of a VP8 packet that tells a shown frame from a mere reference

Choice = Sequence[int] | Callable[[VideoIndex], Sequence[int]]


def index_video(path: str | Path) -> VideoIndex:
    """List the frames of a video: from its packets where they can be trusted, else by decoding all of it.

    Args:
        path: a video file.

    Raises:
        VideoError: there is nothing to decode.

    Example:
        >>> len(index_video("video.mp4"))  # doctest: +SKIP
        250
    """
    with _opened(path, 1) as (container, stream):
        index = _listed(container, stream)
    return index or _counted(path)


def read_frames(path: str | Path, indices: Choice, *, threads: int = 1) -> UInt8[Tensor, "t h w 3"]:
    """Read the frames of the given numbers: the very frames that decoding the whole file gives.

    Damage that the container does not show is noticed when it is met: then the file is decoded from its
    start, with a warning, and frames that cannot be decoded do not count.

    Args:
        path: a video file.
        indices: numbers from 0, in any order, repeated at will; or a function that chooses them by the index.
        threads: decoding threads; 0 leaves it to FFmpeg.

    Raises:
        VideoError: the file is not a readable video, or has no frame of that number.

    Example:
        >>> read_frames("video.mp4", [0, 10, 20]).shape  # doctest: +SKIP
        torch.Size([3, 240, 320, 3])
    """
    with _opened(path, threads) as (container, stream):
        index = _listed(container, stream)
        wanted = _chosen(path, index, indices) if index else []
        found = _by_seeking(container, stream, index, sorted(set(wanted))) if index else None
    if found is None:
        wanted = _chosen(path, _counted(path), indices)
        found = _in_sequence(path, set(wanted))
    return torch.stack([found[number] for number in wanted])


def pyav() -> ModuleType:
    """Import PyAV, or say how to install it."""
    try:
        import av
    except ImportError as error:
        raise MissingExtraError(
            "Videos are read and written by PyAV: pip install 'flexvideo[video]'."
        ) from error
    return av


def pixels(frame: "VideoFrame") -> UInt8[Tensor, "h w 3"]:
    """Give a view of an RGB frame's memory, without the padding at the end of its rows."""
    plane = frame.planes[0]
    rows = torch.frombuffer(plane, dtype=torch.uint8).view(frame.height, plane.line_size)
    return rows[:, : 3 * frame.width].view(frame.height, frame.width, 3)


def _listed(container: "InputContainer", stream: "VideoStream") -> VideoIndex | None:
    """Index by packets alone; None where they do not tell which frame is which."""
    if (
        container.format.name == "mpeg"
    ):  # program streams: the times after a seek are not those of a full pass
        return None
    vp8 = stream.codec_context.name == "vp8"
    try:
        packets = [
            Packet(
                packet.pts,
                packet.dts,
                packet.is_keyframe,
                packet.is_corrupt,
                packet.is_discard or (vp8 and not memoryview(packet)[0] & VP8_SHOWN),
            )
            for packet in container.demux(stream)
            if packet.size
        ]
    except pyav().FFmpegError:
        return None
    unit = stream.time_base or Fraction(1)
    return index_of(packets, unit=unit, times_stored=container.format.name != "avi")


def _counted(path: str | Path) -> VideoIndex:
    """Index by decoding everything."""
    errors: list[str] = []
    # One thread: with more, how many frames are lost to a broken packet depends on the number of threads.
    with _opened(path, 1) as (container, stream):
        stamps = []
        for number, frame in enumerate(_decoded(container, stream, errors)):
            stamps.append(frame.pts)
            if frame.is_corrupt:
                errors.append(f"frame {number} lacks a part")
        unit, rate = stream.time_base or Fraction(1), stream.average_rate or Fraction(25)
    if not stamps:
        raise VideoError(f"{path} has a video stream, but not one of its frames can be decoded.")
    if errors:
        warnings.warn(
            f"{path} is damaged ({errors[0]}): only the {len(stamps)} frames that can be decoded are used.",
            VideoWarning,
            stacklevel=3,
        )
    known = [stamp for stamp in stamps if stamp is not None]
    if len(known) == len(stamps) and all(a < b for a, b in pairwise(known)):
        return VideoIndex(seconds_of(known, unit))
    return VideoIndex(seconds_of(range(len(stamps)), 1 / rate))


def _by_seeking(
    container: "InputContainer", stream: "VideoStream", index: VideoIndex, wanted: list[int]
) -> dict[int, UInt8[Tensor, "h w 3"]] | None:
    """Read frames by seeking to the keyframes before them; None when the video is not as its index says."""
    errors: list[str] = []
    found: dict[int, Tensor] = {}
    size = (stream.width, stream.height)
    convert = _converter(*size)
    frames: Iterator[VideoFrame] = iter(())
    here = index.keys[0] - 1
    for number in wanted:
        target = index.stamps[number]
        keys = index.keys_before(target)
        if keys[-1] > here:
            frames = _sought(container, stream, keys, target, errors)
        frame = _reached(frames, target)
        if errors or frame is None or frame.pts != target:
            return None
        if (frame.width, frame.height) != size:
            return None
        found[number] = convert(frame)
        here = target
    return found


def _reached(frames: "Iterator[VideoFrame]", target: int) -> "VideoFrame | None":
    """The first frame at or after a time; None where it, or one on the way that it is made of, is damaged."""
    for frame in frames:
        if frame.is_corrupt:
            return None
        if frame.pts is None or frame.pts >= target:
            return frame
    return None


def _sought(
    container: "InputContainer", stream: "VideoStream", keys: Sequence[int], target: int, errors: list[str]
) -> "Iterator[VideoFrame]":
    """Decode from the last of the keyframes; from before it where the container overshoots."""
    start = keys[0] - round(10 / (stream.time_base or 1))
    for place in (*keys[:-4:-1], start):
        try:
            container.seek(place, stream=stream)
        except pyav().FFmpegError:
            continue
        frames = _decoded(container, stream, errors)
        first = next(frames, None)
        if first is not None and first.pts is not None and first.pts <= target:
            return chain([first], frames)
    return iter(())


def _in_sequence(path: str | Path, wanted: set[int]) -> dict[int, UInt8[Tensor, "h w 3"]]:
    """Read frames by decoding from the start; where their size changes, all get the size of the first."""
    found: dict[int, Tensor] = {}
    with _opened(path, 1) as (container, stream):
        frames = _decoded(container, stream, [])
        first = next(frames)
        convert = _converter(first.width, first.height)
        for number, frame in enumerate(chain([first], frames)):
            if number in wanted:
                found[number] = convert(frame)
            if len(found) == len(wanted):
                break
    return found


def _decoded(container: "InputContainer", stream: "VideoStream", errors: list[str]) -> "Iterator[VideoFrame]":
    """Decode from where the container stands to its end, going on after packets that do not decode."""
    av = pyav()
    packets = container.demux(stream)
    going = True
    while going:
        try:
            packet = next(packets, None)
            going = packet is not None
            # Empty packets fill gaps in AVI files; the decoder would take one for the end of the stream.
            frames = stream.codec_context.decode(packet) if packet is None or packet.size else []
        except av.FFmpegError as error:
            errors.append(error.strerror or str(error))
            continue
        yield from frames


def _converter(width: int, height: int) -> "Callable[[VideoFrame], UInt8[Tensor, 'h w 3']]":
    """Make a function that turns frames into upright RGB."""
    reformatter = pyav().video.reformatter.VideoReformatter()

    def convert(frame: "VideoFrame") -> UInt8[Tensor, "h w 3"]:
        rgb = pixels(reformatter.reformat(frame, width, height, "rgb24"))
        return torch.rot90(rgb, round(frame.rotation / 90), (0, 1)).contiguous()  # rot90 always copies

    return convert


def _chosen(path: str | Path, index: VideoIndex, indices: Choice) -> list[int]:
    wanted = list(indices(index) if callable(indices) else indices)
    outside = [number for number in wanted if not 0 <= number < len(index)]
    if outside or not wanted:
        asked = f"frame {outside[0]}" if outside else "no frame at all"
        raise VideoError(f"{path} has {len(index)} frames, numbered from 0; {asked} was asked for.")
    return wanted


@contextmanager
def _opened(path: str | Path, threads: int) -> "Iterator[tuple[InputContainer, VideoStream]]":
    av = pyav()
    try:
        # Absolute, as FFmpeg takes "a:b.mp4" for protocol "a". Odd characters in metadata must not matter.
        container = av.open(str(_checked(path)), metadata_errors="ignore")
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path} cannot be read as a video: {error.strerror}.") from error
    with container:
        cover = av.stream.Disposition.attached_pic
        streams = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not streams:
            kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "no streams at all"
            raise VideoError(f"{path} has no video stream; found: {kinds}.")
        streams[0].thread_type, streams[0].thread_count = "AUTO", threads
        yield container, streams[0]


def _checked(path: str | Path) -> Path:
    if not isinstance(path, str | Path) or not str(path).strip():
        raise VideoError(f"A video is given by the path of its file, got {path!r}.")
    file = Path(path).absolute()
    if file.is_dir():
        raise VideoError(f"{path} is a directory; a video file was expected.")
    if not file.is_file():
        raise VideoError(f"{path} does not exist; a video file was expected.")
    if not file.stat().st_size:
        raise VideoError(f"{path} is empty (0 bytes).")
    return file
