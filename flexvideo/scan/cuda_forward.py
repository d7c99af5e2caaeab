"""The selective scan forward by CUDA kernels: how they are laid out and called."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flexvideo.errors import BackendError
from flexvideo.scan import nvrtc

LANES = 4  # of a channel pair: see cuda_forward.cu
WARPS = 2  # of a block and direction, 16 channels each
STEPS = 8  # of a tile
BLOCKS = 5  # of 4 warps that a multiprocessor holds at a time
BLOCK = 64  # steps between two states kept for the backward pass
PROGRAMS = 40  # blocks a multiprocessor that spans are made for
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
MOST_STATES = 64


@dataclass(frozen=True)
class Launch:
    """How a scan is laid out on the device: a pure function of shape and device.

    Args:
        held: states of a channel a lane.
        span: steps a block where time is split.
        spans: blocks along time where time is split.
        whole: do not split time in the forward pass.
    """

    held: int
    span: int
    spans: int
    whole: bool

    @property
    def states(self) -> int:
        """States of a channel, with padding."""
        return LANES * self.held

    @property
    def rows(self) -> int:
        """Steps, with padding."""
        return self.span * self.spans

    @property
    def blocks(self) -> int:
        """States kept for the backward pass, a channel and direction."""
        return self.rows // BLOCK


def launch_for(b: int, l: int, d: int, n: int, multiprocessors: int) -> Launch:
    """The layout for a shape.

    The backward pass splits time into spans of at least two blocks: many short ones leave the smallest tail.
    The forward pass does so only where a block for every 32 channels would leave most of the device idle,
    since it then takes each exponential twice.
    """
    programs = b * -(-d // (16 * WARPS))
    blocks = -(-l // BLOCK)
    spans = min(-(-PROGRAMS * multiprocessors // programs), max(1, blocks // 2))
    span = -(-blocks // spans) * BLOCK
    spans = -(-l // span)
    return Launch(-(-n // LANES), span, spans, whole=spans == 1 or programs >= 2 * multiprocessors)


def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of the device; 1 where the tests emulate it."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def scan_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    *,
    launch: Launch,
) -> tuple[Tensor, Tensor]:
    """The gated scan, and the states before every BLOCK steps (k, b, blocks, states, d)."""
    (k, b, l, d), n = u.shape, A.shape[-1]
    check_sizes(u, z, n)
    u, delta, A, D, delta_bias = (x.contiguous() for x in (u, delta, A, D, delta_bias))
    B, C, z = (x if x.stride(-1) == 1 else x.contiguous() for x in (B, C, z))
    span, spans = (launch.rows, 1) if launch.whole else (launch.span, launch.spans)
    out = torch.empty(b, l, d, dtype=u.dtype, device=u.device)
    carry = torch.empty(k, b, spans, launch.states, d, device=u.device)
    decay = torch.empty(k, b, spans, d, device=u.device)
    states = torch.empty(k, b, launch.blocks, launch.states, d, device=u.device)
    sizes = (l, d, launch.rows, span, z.stride(0), z.stride(1), *B.stride()[:3], *C.stride()[:3])
    variant = {
        "DTYPE": DTYPES[u.dtype],
        "DIRECTIONS": k,
        "STATES": n,
        "HELD": launch.held,
        "STEPS": STEPS,
        "WARPS": WARPS,
        "BLOCKS": blocks_resident(k, launch.held),
        "KEPT": BLOCK,
        "PAIRS": int(aligned(2, u, delta, z)),
        "QUADS": int(n % 4 == 0 and aligned(4, B, C)),
    }

    def run(*, ends: bool) -> None:
        nvrtc.run(
            "cuda_forward.cu",
            "scan_kernel",
            (-(-d // (16 * WARPS)), spans, b),
            32 * WARPS * k,
            *(u, delta, A, B, C, D, z, delta_bias, out, carry, decay, states),
            *sizes,
            defines=variant | {"ENDS": int(ends), "CARRY": int(spans > 1 and not ends)},
        )

    if spans > 1:
        run(ends=True)
        chain(carry, decay, A, last=False)
    run(ends=False)
    return out, states


def blocks_resident(k: int, held: int) -> int:
    """Blocks of a multiprocessor that the registers are shared out for: the fewer, the more states a lane."""
    return min(BLOCKS, max(2, BLOCKS + 2 - -(-held // 2))) * 2 // k


def aligned(count: int, *tensors: Tensor) -> bool:
    """Whether `count` neighbours anywhere along the last dimension of all of these can be one load."""
    return all(
        x.data_ptr() % (count * x.element_size()) == 0
        and all(
            stride % count == 0
            for stride, size in zip(x.stride()[:-1], x.shape[:-1], strict=True)
            if size > 1
        )
        and x.shape[-1] % count == 0
        for x in tensors
    )


def check_sizes(u: Tensor, z: Tensor, n: int) -> None:
    """Refuse what the kernels have no room for.

    Raises:
        BackendError: too many states, or a sequence beyond 2 GiB.
    """
    if n > MOST_STATES:
        raise BackendError(
            f"The scan backend 'cuda' holds at most {MOST_STATES} states, got {n}: use 'triton'."
        )
    l, d = u.shape[2:]
    size = l * max(d, z.stride(1)) * u.element_size()
    if size >= 2**31:
        raise BackendError(
            f"The scan backend 'cuda' addresses at most 2 GiB of a sequence, and {l} tokens of {d} channels "
            f"take {size / 2**30:.1f} GiB: use 'triton'."
        )


def chain(carry: Tensor, decay: Tensor, A: Tensor, *, last: bool) -> None:
    """Turn, in place, the effects of the spans into the states at their beginnings (last: ends)."""
    k, b, spans, padded, d = carry.shape
    defines = {"STATES": A.shape[-1], "PADDED": padded}
    grid = (-(-d // 128) * padded, b, k)
    nvrtc.run(
        "cuda_chain.cu", "chain_kernel", grid, 128, carry, decay, A, spans, d, int(last), defines=defines
    )
