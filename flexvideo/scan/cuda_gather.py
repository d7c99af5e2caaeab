"""Starts the kernel of `cuda_gather.cu`: the weights of a mixer as its kernels take them."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flexvideo.scan import nvrtc
from flexvideo.scan.cuda_forward import DTYPES, number_of
from flexvideo.scan.stacking import Stack

THREADS = 256  # of a block
EACH = 2  # times 4 numbers of a thread


def gather(stacks: Sequence[Stack], *, run: Callable[..., None] = nvrtc.run) -> list[Tensor]:
    """Make the tensors, of which those that are not float32 have one dtype, in one launch.

    Raises:
        BackendError: a dtype that the kernels do not have.
    """
    outs = [stack.weights[0].new_empty(stack.shape, dtype=stack.dtype) for stack in stacks]
    narrow = {stack.dtype for stack in stacks} - {torch.float32}
    words: list[Tensor | int] = []
    blocks = parts = 0
    for stack, out in zip(stacks, outs, strict=True):
        for index, weight in enumerate(stack.weights):
            weight = (weight if weight.dtype in DTYPES else weight.float()).contiguous()
            words += [weight, out.data_ptr() + index * out.stride(0) * out.element_size(), blocks]
            words += _part(stack, weight, count := out.stride(0))
            blocks += -(-count // (4 * THREADS * EACH))
            parts += 1
    dtype = narrow.pop() if narrow else torch.float32
    defines = {"DTYPE": number_of(dtype), "PARTS": parts, "EACH": EACH}
    run("cuda_gather.cu", "gather", (blocks, 1, 1), THREADS, *words, defines=defines)
    return outs


def _part(stack: Stack, weight: Tensor, count: int) -> tuple[int, ...]:
    """What the kernel must know of a weight, from `count` on."""
    dim, begin, zeros = stack.gap
    inner = math.prod(weight.shape[dim + 1 :])
    width = (weight.shape[dim] + zeros) * inner if zeros else count
    head, gap = (begin * inner, zeros * inner) if zeros else (count, 0)
    whole = all(size % 4 == 0 for size in (count, width, head, gap))
    whole = whole and weight.data_ptr() % (4 * weight.element_size()) == 0
    wide = stack.dtype == torch.float32
    return count, width, head, gap, DTYPES[weight.dtype], int(wide), int(stack.decay), int(whole)
