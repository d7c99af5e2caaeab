"""Weights of both directions as kernels take them: stacked, cast and padded, in as few launches as may be."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Stack(NamedTuple):
    """Weights of one shape that become one tensor, stacked along a first dimension.

    Args:
        weights: one a direction.
        dtype: of the result.
        gap: dimension of a weight, where along it zeros are put in, and how many.
        decay: take -exp of them.
    """

    weights: Sequence[Tensor]
    dtype: torch.dtype
    gap: tuple[int, int, int] = (0, 0, 0)
    decay: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        sizes, (dim, _, zeros) = list(self.weights[0].shape), self.gap
        sizes[dim] += zeros
        return len(self.weights), *sizes


def stacked(stacks: Sequence[Stack]) -> list[Tensor]:
    """Make the tensors, all of them by one copy for each pair of dtypes, old and new."""
    outs = [
        weights[0].new_empty((len(weights), *weights[0].shape), dtype=dtype) for weights, dtype, *_ in stacks
    ]
    copies = [part for out in outs for part in out.unbind()]
    weights = [weight for stack in stacks for weight in stack.weights]
    kinds = [(new.dtype, old.dtype) for new, old in zip(copies, weights, strict=True)]
    for kind in dict.fromkeys(kinds):
        of_kind = [i for i, other in enumerate(kinds) if other == kind]
        new, old = [copies[i] for i in of_kind], [weights[i] for i in of_kind]
        # private, as all of torch's functions of lists are; one launch on a GPU
        torch._foreach_copy_(new, old)  # pyright: ignore[reportPrivateImportUsage]
    return [_finished(out, stack) for out, stack in zip(outs, stacks, strict=True)]


def _finished(out: Tensor, stack: Stack) -> Tensor:
    dim, begin, zeros = stack.gap
    if stack.decay:
        out = out.exp_().neg_()
    if not zeros:
        return out
    before, after = out.tensor_split([begin], dim=dim + 1)
    sizes = list(before.shape)
    sizes[dim + 1] = zeros
    return torch.cat((before, out.new_zeros(sizes), after), dim=dim + 1)
