"""Memory for batches on the CPU, which without care costs more than what is written into it."""

import math
import mmap
from contextlib import suppress

import torch
from jaxtyping import Float
from torch import Tensor

_HUGE = 1 << 21  # bytes of a huge page of x86 and of most ARM machines


def room(shape: tuple[int, ...], device: torch.device) -> Float[Tensor, "..."]:
    """A float32 tensor without values, of huge pages where the machine has such.

    A block as large as a batch is new memory every time, which the kernel hands out and clears page by page:
    by pages of 4 KiB that took two thirds of the time of making a batch.

    Args:
        shape: of the tensor.
        device: where it is wanted; only the CPU's memory is asked for in another way than PyTorch does.

    Example:
        >>> room((2, 3), torch.device("cpu")).shape
        torch.Size([2, 3])
    """
    size = 4 * math.prod(shape)
    if device.type != "cpu" or size < _HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, device=device)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages: its usual ones do
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32).view(shape)
