"""Weights of both directions as kernels take them: stacked, cast and padded, in as few launches as may be."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor


class Stack(NamedTuple):
    """What the next weights of a list, all of one shape, become: one tensor, stacked along a first dimension.

    Args:
        number: how many weights.
        dtype: of the result.
        gap: dimension of a weight, where along it zeros are put in, and how many.
        decay: take -exp of them.
    """

    number: int
    dtype: torch.dtype
    gap: tuple[int, int, int] = (0, 0, 0)
    decay: bool = False

    def shape(self, weight: Sequence[int]) -> tuple[int, ...]:
        """Shape of the result, for weights of this one."""
        sizes, (dim, _, zeros) = list(weight), self.gap
        sizes[dim] += zeros
        return self.number, *sizes


def firsts(stacks: Sequence[Stack]) -> list[int]:
    """Where in the list the weights of each result begin."""
    return [0, *accumulate(stack.number for stack in stacks[:-1])]


def stacked(weights: Sequence[Tensor], stacks: Sequence[Stack]) -> list[Tensor]:
    """Make the tensors, all of them by one copy for each pair of dtypes, old and new."""
    outs = [
        weights[first].new_empty((stack.number, *weights[first].shape), dtype=stack.dtype)
        for first, stack in zip(firsts(stacks), stacks, strict=True)
    ]
    copies = [part for out in outs for part in out.unbind()]
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
