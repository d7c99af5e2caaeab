"""The selective scan forward by CUDA kernels: how they are laid out and called."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flexvideo.errors import BackendError
from flexvideo.scan import nvrtc

LEAST_WARPS, MOST_WARPS = 2, 4  # of a block and direction
STEPS = 16  # of a tile
BLOCKS = 5  # of 4 warps that a multiprocessor holds at a time
BLOCK = 64  # steps between two states kept for the backward pass
SHORTEST = 64  # steps of a span
LEAST_GAIN = 5  # percent of counted time, for which chains are cut
# What layouts are counted by: nanoseconds that a multiprocessor takes for a step of all its blocks, by the
# warps of a block and direction and by how many blocks it holds. `benchmarks/kernels.py --forward` finds them
# at 3137 steps and widths of 132 groups of channels, with chains whole and time not split.
STEP_TIMES = {2: (151, 179, 216, 262, 305), 4: (155, 222)}
# Steps that the pass before the pass takes of a span: it looks back until nothing is left, 9 tiles where
# A is -1 to -16 and dt about log 2, as a VideoMamba begins. Weights that remember longer take up to the span.
# The more channels a block has, the longer all of them wait for the one that looks back furthest.
ENDS_STEPS = {2: 144, 4: 184}
PASSES = 6200  # nanoseconds that two more launches take
CUTTING = 3100  # nanoseconds that flags and a second beginning take
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
MOST_STATES = 64
TAKEN = 1024  # bytes of shared memory that CUDA takes for a block
MOST_ROOM = 48 << 10  # bytes of it that a block may have where no more is asked for


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
        held: states of a channel a lane.
        warps: of a block of threads and direction, of 16 channels each.
        span: steps of a chain.
        spans: chains that time is split into.
        walk: who does what of the pass. In the pass before it, which finds the states that spans but the
            first begin with, each of them has a block of threads.
    """

    held: int
    warps: int
    span: int
    spans: int
    walk: Deal


@dataclass(frozen=True)
class Device:
    """What there is for blocks of so many warps.

    Args:
        warps: of a block of threads and direction.
        resident: blocks of threads, of both directions, that a multiprocessor holds at a time.
        multiprocessors: of the device.
    """

    warps: int
    resident: int
    multiprocessors: int

    def whole(self, chains: int, steps: int) -> int:
        """Nanoseconds for so many steps of each chain, with a block of threads for each."""
        waves, rest = divmod(chains, self.resident * self.multiprocessors)
        last = self.step(-(-rest // self.multiprocessors)) if rest else 0
        return steps * (waves * self.step(self.resident) + last)

    def step(self, blocks: int) -> int:
        """Nanoseconds for a step of so many blocks of a multiprocessor."""
        return STEP_TIMES[self.warps][blocks - 1]


@functools.cache
def launch_for(b: int, l: int, d: int, n: int, *, multiprocessors: int, shared: int) -> Launch:
    """The layout for a shape, on multiprocessors of so much shared memory: that of the least counted time.

    Where a block of threads for every 32 or 64 channels would leave most of the device idle, time is split
    into spans: cheap where weights forget soon, and half as much again where they never do.
    """
    held, layouts = -(-n // 4), []
    for warps in STEP_TIMES:
        room = room_of_block(held, warps)
        if not LEAST_WARPS <= warps <= MOST_WARPS or room > MOST_ROOM:
            continue
        resident = min(blocks_resident(held, warps), shared // (room + TAKEN))
        device, chains = Device(warps, resident, multiprocessors), b * groups(d, warps)
        most = max(1, min(-(-resident * multiprocessors // max(1, chains)), l // SHORTEST))
        layouts += [split(chains, l, held, spans, device) for spans in range(1, most + 1)]
    return min(layouts, key=lambda counted: counted[0])[1]


def groups(d: int, warps: int) -> int:
    """Chains that so many channels take."""
    return -(-d // (16 * warps))


def split(chains: int, l: int, held: int, spans: int, device: Device) -> tuple[int, Launch]:
    """Counted time in nanoseconds, and layout with about this many spans."""
    span = -(-l // (spans * STEPS)) * STEPS
    spans = -(-l // span)
    time, walk = deal(chains * spans, span, device)
    if spans > 1:
        time += device.whole(chains * (spans - 1), min(span, ENDS_STEPS[device.warps])) + PASSES
    return time, Launch(held, device.warps, span, spans, walk)


def deal(chains: int, span: int, device: Device) -> tuple[int, Deal]:
    """Counted time in nanoseconds, and the layout that takes it.

    A block of threads for each chain leaves some multiprocessors with one more than others. In equal shares
    each has as many as the least busy one had, and a chain is cut where a share ends.
    """
    uncut, tiles = device.whole(chains, span), span // STEPS
    if fewest := min(device.resident, chains // device.multiprocessors):
        share = -(-chains * tiles // (fewest * device.multiprocessors))
        time = share * STEPS * device.step(fewest) + CUTTING
        if 100 * uncut >= (100 + LEAST_GAIN) * time:
            return time, Deal(-(-chains * tiles // share), share, fewest)
    return uncut, Deal(chains, tiles, device.resident)


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
    """The gated scan, and with `keep` the states before every BLOCK steps (k, b, blocks, states, d).

    A NaN or an infinity in u, delta or B makes outputs such from its step to the end of its span; those of
    the spans after it too, unless it is so long before the end of its span that nothing is left there of any
    number.
    """
    (k, b, l, d), n = u.shape, A.shape[-1]
    check_sizes(u, z, n)
    u, delta, A, D, delta_bias = (x.contiguous() for x in (u, delta, A, D, delta_bias))
    B, C, z = (x if x.stride(-1) == 1 else x.contiguous() for x in (B, C, z))
    spans, deal, (rows, padded) = launch.spans, launch.walk, kept(l, n)
    cut = deal.share * STEPS > launch.span
    out = torch.empty(b, l, d, dtype=u.dtype, device=u.device)
    carry = torch.empty(k, b, spans if cut or spans > 1 else 0, padded, d, device=u.device)
    states = torch.empty(k, b, rows if keep else 0, padded, d, device=u.device)
    variant = {
        "DTYPE": DTYPES[u.dtype],
        "DIRECTIONS": k,
        "STATES": n,
        "HELD": launch.held,
        "STEPS": STEPS,
        "WARPS": launch.warps,
        "BLOCKS": deal.resident * 2 // k,
        "PAIRS": int(aligned(2, u, delta, z)),
        "QUADS": int(n % 4 == 0 and aligned(4, B, C)),
    }
    threads, parts = 32 * launch.warps * k, groups(d, launch.warps)

    def start(source: str, kernel: str, blocks: int, *arguments: Tensor | int, **kind: int) -> None:
        run(source, kernel, (blocks, 1, 1), threads, *arguments, defines=variant | kind)

    if spans > 1:
        decay = torch.empty(k, b, spans, d, device=u.device)
        tensors, blocks = (u, delta, A, B, delta_bias, carry, decay), parts * (spans - 1) * b
        start("cuda_ends.cu", "ends_kernel", blocks, *tensors, l, d, b, launch.span, spans, *B.stride()[:3])
        chain(carry, decay, A, last=False, run=run)
    flags = torch.zeros(parts * spans * b if cut else 0, dtype=torch.int32, device=u.device)
    tensors = (u, delta, A, B, C, D, z, delta_bias, out, carry, states, flags)
    sizes = (l, d, b, rows, launch.span, spans, *z.stride()[:2], *B.stride()[:3], *C.stride()[:3])
    kind = {"SAVE": int(keep), "CARRY": int(spans > 1), "KEPT": BLOCK}
    start("cuda_forward.cu", "scan_kernel", deal.grid, *tensors, deal.share, *sizes, **kind)
    return out, states


def room_of_block(held: int, warps: int) -> int:
    """Shared memory of a block in both directions: two tiles of B and C, and of dt and dt u of each pair."""
    return 2 * 16 * STEPS * 2 * (2 * held + 8 * warps)


def blocks_resident(held: int, warps: int) -> int:
    """Blocks, of both directions, that a multiprocessor has registers for: fewer of more states a lane."""
    return max(1, min(BLOCKS, max(2, BLOCKS + 2 - -(-held // 2))) * 2 // warps)


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
    for x in tensors:
        if x.shape[-1] % count or x.data_ptr() % (count * x.element_size()):
            return False
        if x.is_contiguous():
            continue  # rows of that length, one after another
        if any(stride % count for stride, n in zip(x.stride()[:-1], x.shape[:-1], strict=True) if n > 1):
            return False
    return True


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
