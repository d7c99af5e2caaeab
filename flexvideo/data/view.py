"""The camera as the renderer uses it: axes, and pixel centres about the principal point."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from flexvideo.data.scene import Scene

Box = list[int]  # top, bottom, left, right


@dataclass(frozen=True)
class View:
    """Axes of the camera, pixels per unit of slope, and pixel centres from the principal point."""

    right: Float[Tensor, "n 3"]
    up: Float[Tensor, "n 3"]
    forward: Float[Tensor, "n 3"]
    ahead: Float[Tensor, "n 3"]
    scale: Float[Tensor, " n"]
    rows: Float[Tensor, " h"]
    columns: Float[Tensor, " w"]


def view_of(scene: Scene, size: tuple[int, int]) -> View:
    """The camera of each frame for frames of `size` (height, width); its square view fits inside."""
    yaw, pitch = scene.angles.unbind(1)
    zero = torch.zeros_like(yaw)
    right = torch.stack([yaw.cos(), zero, -yaw.sin()], dim=1)
    ahead = torch.stack([-yaw.sin(), zero, -yaw.cos()], dim=1)
    down = torch.stack([zero, -torch.ones_like(yaw), zero], dim=1)
    cos, sin = pitch.cos()[:, None], pitch.sin()[:, None]
    rows, columns = (torch.arange(s, device=yaw.device, dtype=yaw.dtype) + (0.5 - s / 2) for s in size)
    return View(
        right=right,
        up=sin * ahead - cos * down,
        forward=cos * ahead + sin * down,
        ahead=ahead,
        scale=scene.focal * min(size),
        rows=rows,
        columns=columns,
    )


def direction(
    line: Float[Tensor, "n 2"], least: float
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Length and unit vector of segments; a point counts as a very short one along the first axis."""
    line = torch.where((line.norm(dim=1, keepdim=True) < least), line.new_tensor([least, 0.0]), line)
    length = line.norm(dim=1)
    u, v = (line / length[:, None]).unbind(1)
    return length, u, v
