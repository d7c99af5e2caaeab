"""Frames to video files, with PyAV."""

import math
from fractions import Fraction
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from flexvideo.data.decode import pixels, pyav
from flexvideo.errors import VideoError


def write_video(path: str | Path, frames: UInt8[Tensor, "t h w 3"], *, fps: float = 25.0) -> None:
    """Write frames as H.264; in full colour resolution (4:4:4) where a side is odd, which 4:2:0 cannot hold.

    Args:
        path: the file to write; its ending names the container: `.mp4`, `.mkv`, `.mov`, `.avi`.
        frames: RGB, one frame or more.
        fps: frames a second, above 0.

    Raises:
        VideoError: there is nothing to write, or it cannot be written there.

    Example:
        >>> write_video("video.mp4", frames, fps=15)  # doctest: +SKIP
    """
    av = pyav()
    count, height, width, _ = frames.shape
    if not frames.numel() or not 0 < fps < math.inf:
        raise VideoError(
            f"{path} cannot be written: a video needs frames of at least 1 x 1 pixels and a positive rate, "
            f"got {count} frames of {height} x {width} at {fps:g} a second."
        )
    if frames.dtype != torch.uint8:
        raise VideoError(f"{path} cannot be written: frames must be uint8, 0 to 255, got {frames.dtype}.")
    target = Path(path).absolute()
    if not target.parent.is_dir():
        raise VideoError(f"{path} cannot be written: there is no directory {target.parent}.")
    try:
        with av.open(str(target), "w") as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(65535))
            stream.height, stream.width, stream.options = height, width, {"crf": "18"}
            stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
            for frame in frames:
                picture = av.VideoFrame(width, height, "rgb24")
                pixels(picture).copy_(frame)
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
    except (
        av.FFmpegError,
        ValueError,
    ) as error:  # H.264 does not fit, or a full disk
        raise VideoError(f"{path} cannot be written as a video: {error}.") from error
