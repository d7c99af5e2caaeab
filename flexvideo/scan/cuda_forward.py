"""The selective scan forward by CUDA kernels: how they are laid out and called."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flexvideo.errors import BackendError
from flexvideo.scan import nvrtc

WARPS = 2  # of a block and direction
STEPS = 8  # of a tile
BLOCKS = 5  # of 4 warps that a multiprocessor holds at a time
BLOCK = 64  # steps between two states kept for the backward pass
SHORTEST = 64  # steps of a span
LEAST_GAIN = 5  # percent of counted time, for which chains are cut
# What layouts are counted by, all estimates. What a multiprocessor with so many blocks of 4 warps reaches of
# its full speed: as a queue before its pipes, of warps that wait 3 clocks of 5 where nobody is in their way.
SPEED = (1.0, 0.4, 0.69, 0.87, 0.95, 0.99)
EIGHT_LANES = 0.625  # of the time of a chain, which has half as many channels then
ENDS_TIME = 0.8  # of the pass before the pass, in that of the pass
PASSES = 20  # tiles of a multiprocessor that two more launches take, of 0.3 us each
CUTTING = 10  # as many that flags and a second beginning take
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
MOST_STATES = 64


@dataclass(frozen=True)
class Deal:
    """How the tiles of all chains are dealt out to blocks of threads.

    Args:
        grid: blocks of threads.
        share: tiles a block of threads, at least a chain.
        resident: blocks of threads, of both directions, that a multiprocessor holds at a time.
    """

    grid: int
    share: int
    resident: int


@dataclass(frozen=True)
class Launch:
    """How a forward pass is laid out on the device: a pure function of shape and device.

    Args:
        lanes: that share a pair of channels; with 8, chains have 16 channels instead of 32.
        held: states of a channel a lane.
        span: steps of a chain.
        spans: chains that time is split into.
        walk: who does what of the pass.
        ends: who does what of the pass before it, which finds the states that spans but the first begin with.
    """

    lanes: int
    held: int
    span: int
    spans: int
    walk: Deal
    ends: Deal


@functools.cache
def launch_for(b: int, l: int, d: int, n: int, multiprocessors: int) -> Launch:
    """The layout for a shape: that of the least counted time.

    Where a block of threads for every 32 channels would leave most of the device idle, twice the lanes share
    them, which takes more instructions, or time is split into spans, all of which but one then take each
    exponential twice.
    """
    layouts = []
    for lanes in (4, 8) if n % 16 == 0 else (4,):
        held, programs = -(-n // lanes), b * -(-d // channels(lanes))
        room = blocks_resident(held) * multiprocessors
        most = max(1, min(-(-room // max(1, programs)), l // SHORTEST))
        layouts += [split(programs, l, lanes, held, spans, multiprocessors) for spans in range(1, most + 1)]
    return min(layouts, key=lambda counted: counted[0])[1]


def channels(lanes: int) -> int:
    """Of a chain."""
    return 64 // lanes * WARPS


def split(
    programs: int, l: int, lanes: int, held: int, spans: int, multiprocessors: int
) -> tuple[float, Launch]:
    """Counted time, in tiles of a multiprocessor at full speed, and layout with about this many spans."""
    span = -(-l // (spans * 2 * STEPS)) * 2 * STEPS  # the directions meet between two tiles
    spans, device = -(-l // span), (blocks_resident(held), multiprocessors)
    time, walk = deal(programs * spans, span // STEPS, *device)
    before, ends = deal(programs * max(1, spans - 1), span // STEPS, *device)
    if spans > 1:
        time += ENDS_TIME * before + PASSES
    return time * (EIGHT_LANES if lanes == 8 else 1), Launch(lanes, held, span, spans, walk, ends)


def deal(chains: int, tiles: int, resident: int, multiprocessors: int) -> tuple[float, Deal]:
    """Counted time, in tiles of a multiprocessor at full speed, and the layout that takes it.

    A block of threads for each chain leaves some multiprocessors with one more than others. In equal shares
    each has as many as the least busy one had, and a chain is cut where a share ends.
    """
    waves, rest = divmod(chains, resident * multiprocessors)
    fullest = -(-rest // multiprocessors)
    whole = tiles * (waves * resident / SPEED[resident] + fullest / SPEED[fullest])
    if fewest := min(resident, chains // multiprocessors):
        share = -(-chains * tiles // (fewest * multiprocessors))
        time = share * fewest / SPEED[fewest] + CUTTING
        if 100 * whole >= (100 + LEAST_GAIN) * time:
            return time, Deal(-(-chains * tiles // share), share, fewest)
    return whole, Deal(chains, tiles, resident)


def kept(l: int, n: int) -> tuple[int, int]:
    """How many states are kept for the backward pass: along time, and of a channel, with padding."""
    return -(-l // BLOCK), -(-n // 4) * 4


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
    sizes = (l, d, b, blocks, launch.span, spans, *z.stride()[:2], *B.stride()[:3], *C.stride()[:3])
    variant = {
        "DTYPE": DTYPES[u.dtype],
        "DIRECTIONS": k,
        "STATES": n,
        "LANES": launch.lanes,
        "HELD": launch.held,
        "STEPS": STEPS,
        "WARPS": WARPS,
        "KEPT": BLOCK,
        "PAIRS": int(aligned(2, u, delta, z)),
        "QUADS": int(n % 4 == 0 and aligned(4, B, C)),
    }

    def walk(deal: Deal, **kind: int) -> None:
        chains = -(-d // channels(launch.lanes)) * (spans - kind["ENDS"]) * b
        kind |= {"BLOCKS": deal.resident * 2 // k, "CUT": int(deal.share * STEPS > launch.span)}
        flags = torch.zeros(chains * kind["CUT"], dtype=torch.int32, device=u.device)
        tensors = (u, delta, A, B, C, D, z, delta_bias, out, carry, decay, states, flags)
        threads, numbers = 32 * WARPS * k, (deal.share, *sizes)
        grid = (deal.grid, 1, 1)
        run("cuda_forward.cu", "scan_kernel", grid, threads, *tensors, *numbers, defines=variant | kind)

    if spans > 1:
        walk(launch.ends, SAVE=0, ENDS=1, CARRY=0)
        chain(carry, decay, A, last=False, run=run)
    walk(launch.walk, SAVE=int(keep), ENDS=0, CARRY=int(spans > 1))
    return out, states


def blocks_resident(held: int) -> int:
    """Blocks, of both directions, that a multiprocessor has registers for: fewer of more states a lane."""
    return min(BLOCKS, max(2, BLOCKS + 2 - -(-held // 2)))


def number_of(dtype: torch.dtype) -> int:
    """A dtype as the kernels know it.

    Raises:
        BackendError: one that they do not have.
    """
    if dtype not in DTYPES:
        raise BackendError(
            f"The scan backend 'cuda' works in float32, float16 and bfloat16, got {dtype}: use 'reference' "
            "or 'chunked'."
        )
    return DTYPES[dtype]


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
