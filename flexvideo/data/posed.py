"""Drawn clips together with where the joints are in every frame: what no filmed data set tells."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from flexvideo.data.motion import RenderedSet, frame_times
from flexvideo.data.skeleton import INDEX
from flexvideo.data.view import view_of

_AT_ONCE = 16  # clips drawn in one pass


@dataclass(frozen=True, eq=False)
class PosedClips:
    """Clips on a device, and where the joints are in every frame.

    Args:
        videos: the frames.
        tracks: of every joint x and y on the frame, from -1 to 1, and metres behind the hips.
    """

    videos: UInt8[Tensor, "n f h w 3"]
    tracks: Float[Tensor, "n f 21 3"]

    def __len__(self) -> int:
        return len(self.videos)


def posed_clips(
    sets: Sequence[RenderedSet],
    *,
    frames: int,
    size: int,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], object] | None = None,
) -> PosedClips:
    """Draw all clips of some sets, and note where their joints are.

    Args:
        sets: their labels are not looked at.
        frames: of a clip, spread over it.
        size: of a frame in pixels.
        device: where to draw and to keep them.
        progress: called with the number of clips drawn, and their total.

    Example:
        >>> from flexvideo.data.motion import MotionSet
        >>> clips = posed_clips([MotionSet(actions=("bow", "jump"), per_class=1)], frames=4, size=16)
        >>> clips.videos.shape, clips.tracks.shape
        (torch.Size([2, 4, 16, 16, 3]), torch.Size([2, 4, 21, 3]))
    """
    total = sum(map(len, sets))
    videos = torch.empty(total, frames, size, size, 3, dtype=torch.uint8, device=device)
    place = 0
    for clips in sets:
        for start in range(0, len(clips), _AT_ONCE):
            rows = range(start, min(start + _AT_ONCE, len(clips)))
            to = slice(place, place + len(rows))
            videos[to] = clips.batch(rows, frames=frames, size=size, device=device)
            place = to.stop
            if progress is not None:
                progress(place, total)
    tracks = torch.cat([track_clips(clips, frames=frames) for clips in sets])
    return PosedClips(videos, tracks.to(device))


def track_clips(clips: RenderedSet, *, frames: int) -> Float[Tensor, "n t 21 3"]:
    """Work out where the joints of all clips of a set are, in the frames that `sample` draws.

    Args:
        clips: a set.
        frames: of a clip, spread over it.
    """
    times = (frame_times(clips.duration(index), frames) for index in range(len(clips)))
    return torch.stack([joint_tracks(clips, index, each) for index, each in enumerate(times)])


def joint_tracks(clips: RenderedSet, index: int, times: Float[Tensor, " t"]) -> Float[Tensor, "t 21 3"]:
    """Work out where the joints of a clip are seen: x and y from -1 to 1, and metres behind the hips.

    Args:
        clips: that draw it.
        index: which clip.
        times: in seconds.
    """
    scene = clips.scene(index, times).to("cpu")
    view = view_of(scene, (2, 2))
    axes = torch.stack([view.right, -view.up, view.forward], dim=1)
    seen = torch.einsum("njx,nax->nja", clips.joints(index, times).float() - scene.eye[:, None], axes)
    depth = seen[..., 2:]
    places = seen[..., :2] / depth.clamp(min=0.2) * view.scale[:, None, None]
    return torch.cat([places, depth - depth[:, INDEX["Hips"], None]], dim=-1)
