"""What training does to one clip: where it is cut, whether it is mirrored, its colours and its holes.

Every choice comes from the `Random` that is given, in a fixed order, so that a clip's key settles all of it.
"""

import math
from random import Random

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from flexvideo.data.source import Box, Crop

_TRIES = 10
_ERASED_AREA, _ERASED_RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)


def centre_crop(size: tuple[int, int]) -> Crop:
    """Keep the largest rectangle of the aspect of (height, width), in the middle.

    Args:
        size: height and width in pixels.

    Example:
        >>> centre_crop((112, 112))(240, 320)
        Box(top=0, left=40, height=240, width=240)
    """
    height, width = size

    def crop(rows: int, columns: int) -> Box:
        kept = min(rows, max(1, columns * height // width)), min(columns, max(1, rows * width // height))
        return Box((rows - kept[0]) // 2, (columns - kept[1]) // 2, *kept)

    return crop


def random_crop(
    size: tuple[int, int], *, scale: tuple[float, float], ratio: tuple[float, float], draw: Random
) -> Crop:
    """Keep a rectangle of random area, aspect and place; the centre where ten attempts do not fit.

    Args:
        size: height and width in pixels that the rectangle is going to be resized to.
        scale: smallest and largest share of the area.
        ratio: smallest and largest aspect, width by height, against that of `size`.
        draw: of all random choices.

    Example:
        >>> random_crop((112, 112), scale=(0.5, 1.0), ratio=(0.75, 1.33), draw=Random(0))(240, 320)
        Box(top=3, left=64, height=233, width=244)

    Source: Inception's random resized crop, as in the official recipe.
    """

    def crop(rows: int, columns: int) -> Box:
        box = _random_box((rows, columns), scale, ratio, size[1] / size[0], draw)
        return box or centre_crop(size)(rows, columns)

    return crop


def mirror(frames: UInt8[Tensor, "t h w c"]) -> UInt8[Tensor, "t h w c"]:
    """Swap left and right.

    Args:
        frames: of a clip.
    """
    return frames.flip(2)


def erase(clip: Float[Tensor, "c t h w"], *, probability: float, draw: Random) -> Float[Tensor, "c t h w"]:
    """Replace a random rectangle of all frames by normal noise, in place.

    Args:
        clip: normalised, so that the noise is as strong as the picture.
        probability: from 0 to 1.
        draw: of all random choices.

    Source: Zhong et al., Random Erasing (arXiv 1708.04896), mode "pixel", one rectangle for a clip.
    """
    if draw.random() >= probability:
        return clip
    box = _random_box((clip.shape[2], clip.shape[3]), _ERASED_AREA, _ERASED_RATIO, 1.0, draw)
    if box is not None:
        noise = torch.Generator(clip.device).manual_seed(draw.getrandbits(63))
        hole = clip[:, :, box.top : box.top + box.height, box.left : box.left + box.width]
        hole.normal_(generator=noise)
    return clip


def _random_box(
    frame: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    aspect: float,
    draw: Random,
) -> Box | None:
    """A rectangle inside a frame, its area and the logarithm of its aspect uniform; None after ten misses."""
    rows, columns = frame
    for _ in range(_TRIES):
        area = draw.uniform(*scale) * rows * columns
        wide = aspect * math.exp(draw.uniform(math.log(ratio[0]), math.log(ratio[1])))
        height, width = round(math.sqrt(area / wide)), round(math.sqrt(area * wide))
        if 1 <= height <= rows and 1 <= width <= columns:
            return Box(draw.randint(0, rows - height), draw.randint(0, columns - width), height, width)
    return None
