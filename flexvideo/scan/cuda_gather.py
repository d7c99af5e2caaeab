"""Starts the kernel of `cuda_gather.cu`: the weights of a mixer as its kernels take them."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flexvideo.errors import BackendError
from flexvideo.scan import nvrtc
from flexvideo.scan.cuda_forward import DTYPES, number_of
from flexvideo.scan.stacking import Stack, firsts

THREADS = 256  # of a block
EACH = 2  # times 4 numbers of a thread
FIELDS = 11  # of what the kernel must know of a weight
FROM, TO, WHOLE = 0, 1, 10  # those that change from call to call


class Plan(NamedTuple):
    """What shapes and dtypes say of a gathering: a model asks for the same again and again.

    Args:
        outs: shape and dtype of each result.
        places: of each weight, the number of its result and how many bytes it begins after that.
        grains: of each weight, at how many bytes it must begin to be read in groups of 4; None for never.
        words: the fields of all weights, FROM, TO and WHOLE being 0.
        blocks: of threads.
        defines: macros.
    """

    outs: list[tuple[tuple[int, ...], torch.dtype]]
    places: list[tuple[int, int]]
    grains: list[int | None]
    words: list[int]
    blocks: int
    defines: dict[str, int]


def gather(
    weights: Sequence[Tensor], stacks: tuple[Stack, ...], *, run: Callable[..., None] = nvrtc.run
) -> list[Tensor]:
    """Make the tensors, of which those that are not float32 have one dtype, in one launch.

    Raises:
        BackendError: a dtype that the kernels do not have, or weights on several devices.
    """
    if len(devices := {weight.device for weight in weights}) > 1:  # a kernel would fault on it
        raise BackendError(
            f"The weights of one mixer lie on {' and '.join(sorted(map(str, devices)))}: move the whole "
            "model to one device."
        )
    weights = [(weight if weight.dtype in DTYPES else weight.float()).contiguous() for weight in weights]
    plan = plan_for(stacks, tuple([x.shape for x in weights]), tuple([x.dtype for x in weights]))
    outs = [weights[0].new_empty(shape, dtype=dtype) for shape, dtype in plan.outs]
    starts, words = [out.data_ptr() for out in outs], list[Tensor | int](plan.words)
    words[FROM::FIELDS] = weights
    words[TO::FIELDS] = [starts[out] + begin for out, begin in plan.places]
    words[WHOLE::FIELDS] = [
        grain is not None and weight.data_ptr() % grain == 0
        for weight, grain in zip(weights, plan.grains, strict=True)
    ]
    run("cuda_gather.cu", "gather", (plan.blocks, 1, 1), THREADS, *words, defines=plan.defines)
    return outs


@functools.lru_cache(256)
def plan_for(
    stacks: tuple[Stack, ...], shapes: tuple[torch.Size, ...], dtypes: tuple[torch.dtype, ...]
) -> Plan:
    """The plan for contiguous weights of these shapes and dtypes."""
    outs = [
        (stack.shape(shapes[first]), stack.dtype) for stack, first in zip(stacks, firsts(stacks), strict=True)
    ]
    narrow = {stack.dtype for stack in stacks} - {torch.float32}
    defines = {
        "DTYPE": number_of(narrow.pop() if narrow else torch.float32),
        "PARTS": len(dtypes),
        "EACH": EACH,
    }
    places, grains, words = list[tuple[int, int]](), list[int | None](), list[int]()
    blocks, kinds = 0, iter(dtypes)
    for number, (stack, (shape, dtype)) in enumerate(zip(stacks, outs, strict=True)):
        sizes = _sizes(stack, shape[1:])
        whole = all(size % 4 == 0 for size in sizes)
        for index, kind in zip(range(stack.number), kinds, strict=False):
            places.append((number, index * sizes[0] * dtype.itemsize))
            grains.append(4 * kind.itemsize if whole else None)
            words += 0, 0, blocks, *sizes, DTYPES[kind], int(dtype == torch.float32), int(stack.decay), 0
            blocks += -(-sizes[0] // (4 * THREADS * EACH))
    return Plan(outs, places, grains, words, blocks, defines)


def _sizes(stack: Stack, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Numbers written of a weight, of a row of them, before its gap, and in its gap."""
    (dim, begin, zeros), count = stack.gap, math.prod(shape)
    inner = math.prod(shape[dim + 1 :])
    return (count, shape[dim] * inner, begin * inner, zeros * inner) if zeros else (count, count, count, 0)
