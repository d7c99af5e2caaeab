"""Layers of torch itself that are built for one grid of tokens: pools, reshapes, and Linear over tokens."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

from torch import nn

from flexvideo.families import find
from flexvideo.plan import Plan

_POOLS: dict[type[nn.Module], int] = {
    nn.AvgPool1d: 1,
    nn.MaxPool1d: 1,
    nn.AvgPool2d: 2,
    nn.MaxPool2d: 2,
    nn.AvgPool3d: 3,
    nn.MaxPool3d: 3,
}


def token_counts(plan: Plan) -> set[int]:
    """Tokens of a step and of the whole clip at the base, without class tokens.

    Args:
        plan: holds the base.
    """
    tokens = math.prod(plan.base.grid)
    return {tokens, tokens * (plan.base.steps or 1)}


def sized_layers(model: nn.Module, plan: Plan) -> Iterator[tuple[str, Any]]:
    """Attributes of layers, and their values, that are the base's grid or the number of its tokens.

    A pool of the size of the grid leaves out, without a word, what a larger grid has more. A Linear counts
    when it takes as many features as there are tokens, and nothing before it gives that many channels.

    Args:
        model: the model that the plan is for.
        plan: holds the base.

    Example:
        >>> from flexvideo import Base
        >>> plan = Plan(base=Base(None, 64, 64, (16, 16)), patch_embeds=("0",))
        >>> list(sized_layers(nn.Sequential(nn.Conv2d(3, 8, 16, 16), nn.AvgPool2d(4)), plan))
        [('1.kernel_size', 4)]
    """
    counts = {count for count in token_counts(plan) if count > 1}
    channels = {find(model, f"{path}.weight").shape[0] for path in plan.patch_embeds} | set(_vectors(model))
    for path, module in model.named_modules():
        if path in plan.patch_embeds:
            continue
        if type(module) in _POOLS and _pools_the_grid(module, plan):
            yield f"{path}.kernel_size", module.kernel_size
        elif isinstance(module, nn.Unflatten) and _has(plan.base.grid, module.unflattened_size, counts):
            yield f"{path}.unflattened_size", module.unflattened_size
        elif isinstance(module, nn.Linear):
            if module.in_features in counts - channels:
                yield f"{path}.in_features", module.in_features
            else:
                channels |= {module.out_features, module.out_features // 2}  # a half of them may be gates
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            channels.add(module.out_channels)


def _vectors(model: nn.Module) -> Iterator[int]:
    """Channels that norms, convolutions and scans tell of by vectors; a Linear's say what it gives."""
    for module in model.modules():
        if not isinstance(module, nn.Linear):
            for value in module._parameters.values():
                if value is not None and value.ndim == 1:
                    yield len(value)


def _pools_the_grid(pool: Any, plan: Plan) -> bool:
    dimensions, size = _POOLS[type(pool)], pool.kernel_size
    kernel = (size,) * dimensions if isinstance(size, int) else tuple(size)
    if dimensions == 1:
        return kernel[0] > 1 and kernel[0] in {*token_counts(plan), plan.base.steps}
    whole_time = dimensions == 3 and kernel[0] > 1 and kernel[0] == plan.base.steps
    return whole_time or (kernel[-2:] == plan.base.grid and max(kernel[-2:]) > 1)


def _has(grid: tuple[int, int], size: Any, counts: set[int]) -> bool:
    return isinstance(size, tuple | list) and (
        grid in itertools.pairwise(size) or any(length in counts for length in size)
    )
