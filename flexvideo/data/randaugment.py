"""RandAugment for clips: the same operations, with the same strengths, on all frames of a clip.

The operations and strengths are those of "rand-m7-n4-mstd0.5-inc1" and its like, which the official recipe
names, here on uint8 tensors of any device; well-kept libraries need Pillow and torchvision for them, or have
others. Three things differ: clips are altered after the crop, at the size that the model sees; pixels that
move are interpolated bilinearly; and slants go about the middle.
"""

import math
from collections.abc import Callable
from random import Random
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

Frames: TypeAlias = UInt8[Tensor, "t h w 3"]

_FILL = (124.0, 116.0, 104.0)  # ImageNet's mean colour, for what comes from outside the frame
_GREY = (0.299, 0.587, 0.114)
_STRONGEST = 10.0


def rand_augment(
    frames: Frames, *, operations: int, magnitude: float, magnitude_std: float, draw: Random
) -> Frames:
    """Do random operations on a clip, each of those drawn with probability 1/2.

    Args:
        frames: of the clip.
        operations: how many are drawn, with replacement.
        magnitude: mean strength, 0 to 10.
        magnitude_std: standard deviation of the strength, from operation to operation.
        draw: of all random choices.

    Example:
        >>> clip = torch.zeros(4, 32, 32, 3, dtype=torch.uint8)
        >>> rand_augment(clip, operations=4, magnitude=7.0, magnitude_std=0.5, draw=Random(0)).shape
        torch.Size([4, 32, 32, 3])

    Source: Cubuk et al., RandAugment (arXiv 1909.13719); operations as in timm's increasing set.
    """
    for _ in range(operations):
        operation = OPERATIONS[int(draw.random() * len(OPERATIONS))]
        done, sign = draw.random() < 0.5, -1 if draw.random() < 0.5 else 1
        strength = min(max(draw.gauss(magnitude, magnitude_std), 0.0), _STRONGEST) / _STRONGEST
        if done:
            frames = operation(frames, strength, sign)
    return frames


def auto_contrast(frames: Frames, strength: float = 1.0, sign: int = 1) -> Frames:
    """Stretch each colour of each frame to the whole range."""
    low = frames.amin((1, 2), keepdim=True).float()
    high = frames.amax((1, 2), keepdim=True).float()
    stretched = (frames - low) * 255 / (high - low).clamp(min=1)
    return torch.where(high > low, _bytes(stretched), frames)


def equalize(frames: Frames, strength: float = 1.0, sign: int = 1) -> Frames:
    """Make each grey level equally frequent, for each colour of each frame."""
    count, height, width, colours = frames.shape
    rows = torch.arange(count * colours, device=frames.device).view(count, 1, 1, colours)
    places = rows * 256 + frames
    counts = torch.bincount(places.flatten(), minlength=count * colours * 256).view(-1, 256)
    # As Pillow does: the share of the brightest level counts for nothing, so that the range is used up.
    brightest = counts.gather(1, 255 - (counts.flip(1) > 0).int().argmax(1, keepdim=True))
    step = (height * width - brightest) // 255
    levels = (counts.cumsum(1) - counts + step // 2) // step.clamp(min=1)
    levels = torch.where(step > 0, levels.clamp(max=255), torch.arange(256, device=frames.device))
    return levels.to(torch.uint8).flatten()[places]


def invert(frames: Frames, strength: float = 1.0, sign: int = 1) -> Frames:
    """Turn light into dark."""
    return 255 - frames


def rotate(frames: Frames, strength: float, sign: int = 1) -> Frames:
    """Turn by up to 30 degrees about the middle."""
    angle = math.radians(30 * strength * sign)
    return _moved(frames, ((math.cos(angle), math.sin(angle), 0.0), (-math.sin(angle), math.cos(angle), 0.0)))


def posterize(frames: Frames, strength: float, sign: int = 1) -> Frames:
    """Keep the upper 4 to 0 bits of each value."""
    return frames & (0xFF << (4 + int(strength * 4)) & 0xFF)


def solarize(frames: Frames, strength: float, sign: int = 1) -> Frames:
    """Invert the values from a threshold on, which falls from 256 to 0."""
    return torch.where(frames.short() < 256 - int(strength * 256), frames, 255 - frames)


def solarize_add(frames: Frames, strength: float, sign: int = 1) -> Frames:
    """Add up to 110 to values below 128."""
    return torch.where(frames < 128, frames + int(strength * 110), frames)


def colour(frames: Frames, strength: float, sign: int = 1) -> Frames:
    """Take colour away or add to it."""
    return _away_from(_grey(frames), frames, strength, sign)


def contrast(frames: Frames, strength: float, sign: int = 1) -> Frames:
    """Take contrast away or add to it, for each frame."""
    # A sum of whole numbers, so that no way of splitting it up changes the mean.
    total = _grey(frames).sum((1, 2, 3), keepdim=True, dtype=torch.int64)
    mean = (total.double() / (frames.shape[1] * frames.shape[2]) + 0.5).floor().float()
    return _away_from(mean, frames, strength, sign)


def brightness(frames: Frames, strength: float, sign: int = 1) -> Frames:
    """Darken or lighten."""
    return _away_from(torch.zeros((), device=frames.device), frames, strength, sign)


def sharpness(frames: Frames, strength: float, sign: int = 1) -> Frames:
    """Blur or sharpen; the outermost pixels stay as they are."""
    soft = frames.float()
    if min(frames.shape[1:3]) > 2:
        rows = soft[:, :-2] + soft[:, 1:-1] + soft[:, 2:]
        boxes = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
        # Pillow's kernel: 5 in the middle and 1 around it, by 13.
        soft[:, 1:-1, 1:-1] = boxes.add_(soft[:, 1:-1, 1:-1], alpha=4).div_(13).add_(0.5).floor_()
    return _away_from(soft, frames, strength, sign)


def shear_x(frames: Frames, strength: float, sign: int = 1) -> Frames:
    """Slant sideways, by up to 0.3 of the height."""
    return _moved(frames, ((1.0, 0.3 * strength * sign, 0.0), (0.0, 1.0, 0.0)))


def shear_y(frames: Frames, strength: float, sign: int = 1) -> Frames:
    """Slant up or down, by up to 0.3 of the width."""
    return _moved(frames, ((1.0, 0.0, 0.0), (0.3 * strength * sign, 1.0, 0.0)))


def translate_x(frames: Frames, strength: float, sign: int = 1) -> Frames:
    """Shift sideways, by up to 0.45 of the width, in whole pixels."""
    return _shifted(frames, 2, sign * round(0.45 * strength * frames.shape[2]))


def translate_y(frames: Frames, strength: float, sign: int = 1) -> Frames:
    """Shift up or down, by up to 0.45 of the height, in whole pixels."""
    return _shifted(frames, 1, sign * round(0.45 * strength * frames.shape[1]))


Operation: TypeAlias = Callable[[Frames, float, int], Frames]

OPERATIONS: tuple[Operation, ...] = (
    auto_contrast,
    equalize,
    invert,
    rotate,
    posterize,
    solarize,
    solarize_add,
    colour,
    contrast,
    brightness,
    sharpness,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
)
"""Each takes frames, a strength from 0 to 1 and a sign for where it can go two ways."""


def _grey(frames: Frames) -> Float[Tensor, "t h w 1"]:
    """Luminance in whole numbers, as Pillow has it."""
    weights = torch.tensor(_GREY, device=frames.device)
    return (frames.float() * weights).sum(-1, keepdim=True).add(0.5).floor()


def _away_from(other: Tensor, frames: Frames, strength: float, sign: int) -> Frames:
    """Blend with another picture: from 0.1 (nearly the other) over 1 (as it is) to 1.9 (away from it)."""
    return _bytes(torch.lerp(other.expand(frames.shape), frames.float(), 1 + 0.9 * strength * sign))


def _bytes(values: Float[Tensor, "t h w 3"]) -> Frames:
    return values.clamp(0, 255).to(torch.uint8)


def _shifted(frames: Frames, axis: int, pixels: int) -> Frames:
    """Put at each place what is so many pixels further along an axis."""
    fill = torch.tensor(_FILL).to(torch.uint8).to(frames.device, non_blocking=True)
    shifted = frames.roll(-pixels, axis)
    begin = frames.shape[axis] - pixels if pixels > 0 else 0
    shifted.narrow(axis, begin, abs(pixels))[:] = fill
    return shifted


def _moved(frames: Frames, matrix: tuple[tuple[float, float, float], ...]) -> Frames:
    """Look up every pixel (x, y) at matrix @ (x, y, 1), in pixels from the middle of the frame."""
    _, height, width, _ = frames.shape
    x = torch.arange(width, device=frames.device) - (width - 1) / 2
    y = (torch.arange(height, device=frames.device) - (height - 1) / 2)[:, None]
    at = [row[0] * x + row[1] * y + row[2] for row in matrix]
    grid = torch.stack([at[0] * (2 / width), at[1] * (2 / height)], dim=-1)
    fill = torch.tensor(_FILL).to(frames.device, non_blocking=True)
    planes = (frames - fill).permute(0, 3, 1, 2).flatten(0, 1)[None]
    moved = F.grid_sample(planes, grid[None], mode="bilinear", padding_mode="zeros", align_corners=False)
    return _bytes(moved[0].unflatten(0, (-1, 3)).permute(0, 2, 3, 1) + fill + 0.5)
