"""A small renderer in plain torch: tapered capsules with analytic edges over a floor and a wall.

One code for every device and any frame size. Pixel work is add, multiply, divide, square root and compare,
whose results do not depend on how torch splits the loop, so a scene gives the same bytes again.
Shapes: n frames, k capsules, h x w pixels. A capsule is the hull of two discs on the screen; it is painted
inside its own window, with a depth per pixel, and its edge covers pixels by their distance to it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from flexvideo.data.backdrop import backdrop
from flexvideo.data.scene import TORSO, Scene
from flexvideo.data.view import Box, View, direction, view_of
from flexvideo.errors import GeometryError

_SEAM, _SOFT_SEAM = 0.015, 0.12  # metres of depth over which one part passes into another; within the torso
_FLAT = 0.5  # how much flatter the torso is shaded than it is round
_AMBIENT, _DIFFUSE, _FACING = 0.46, 0.62, 0.35
_PIXELS = {"cpu": 1 << 20, "cuda": 1 << 24}  # a chunk of frames: fits the cache, or fills the device
_FAR = 1e4


def render(scene: Scene, size: tuple[int, int]) -> UInt8[Tensor, "n h w 3"]:
    """Draw a scene.

    Args:
        scene: what to draw, one row per frame; its device is where it is drawn.
        size: height and width in pixels; the camera's square view fits inside.

    Raises:
        GeometryError: a size below 8 pixels.
    """
    height, width = size
    if min(size) < 8:
        raise GeometryError(
            f"Cannot draw frames of {height} x {width} pixels; both sides must be at least 8."
        )
    step = max(1, _PIXELS.get(scene.eye.device.type, 1 << 16) // (height * width))
    frames = [_render_chunk(scene[i : i + step], size) for i in range(0, len(scene), step)]
    return torch.cat(frames)


def _render_chunk(scene: Scene, size: tuple[int, int]) -> UInt8[Tensor, "n h w 3"]:
    view = view_of(scene, size)
    canvas = backdrop(scene, view)
    _paint_figure(scene, view, canvas)
    return canvas.clamp_(0, 1).mul_(255).add_(0.5).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@dataclass(frozen=True)
class _Discs:
    """Capsules on the screen: two discs each in pixels, depth in metres, and the light in screen axes."""

    a: Float[Tensor, "n k 2"]
    b: Float[Tensor, "n k 2"]
    ra: Float[Tensor, "n k"]
    rb: Float[Tensor, "n k"]
    za: Float[Tensor, "n k"]
    zb: Float[Tensor, "n k"]
    metre: Float[Tensor, "n k"]
    light: Float[Tensor, "n 3"]


def _project(scene: Scene, view: View) -> _Discs:
    axes = torch.stack([view.right, -view.up, view.forward], dim=1)
    seen = torch.einsum("nkex,nax->nkea", scene.ends - scene.eye[:, None, None], axes)
    depth = seen[..., 2].clamp(min=0.2)
    scale = view.scale[:, None, None] / depth
    place, radius = seen[..., :2] * scale[..., None], scene.radii * scale
    light = torch.einsum("nx,nax->na", scene.light, axes) * axes.new_tensor([1.0, 1.0, -1.0])
    (a, b), (ra, rb), (za, zb) = place.unbind(2), radius.unbind(2), depth.unbind(2)
    return _Discs(a, b, ra, rb, za, zb, 1 / scale.mean(-1), light)


def _paint_figure(scene: Scene, view: View, canvas: Float[Tensor, "n 3 h w"]) -> None:
    discs = _project(scene, view)
    shape = (len(scene), len(view.rows), len(view.columns))
    alpha, depth = canvas.new_zeros(shape), canvas.new_full(shape, _FAR)
    paint = torch.zeros_like(canvas)
    for k, box in enumerate(_boxes(discs, view)):
        top, bottom, left, right = box
        if top < bottom and left < right:
            window = (slice(None), slice(top, bottom), slice(left, right))
            seam, flat = (_SOFT_SEAM, _FLAT) if k < TORSO else (_SEAM, 0.0)
            surface = _surface(discs, k, view.rows[top:bottom], view.columns[left:right], flat)
            layers = paint[(slice(None), *window)], alpha[window], depth[window]
            _compose(*layers, *surface, scene.colours[:, k], seam)
    canvas.mul_((1 - alpha)[:, None]).add_(paint)


def _boxes(discs: _Discs, view: View) -> list[Box]:
    """The window of each capsule over all frames, one transfer for all of them."""
    ra, rb = discs.ra[..., None], discs.rb[..., None]
    low = torch.minimum(discs.a - ra, discs.b - rb).amin(0)
    high = torch.maximum(discs.a + ra, discs.b + rb).amax(0)
    out = []
    for axis, grid in ((1, view.rows), (0, view.columns)):
        first = (low[:, axis] - grid[0] - 0.5).floor().clamp(0, len(grid))
        last = (high[:, axis] - grid[0] + 1.5).ceil().clamp(0, len(grid))
        out += [first, torch.where(discs.ra.amax(0) > 0, last, first)]
    return torch.stack(out, dim=1).long().tolist()


def _surface(
    discs: _Discs, k: int, rows: Float[Tensor, " r"], columns: Float[Tensor, " q"], flat: float
) -> tuple[Float[Tensor, "n r q"], Float[Tensor, "n r q"], Float[Tensor, "n r q"]]:
    """Coverage, brightness and depth of capsule k over a window; `flat` turns its normals towards the eye."""
    a, ra, rb, za = discs.a[:, k], discs.ra[:, k], discs.rb[:, k], discs.za[:, k]
    length, u, v = direction(discs.b[:, k] - a, 1e-2)
    # the nearest point of the axis is off the foot of the perpendicular: the hull's sides are not parallel
    slope = ((ra - rb) / length).clamp(-0.95, 0.95)
    lean = slope / (1 - slope * slope).sqrt()
    lx, ly, lz = discs.light.unbind(1)
    col = (slice(None), None, None)

    x, y = columns - a[:, :1, None], rows[:, None] - a[:, 1:, None]
    along = x * u[col] + y * v[col]
    across = y * u[col] - x * v[col]
    foot = torch.minimum((along - across.abs().mul_(lean[col])).clamp_(min=0), length[col])
    radius = foot * ((rb - ra) / length)[col] + ra[col]
    past = along.sub_(foot)
    square = past * past + across * across
    cover = (radius - square.sqrt()).add_(0.5).clamp_(0, 1)
    inverse = 1 / radius
    facing = (1 - square.mul_(inverse).mul_(inverse)).clamp_(min=0).sqrt_()
    lx, ly, bright = (1 - flat) * lx, (1 - flat) * ly, facing * (1 - flat) + flat if flat else facing
    shine = past.mul_((lx * u + ly * v)[col]).add_(across.mul_((ly * u - lx * v)[col])).mul_(inverse)
    shine = shine.add_(bright * lz[col]).clamp_(min=0).mul_(_DIFFUSE).add_(_AMBIENT)
    shine.mul_((bright * _FACING).add_(1 - _FACING))
    depth = foot.mul_(((discs.zb[:, k] - za) / length)[col]).add_(za[col])
    depth.sub_(facing.mul_(radius).mul_(discs.metre[:, k][col]))
    return cover, shine, depth


def _compose(
    paint: Float[Tensor, "n 3 r q"],
    alpha: Float[Tensor, "n r q"],
    depth: Float[Tensor, "n r q"],
    cover: Float[Tensor, "n r q"],
    shine: Float[Tensor, "n r q"],
    near: Float[Tensor, "n r q"],
    colour: Float[Tensor, "n 3"],
    seam: float,
) -> None:
    """Put a surface over what is behind it and under what is in front, in place.

    In front, it covers by `cover`; behind, it shows where the pixel is not yet covered.
    """
    front = ((depth - near) * (1 / seam)).add_(0.5).clamp_(0, 1)
    keep = 1 - front * cover
    add = (1 - alpha + front * alpha).mul_(cover)
    depth.copy_(torch.where(cover > 0.5, torch.minimum(depth, near), depth))
    alpha.mul_(keep).add_(add)
    paint.mul_(keep[:, None]).add_(add.mul_(shine)[:, None] * colour[:, :, None, None])
