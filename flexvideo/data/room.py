"""Memory for batches, which on the CPU costs more than what is written into it; and the lack of it."""

import math
import mmap
from contextlib import suppress

import torch
from jaxtyping import Float
from torch import Tensor

from flexvideo.errors import GeometryError
from flexvideo.geometry import ClipSpec

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


def require_room(frames: int, height: int, width: int) -> None:
    """Refuse a clip that this machine cannot hold, before anything of it is read.

    Its memory is asked for and given back without a value in it, which takes no time.

    Args:
        frames: how many.
        height: in pixels; 1 where it is not known yet.
        width: likewise.

    Raises:
        GeometryError: the clip is too big.

    Example:
        >>> require_room(16, 224, 224)
    """
    try:
        torch.empty((frames, height, width, 3))
    except (RuntimeError, OverflowError) as error:
        size = "" if height == width == 1 else f" of {height} x {width} px"
        raise GeometryError(
            f"{frames:,} frames{size} do not fit into memory: ask for fewer or for smaller ones."
        ) from error


def lacks_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out; on the CPU torch says so in words only.

    Example:
        >>> lacks_memory(OSError("Cannot allocate memory")), lacks_memory(OSError("No such device"))
        (True, False)
    """
    told = "DefaultCPUAllocator" in str(error) or "allocate memory" in str(error)
    return told or isinstance(error, torch.OutOfMemoryError | MemoryError)


def too_much(clips: int, spec: ClipSpec, device: torch.device | str) -> str:
    """Say that so many clips do not fit into memory: the beginning of a sentence.

    Args:
        clips: how many.
        spec: their sizes.
        device: whose memory it is.
    """
    clip = f"{spec.frames} frames of {spec.height} x {spec.width} px, patch {spec.patch[0]} x {spec.patch[1]}"
    return f"{clips} clips of {clip}, do not fit into the memory of {device}"
