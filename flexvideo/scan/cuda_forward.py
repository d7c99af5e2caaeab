"""The selective scan forward by CUDA kernels: how they are laid out and called."""

from collections.abc import Callable
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
SHORTEST = 64  # steps of a span
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
MOST_STATES = 64


@dataclass(frozen=True)
class Launch:
    """How a forward pass is laid out on the device: a pure function of shape and device.

    Args:
        held: states of a channel a lane.
        span: steps that a block of threads takes.
        spans: blocks of threads along time.
    """

    held: int
    span: int
    spans: int


def launch_for(b: int, l: int, d: int, n: int, multiprocessors: int) -> Launch:
    """The layout for a shape.

    Time is split into spans where a block of threads for every 32 channels would leave most of the device
    idle, since each exponential is then taken twice; and into as many as run at a time.
    """
    held, programs = -(-n // LANES), b * -(-d // (16 * WARPS))
    room = blocks_resident(2, held) * multiprocessors
    spans = 1 if 5 * programs >= 2 * room else min(room // programs, -(-l // SHORTEST))
    span = -(-l // (spans * 2 * STEPS)) * 2 * STEPS  # the directions meet between two tiles
    return Launch(held, span, -(-l // span))


def kept(l: int, n: int) -> tuple[int, int]:
    """How many states are kept for the backward pass: along time, and of a channel, with padding."""
    return -(-l // BLOCK), -(-n // LANES) * LANES


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
    keep: bool = True,
    run: Callable[..., None] = nvrtc.run,
) -> tuple[Tensor, Tensor]:
    """The gated scan, and with `keep` the states before every BLOCK steps (k, b, blocks, states, d)."""
    (k, b, l, d), n = u.shape, A.shape[-1]
    check_sizes(u, z, n)
    u, delta, A, D, delta_bias = (x.contiguous() for x in (u, delta, A, D, delta_bias))
    B, C, z = (x if x.stride(-1) == 1 else x.contiguous() for x in (B, C, z))
    spans, (blocks, padded) = launch.spans, kept(l, n)
    out = torch.empty(b, l, d, dtype=u.dtype, device=u.device)
    carry = torch.empty(k, b, spans, padded, d, device=u.device)
    decay = torch.empty(k, b, spans, d, device=u.device)
    states = torch.empty(k, b, blocks if keep else 0, padded, d, device=u.device)
    sizes = (l, d, blocks, launch.span, z.stride(0), z.stride(1), *B.stride()[:3], *C.stride()[:3])
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

    def walk(*, ends: bool) -> None:
        run(
            "cuda_forward.cu",
            "scan_kernel",
            (-(-d // (16 * WARPS)), spans, b),
            32 * WARPS * k,
            *(u, delta, A, B, C, D, z, delta_bias, out, carry, decay, states),
            *sizes,
            defines=variant
            | {"SAVE": int(keep and not ends), "ENDS": int(ends), "CARRY": int(spans > 1 and not ends)},
        )

    if spans > 1:
        walk(ends=True)
        chain(carry, decay, A, last=False, run=run)
    walk(ends=False)
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


def chain(
    carry: Tensor, decay: Tensor, A: Tensor, *, last: bool, run: Callable[..., None] = nvrtc.run
) -> None:
    """Turn, in place, the effects of the spans into the states at their beginnings (last: ends)."""
    k, b, spans, padded, d = carry.shape
    defines = {"STATES": A.shape[-1], "PADDED": padded}
    grid = (-(-d // 128) * padded, b, k)
    run("cuda_chain.cu", "chain_kernel", grid, 128, carry, decay, A, spans, d, int(last), defines=defines)
