"""Starts the kernels of `cuda_backward.cu` and `cuda_back_ends.cu`: the gradients of the selective scan."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flexvideo.scan import nvrtc
from flexvideo.scan.cuda_forward import BLOCK, DTYPES, aligned, chain

SOURCE, ENDS_SOURCE = "cuda_backward.cu", "cuda_back_ends.cu"
TILES = 16  # of a block
WARP_CHANNELS = 16
MOST_WARPS = 12  # of a multiprocessor, at 168 registers a thread
# What splitting time costs, in the 41 us that an H100 takes for 64 steps of the walk back. The pass before
# the pass takes 4.7 thousand instructions a warp where the walk takes 15.2. It looks on until nothing is
# left: for 3 blocks of 64 steps where A is -1 to -16 and dt about log 2, as a VideoMamba begins.
ENDS_COST = 0.31
ENDS_BLOCKS = 3
PASSES = 0.25  # two more launches and a second beginning, 10 us


@dataclass(frozen=True)
class BackwardLaunch:
    """How a backward pass is laid out on the device: a pure function of shape and device.

    Args:
        warps: warps a direction, of a block of threads.
        span: steps of a chain, the walk of a block of threads.
        spans: chains that time is split into.
        grid: blocks of threads.
        share: blocks of 64 steps that a block of threads does, at least a chain.
        resident: blocks of threads a multiprocessor.
        far: states of tiles are put aside in global memory.
    """

    warps: int
    span: int
    spans: int
    grid: int
    share: int
    resident: int
    far: bool


def held(n: int) -> int:
    """States a lane, of n a channel."""
    return 4 if n <= 16 else 8 if n <= 32 else 16


def shared_bytes(k: int, n: int, warps: int, *, aside: bool) -> int:
    """Of a block of threads: B and C of 64 steps; for each warp the inputs of a tile, and states of tiles."""
    padded = 4 * held(n)
    return 4 * (k * BLOCK * 2 * padded + k * warps * (3 * 128 + aside * TILES * WARP_CHANNELS * padded))


@functools.cache
def backward_launch_for(
    k: int, b: int, blocks: int, d: int, n: int, *, multiprocessors: int, shared: int
) -> BackwardLaunch:
    """The layout for a shape, where a block of threads may have `shared` bytes.

    Chains are dealt out in equal shares where there is one for every block of threads that fits the device.
    Where there are fewer, time is split into spans, if that is counted as a gain where weights forget soon.
    """
    groups = -(-d // WARP_CHANNELS)
    fitting = [w for w in range(1, MOST_WARPS // k + 1) if shared_bytes(k, n, w, aside=True) <= shared]
    most = max(fitting, default=1)
    warps = -(-groups // -(-groups // most))
    used = shared_bytes(k, n, warps, aside=bool(fitting))
    resident = max(1, min(MOST_WARPS // (k * warps), shared // (used + 1024)))
    slots, chains = resident * multiprocessors, b * -(-groups // warps)
    span = span_for(blocks, chains, slots)
    spans = -(-blocks // span)
    share = max(span, -(-chains * spans * span // slots))
    return BackwardLaunch(
        warps, span * BLOCK, spans, -(-chains * spans * span // share), share, resident, not fitting
    )


def span_for(blocks: int, chains: int, slots: int) -> int:
    """Blocks of 64 steps that a chain walks, where so many slots are to be kept busy.

    The pass before the pass, whose blocks of threads all fit the device, lasts as long as weights remember.
    Those that never forget take it to the ends of spans: then two spans may be up to 16 % slower than one.
    """
    span = -(-blocks // -(-slots // max(1, chains)))
    share = max(span, -(-chains * -(-blocks // span) * span // slots))
    cost = ENDS_COST * min(span, ENDS_BLOCKS) + PASSES
    return span if share + cost < blocks else blocks


def macros(
    dtype: torch.dtype, k: int, n: int, kept_states: int, launch: BackwardLaunch, *, even: bool, remake: bool
) -> dict[str, int]:
    """Those of the pass that follows the spans, if there are several."""
    return {
        "DTYPE": DTYPES[dtype],
        "DIRECTIONS": k,
        "STATES": n,
        "KEPT_STATES": kept_states,
        "HELD": held(n),
        "WARPS": launch.warps,
        "RESIDENT": launch.resident,
        "FAR": int(launch.far),
        "PAIRS": int(even),
        "REMAKE": int(remake),
        "CARRY": int(launch.spans > 1),
    }


def scan_backward(
    grad: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    states: Tensor,
    *,
    launch: BackwardLaunch,
    remake: bool = False,
    run: Callable[..., None] = nvrtc.run,
) -> tuple[Tensor, ...]:
    """The gradients of the eight inputs, in their order, and with `remake` the output of the forward pass."""
    (k, b, l, d), n = u.shape, A.shape[-1]
    rows, parts = states.shape[2] * BLOCK, -(-d // (WARP_CHANNELS * launch.warps))
    padded, spans = 4 * held(n), launch.spans
    grad, u, delta, A, D, delta_bias = (x.contiguous() for x in (grad, u, delta, A, D, delta_bias))
    B, C, z = (x if x.stride(-1) == 1 else x.contiguous() for x in (B, C, z))
    wide = {"device": u.device, "dtype": torch.float32}
    du, ddelta, dz = torch.empty_like(u), torch.empty_like(delta), torch.empty_like(grad)
    out = torch.empty_like(grad if remake else grad[:0])
    carry, decay = torch.empty(k, b, spans, states.shape[3], d, **wide), torch.empty(k, b, spans, d, **wide)
    da, dskip = torch.empty(b * spans, k, d, n, **wide), torch.empty(b * spans, k, d, **wide)
    dbias, dbc = torch.empty_like(dskip), torch.empty(parts, k, b, rows, 2, padded, **wide)
    warps = launch.grid * k * launch.warps if launch.far else 0
    far = torch.empty(warps, TILES, WARP_CHANNELS, padded, **wide)
    flags = torch.zeros(b * parts * spans, device=u.device, dtype=torch.int32)
    tensors = (grad, u, delta, A, B, C, D, z, delta_bias, states, carry, decay, du, ddelta, dz, out)
    tensors += (da, dbc, dskip, dbias, far)
    strides = (*B.stride()[:3], *C.stride()[:3], *z.stride()[:2])
    shape = (l, d, b, rows, launch.span, spans)
    even = aligned(2, grad, u, delta, z)
    variant = macros(u.dtype, k, n, states.shape[3], launch, even=even, remake=remake)

    def walk(source: str, grid: int, share: int, defines: dict[str, int]) -> None:
        aside = source == SOURCE and not launch.far
        shared = shared_bytes(k, n, launch.warps, aside=aside)
        sizes, numbers = ((grid, 1, 1), k * launch.warps * 32), (*shape, share, *strides)
        run(source, "scan_backward", *sizes, *tensors, flags, *numbers, defines=defines, shared=shared)

    if spans > 1:
        walk(ENDS_SOURCE, parts * (spans - 1) * b, launch.span // BLOCK, variant | {"CARRY": 0})
        chain(carry, decay, A, last=True, run=run)
    walk(SOURCE, launch.grid, launch.share, variant)
    dB, dC = B.new_empty(k, b, l, n), C.new_empty(k, b, l, n)
    grid = (-(-l * 2 * padded // 256), b, k)
    run(SOURCE, "add_sums", grid, 256, dbc, dB, dC, l, rows, parts, defines=variant)
    gradients = du, ddelta, da.sum(0), dB, dC, dskip.sum(0), dz, dbias.sum(0)
    return (*gradients, out) if remake else gradients
