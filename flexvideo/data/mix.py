"""Mixup, CutMix and label smoothing: clips of one micro-batch blended in pairs, their labels with them."""

import math
from dataclasses import dataclass
from random import Random

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flexvideo.data.augment import Augment
from flexvideo.data.source import Box

_CUTMIX_SHARE = 0.5  # how often, where both are asked for


@dataclass(frozen=True)
class Mixing:
    """How the clips of a micro-batch are mixed with each other.

    Args:
        share: of a clip that stays its own.
        box: the part that is its partner's; None blends all of the frame.
    """

    share: float
    box: Box | None = None


def draw_mixing(augment: Augment, size: tuple[int, int], draw: Random) -> Mixing:
    """Draw how to mix.

    Args:
        augment: parameters of the Beta distributions.
        size: height and width of the clips in pixels.
        draw: of all random choices.

    Source: Zhang et al., mixup (arXiv 1710.09412); Yun et al., CutMix (arXiv 1905.04899).
    """
    cut = augment.cutmix > 0 and (augment.mixup == 0 or draw.random() < _CUTMIX_SHARE)
    parameter = augment.cutmix if cut else augment.mixup
    share = draw.betavariate(parameter, parameter) if parameter else 1.0
    if not cut:
        return Mixing(share)
    box = _cut(size, math.sqrt(1 - share), draw)
    return Mixing(1 - box.height * box.width / (size[0] * size[1]), box)


def mix(clips: Float[Tensor, "b c t h w"], mixing: Mixing, present: list[bool]) -> Float[Tensor, "b c t h w"]:
    """Mix every clip with its partner, in place: the first with the last, the second with the last but one.

    Args:
        clips: of a micro-batch.
        mixing: how.
        present: whether each clip could be read; one that has no partner stays as it is.

    Example:
        >>> clips = torch.arange(2.0).view(2, 1, 1, 1, 1)
        >>> mix(clips, Mixing(0.75), [True, True]).flatten().tolist()
        [0.25, 0.75]
    """
    for place in (place for place in _paired(present) if place < len(clips) // 2):
        one, other = clips[place], clips[-1 - place]
        if mixing.box is None:
            blended = torch.lerp(other, one, mixing.share)
            other.copy_(torch.lerp(one, other, mixing.share))
            one.copy_(blended)
        else:
            top, left, height, width = mixing.box
            inside = (..., slice(top, top + height), slice(left, left + width))
            kept = one[inside].clone()
            one[inside] = other[inside]
            other[inside] = kept
    return clips


def soft_targets(
    labels: Int[Tensor, " b"], classes: int, mixing: Mixing, present: list[bool], *, smoothing: float
) -> Float[Tensor, "b classes"]:
    """Share of every class in every clip that `mix` gives.

    Args:
        labels: of the clips before.
        classes: how many there are.
        mixing: how they are mixed.
        present: as for `mix`.
        smoothing: share that is spread over all classes.

    Example:
        >>> soft_targets(torch.tensor([0, 1]), 2, Mixing(0.75), [True, True], smoothing=0.0).tolist()
        [[0.75, 0.25], [0.25, 0.75]]
    """
    hard = torch.nn.functional.one_hot(labels, classes).float()
    smooth = hard * (1 - smoothing) + smoothing / classes
    share = torch.ones(len(labels), 1, device=labels.device)
    share[_paired(present)] = mixing.share
    return torch.lerp(smooth.flip(0), smooth, share)


def _paired(present: list[bool]) -> list[int]:
    return [place for place, both in enumerate(zip(present, reversed(present), strict=True)) if all(both)]


def _cut(size: tuple[int, int], side: float, draw: Random) -> Box:
    """A rectangle with `side` of both sides of the frame, cut off where it leaves the frame."""
    spans = []
    for length in size:
        middle, half = int(draw.random() * length), int(length * side) // 2
        begin, end = max(middle - half, 0), min(middle + half, length)
        spans.append((begin, end - begin))
    (top, height), (left, width) = spans
    return Box(top, left, height, width)
