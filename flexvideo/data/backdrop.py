"""What stands behind the figure: a wall of soft colours, a checkered floor in perspective, and shadows on it.

The camera never rolls, so a row of pixels sees the floor at one depth: most is worked out per row.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from flexvideo.data.scene import CASTING, Scene
from flexvideo.data.view import Box, View, direction


def backdrop(scene: Scene, view: View) -> Float[Tensor, "n 3 h w"]:
    """The wall, with the floor in front of it from the row where they meet."""
    cos, sin = scene.angles[:, 1].cos(), scene.angles[:, 1].sin()
    height = scene.eye[:, 1]
    meet = view.scale * (height * cos - scene.wall * sin) / (scene.wall * cos + height * sin)
    canvas = _wall(scene, view, cos, sin)
    top = int((meet.amin() - view.rows[0] - 0.5).floor().clamp(0, len(view.rows)))
    if top == len(view.rows):
        return canvas
    rows = view.rows[top:]
    cover = (rows - meet[:, None] + 0.5).clamp(0, 1)[:, None, :, None]
    floor = _floor(scene, view, torch.maximum(rows, meet[:, None]))
    canvas[:, :, top:] += cover * (floor - canvas[:, :, top:])
    return canvas


def _wall(
    scene: Scene, view: View, cos: Float[Tensor, " n"], sin: Float[Tensor, " n"]
) -> Float[Tensor, "n 3 h w"]:
    """A sum of separable cosines of the place on the wall, so that it slides by as the camera moves."""
    y = -view.rows / view.scale[:, None]
    depth = scene.wall[:, None] / (cos[:, None] + sin[:, None] * y)
    up = scene.eye[:, 1:2] + depth * (cos[:, None] * y - sin[:, None])
    pan = (scene.eye * view.right).sum(1, keepdim=True)
    across = pan + (scene.wall / cos / view.scale)[:, None] * view.columns
    fx, fy, px, py = scene.wave[..., None].unbind(2)
    wide = torch.cos(fx * across[:, None] + px)
    high = torch.cos(fy * up[:, None] + py)
    shade = 0.9 + 0.1 * (up / 2.5).clamp(0, 1)
    waves = torch.einsum("nvc,nvh,nvw->nchw", scene.wave_colour, high, wide)
    return (waves + scene.backdrop[:, :, None, None]) * shade[:, None, :, None]


def _floor(scene: Scene, view: View, rows: Float[Tensor, "n r"]) -> Float[Tensor, "n 3 r w"]:
    """Checkers filtered over each pixel's footprint, fading into the wall's colour, under soft shadows."""
    cos, sin = scene.angles[:, 1:2].cos(), scene.angles[:, 1:2].sin()
    y = -rows / view.scale[:, None]
    reach = scene.eye[:, 1:2] / (sin - cos * y)
    depth = reach * (cos + sin * y)
    per_pixel = reach / view.scale[:, None]
    checker = _checkers(scene, view, depth, per_pixel)
    far = (depth / scene.wall[:, None]).clamp(max=1)
    fade = (far * far * 0.8)[:, None]
    dark, light = scene.floor[..., None].unbind(1)
    mean = (dark + light) / 2 * (1 - fade) + 0.78 * scene.backdrop[:, :, None] * fade
    contrast = (light - dark) / 2 * (1 - fade)
    floor = mean[..., None] + contrast[..., None] * checker[:, None]
    return floor * (1 - _shadows(scene, view, depth, per_pixel))[:, None]


def _checkers(
    scene: Scene, view: View, depth: Float[Tensor, "n r"], per_pixel: Float[Tensor, "n r"]
) -> Float[Tensor, "n r w"]:
    tile, angle = scene.tiles[:, :1], torch.deg2rad(scene.tiles[:, 1:2])
    across, along = per_pixel / tile, per_pixel * depth / scene.eye[:, 1:2] / tile
    out = None
    for turn, offset in ((0.0, 2), (torch.pi / 2, 3)):
        axis = torch.cat([(angle + turn).cos(), torch.zeros_like(angle), (angle + turn).sin()], dim=1)
        right, ahead, start = ((axis * v).sum(1, keepdim=True) for v in (view.right, view.ahead, scene.eye))
        width = (right * across).abs() + (ahead * along).abs()
        begin = (start + ahead * depth) / tile + scene.tiles[:, offset : offset + 1]
        # a triangle wave with a zero at every tile edge, steepened to one pixel's width
        wave = (right * across / 2)[..., None] * view.columns + (begin / 2 + 0.25)[..., None]
        wave = wave.frac_().add_(1).frac_().mul_(2).sub_(1).abs_().neg_().add_(0.5)
        wave = wave.mul_((2 / width)[..., None]).clamp_(-1, 1)
        out = wave if out is None else out.mul_(wave)
    return out


def _shadows(
    scene: Scene, view: View, depth: Float[Tensor, "n r"], per_pixel: Float[Tensor, "n r"]
) -> Float[Tensor, "n r w"]:
    """The share of light that capsules take from the floor: dark and sharp at contact, soft from above."""
    ends, radius = scene.ends[:, CASTING], scene.radii[:, CASTING].mean(-1)
    height = ends[..., 1].clamp(min=0)
    light = scene.light[:, None, None]
    fallen = ends - light * (height / light[..., 1])[..., None] - scene.eye[:, None, None]
    a, b = torch.stack(
        [(fallen * v[:, None, None]).sum(-1) for v in (view.right, view.ahead)], dim=-1
    ).unbind(2)
    lift = (height.mean(-1) - radius).clamp(min=0)
    soft, strength = 0.04 + 0.3 * lift, (radius > 0) * 0.62 / (1 + 1.2 * lift)
    reach = (radius + soft).clamp(min=0)[..., None]
    low, high = torch.minimum(a, b) - reach, torch.maximum(a, b) + reach
    dark = depth.new_zeros(*depth.shape, len(view.columns))
    for k, box in enumerate(_shadow_boxes(low, high, depth, per_pixel, view)):
        _shade(dark, box, view, depth, per_pixel, a[:, k], b[:, k], radius[:, k], soft[:, k], strength[:, k])
    return dark


def _shadow_boxes(
    low: Float[Tensor, "n k 2"],
    high: Float[Tensor, "n k 2"],
    depth: Float[Tensor, "n r"],
    per_pixel: Float[Tensor, "n r"],
    view: View,
) -> list[Box]:
    """Windows of rows and columns, over all frames, that the shadows can reach."""
    inside = (depth[:, None] >= low[..., 1:]) & (depth[:, None] <= high[..., 1:])
    any_row = inside.any(0)
    order = torch.arange(depth.shape[1], device=depth.device)
    top = torch.where(any_row, order, depth.shape[1]).amin(1)
    bottom = torch.where(any_row, order, -1).amax(1) + 1
    nearest = per_pixel.amin(1)[:, None]
    left = torch.where(low[..., 0] < 0, low[..., 0] / nearest, 0.0).amin(0) - view.columns[0]
    right = torch.where(high[..., 0] > 0, high[..., 0] / nearest, 0.0).amax(0) - view.columns[0] + 1
    width = len(view.columns)
    return torch.stack(
        [top, bottom, left.clamp(0, width).long(), right.clamp(0, width).long()], dim=1
    ).tolist()


def _shade(
    dark: Float[Tensor, "n r w"],
    box: Box,
    view: View,
    depth: Float[Tensor, "n r"],
    per_pixel: Float[Tensor, "n r"],
    a: Float[Tensor, "n 2"],
    b: Float[Tensor, "n 2"],
    radius: Float[Tensor, " n"],
    soft: Float[Tensor, " n"],
    strength: Float[Tensor, " n"],
) -> None:
    top, bottom, left, right = box
    if top >= bottom or left >= right:
        return
    col = (slice(None), None, None)
    length, u, v = direction(b - a, 1e-3)
    x = per_pixel[:, top:bottom, None] * view.columns[left:right] - a[:, :1, None]
    z = depth[:, top:bottom, None] - a[:, 1:, None]
    along = x * u[col] + z * v[col]
    across = z * u[col] - x * v[col]
    past = along - torch.minimum(along.clamp(min=0), length[col])
    distance = (past * past + across * across).sqrt_()
    shade = ((radius + soft / 2)[col] - distance).mul_((1 / soft)[col]).clamp_(0, 1)
    shade = shade.mul_(shade).mul_(strength[col])
    region = dark[:, top:bottom, left:right]
    torch.maximum(region, shade, out=region)
