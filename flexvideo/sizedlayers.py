"""Layers of torch itself that are built for one grid of tokens, and would not say so: pools and reshapes."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

from torch import nn

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

    A pool of the size of the grid leaves out, without a word, what a larger grid has more. A Linear over
    tokens needs no question: it fails at any other number of them.

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
    for path, module in model.named_modules():
        if path in plan.patch_embeds:
            continue
        if type(module) in _POOLS and _pools_the_grid(module, plan):
            yield f"{path}.kernel_size", module.kernel_size
        elif isinstance(module, nn.Unflatten) and _has(plan.base.grid, module.unflattened_size, counts):
            yield f"{path}.unflattened_size", module.unflattened_size


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
