"""The selective scan forward, both directions in one launch.

Why this shape. An update h = exp(dt A) h + dt B u, y += C h takes 5 arithmetic instructions, one of them an
exponential, of which an H100 does 16 a clock and SM: 0.45 ms for 16 x 3137 tokens of VideoMamba-M, both
directions. All else must fit beside that. So states live in registers, the 16 states of a channel on two
lanes (more warps than one lane a channel, and fewer shuffles than four), B and C come as 64-bit words, and
inputs, softplus and gate are spread over the lanes. Both directions of a channel block are in one program:
direction 0 walks up, direction 1 down; whichever comes second to a time adds what the first one left in the
output, and gates. The reverse direction is negative strides.

A short batch has too few channels to fill the device. Then time is split into spans: one pass finds what
each span does to a zero state, a chain over the spans gives the state at which each begins, and the second
pass is the kernel above. That costs each exponential twice.

Counted on an H100, 16 x 3137 tokens: 10.1 instructions an update, so 0.55 ms at one a clock; it takes 1.23.
Two warps a scheduler (168 registers a thread, mostly B and C of the next tile) issue 54 % of the time, and
some schedulers have three. Tried and slower: a lane a channel; one channel a lane (more warps, but 12.5
instructions); tiles of 8 (the assembler moves the loads of B and C down to their uses unless they cross the
loop's end).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from flexvideo.scan.triton_tile import (
    LOG2E,
    finish_tile,
    floats,
    from_lane,
    load_rows,
    load_tile,
    over_lanes,
    softplus,
    zero_tile,
)

STEPS = 4  # of a tile
CHANNELS = 32  # of a program
REGISTERS = 168  # a thread: 6 programs of 2 warps a multiprocessor
BLOCK = 64  # steps between two states kept for the backward pass


@triton.jit(do_not_specialize=["L", "rows"])
def pack_kernel(
    b_ptr,
    c_ptr,
    out_ptr,
    L,
    rows,
    N,
    b_k,
    b_b,
    b_l,
    b_n,
    c_k,
    c_b,
    c_l,
    c_n,
    NP: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Rows (B, C) of 2 NP float32 in the order in which their direction reads them; zeros where t >= L."""
    b, k = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    s = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    t = tl.where(k == 0, s, rows - 1 - s).to(tl.int64)
    n = tl.arange(0, NP)[None, :]
    inside = (s < rows) & (t < L) & (n < N)
    vb = tl.load(b_ptr + k * b_k + b * b_b + t * b_l + n * b_n, mask=inside, other=0.0)
    vc = tl.load(c_ptr + k * c_k + b * c_b + t * c_l + n * c_n, mask=inside, other=0.0)
    out = out_ptr + ((k * tl.num_programs(1) + b) * rows + s) * (2 * NP) + n
    tl.store(out, vb.to(tl.float32), mask=s < rows)
    tl.store(out + NP, vc.to(tl.float32), mask=s < rows)


@triton.jit(do_not_specialize=["L", "rows", "span", "blocks"])
def scan_kernel(
    u_ptr,
    delta_ptr,
    a_ptr,
    bc_ptr,
    skip_ptr,
    z_ptr,
    bias_ptr,
    out_ptr,
    carry_ptr,
    decay_ptr,
    state_ptr,
    L,
    D,
    rows,
    span,
    blocks,
    z_b,
    z_l,
    K: tl.constexpr,
    N: tl.constexpr,
    NL: tl.constexpr,
    NR: tl.constexpr,
    BD: tl.constexpr,
    TT: tl.constexpr,
    BLOCK: tl.constexpr,
    ENDS: tl.constexpr,
    CARRY: tl.constexpr,
    SAVE: tl.constexpr,
):
    """One span of the scan: with ENDS its effect on a zero state, else the outputs.

    carry (k, b, spans, NP, d): with ENDS the final states are written, with CARRY the initial ones are read.
    decay (k, b, spans, d): with ENDS, the sum of dt. state (k, b, blocks, NP, d): states before every BLOCK.
    """
    NP: tl.constexpr = NL * NR
    c, spans = tl.program_id(1), tl.num_programs(1)
    b, samples = tl.program_id(2).to(tl.int64), tl.num_programs(2)
    d = tl.program_id(0) * BD + tl.arange(0, BD)[:, None, None]
    lane = tl.arange(0, NL)[None, :, None]
    k = tl.arange(0, K)[None, None, :]
    sign = 1 - 2 * k
    on = d < D
    end = tl.where(on, L, 0)
    index = tl.where(k == 0, c, spans - 1 - c)  # of the span in the direction's own order
    s = index * span
    t = tl.where(k == 0, s, rows - 1 - s) + sign * lane
    kb = k.to(tl.int64) * samples + b
    u_at = u_ptr + (kb * L + t) * D + d
    delta_at = delta_ptr + (kb * L + t) * D + d
    out_at = out_ptr + (b * L + t) * D + d
    z_at = z_ptr + b * z_b + t.to(tl.int64) * z_l + d
    bc_at = bc_ptr + (kb * rows + s) * NP + lane * (NR // 2)
    carry_at = carry_ptr + ((kb * spans + index) * NP + lane * NR) * D + d
    skip = tl.load(skip_ptr + k * D + d, mask=on, other=0.0)
    bias = tl.load(bias_ptr + k * D + d, mask=on, other=0.0)
    h, a = (), ()
    for i in tl.static_range(NR):
        held = on & (lane * NR + i < N)
        a = a + (tl.load(a_ptr + (k * D + d) * N + lane * NR + i, mask=held, other=0.0) * LOG2E,)
        if CARRY:
            h = h + (tl.load(carry_at + i * D, mask=on, other=0.0),)
        else:
            h = h + (tl.zeros([BD, NL, K], tl.float32),)
    total = tl.zeros([BD, NL, K], tl.float32)
    u_next = load_tile(u_at, t, sign, D, end, TT, NL)
    delta_next = load_tile(delta_at, t, sign, D, end, TT, NL)
    words_next = load_rows(bc_at, TT, NP, NR)
    tiles = span // TT
    meet = tiles // 2 if K == 2 else 0  # from here on the other walk has been before
    for tile in range(0, tiles):
        if SAVE:
            if (tile * TT) % BLOCK == 0:
                state_at = state_ptr + ((kb * blocks + (s + tile * TT) // BLOCK) * NP + lane * NR) * D + d
                for i in tl.static_range(NR):
                    tl.store(state_at + i * D, h[i], mask=on)
        if not ENDS:  # asked for early, used at the end of the tile
            if K == 2 and tile == meet:
                tl.debug_barrier()
            late = tl.where(tile >= meet, end, 0)
            gate = load_tile(z_at, t, sign, z_l, late, TT, NL)
            if K == 2:
                partner = load_tile(out_at, t, sign, D, late, TT, NL)
            else:
                partner = zero_tile([BD, NL, K], out_ptr.dtype.element_ty, TT // NL)
        u_now, delta_now, words_now = u_next, delta_next, words_next
        bc_at += TT * NP
        words_next = load_rows(bc_at, TT, NP, NR)
        u_at += sign * TT * D
        delta_at += sign * TT * D
        u_next = load_tile(u_at, t + sign * TT, sign, D, end, TT, NL)
        delta_next = load_tile(delta_at, t + sign * TT, sign, D, end, TT, NL)
        ys = ()
        for q in tl.static_range(TT // NL):
            inside = ((t + sign * (q * NL)) >= 0) & ((t + sign * (q * NL)) < end)
            u = u_now[q].to(tl.float32)
            dt = tl.where(inside, softplus(delta_now[q].to(tl.float32) + bias), 0.0)
            dtu = dt * u
            total += dt
            y = skip * u
            for j in tl.static_range(NL):
                bs = floats(words_now, (q * NL + j) * NR, NR)
                cs = floats(words_now, (q * NL + j) * NR + NR // 2, NR)
                dt_j = from_lane(dt, lane, j, NL)
                dtu_j = from_lane(dtu, lane, j, NL)
                new = ()
                part = tl.zeros([BD, NL, K], tl.float32)
                for i in tl.static_range(NR):
                    x = tl.exp2(dt_j * a[i]) * h[i] + dtu_j * bs[i]
                    part += x * cs[i]
                    new = new + (x,)
                h = new
                y = tl.where(lane == j, y + over_lanes(part, NL), y)
            ys = ys + (y,)
        if not ENDS:
            finish_tile(out_at, ys, partner, gate, tile >= meet, t, sign, D, end, TT, NL)
        out_at += sign * TT * D
        z_at += (sign * TT).to(tl.int64) * z_l
        t += sign * TT
    if ENDS:
        for i in tl.static_range(NR):
            tl.store(carry_at + i * D, h[i], mask=on)
        total = over_lanes(total, NL)
        tl.store(decay_ptr + (kb * spans + index) * D + d + lane * 0, total, mask=on & (lane == 0))


@triton.jit(do_not_specialize=["spans"])
def chain_kernel(
    carry_ptr,
    decay_ptr,
    a_ptr,
    spans,
    D,
    N: tl.constexpr,
    NP: tl.constexpr,
    BD: tl.constexpr,
    LAST: tl.constexpr,
):
    """Replace what each span leaves of a zero state by the state it truly begins (LAST: ends) with."""
    d = tl.program_id(0) % tl.cdiv(D, BD) * BD + tl.arange(0, BD)
    n, k = tl.program_id(0) // tl.cdiv(D, BD), tl.program_id(2)
    kb = k.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    on = d < D
    a = tl.load(a_ptr + (k * D + d) * N + n, mask=on & (n < N), other=0.0) * LOG2E
    h = tl.zeros([BD], tl.float32)
    for i in range(0, spans):
        c = spans - 1 - i if LAST else i
        at = carry_ptr + ((kb * spans + c) * NP + n) * D + d
        left = tl.load(at, mask=on, other=0.0)
        decay = tl.exp2(a * tl.load(decay_ptr + (kb * spans + c) * D + d, mask=on, other=0.0))
        tl.store(at, h, mask=on)
        h = decay * h + left


@dataclass(frozen=True)
class Launch:
    """How a scan is laid out on the device: a pure function of shape and device.

    Args:
        lanes: lanes a channel in the forward pass.
        held: states a lane in the forward pass.
        span: steps a program where time is split.
        spans: programs along time where time is split.
        whole: do not split time in the forward pass.
    """

    lanes: int
    held: int
    span: int
    spans: int
    whole: bool

    @property
    def states(self) -> int:
        """States of a channel, with padding."""
        return self.lanes * self.held

    @property
    def rows(self) -> int:
        """Steps, with padding."""
        return self.span * self.spans

    @property
    def blocks(self) -> int:
        """States kept for the backward pass, a channel and direction."""
        return self.rows // BLOCK


def launch_for(k: int, b: int, l: int, d: int, n: int, multiprocessors: int) -> Launch:
    """The layout for a shape.

    The backward pass splits time into spans of at least two blocks, up to 40 programs a multiprocessor: 4 run
    at a time, and many short ones leave the smallest tail. The forward pass does so only where a program for
    every channel block would leave most of the device idle, since it then takes each exponential twice.
    """
    states = max(4, triton.next_power_of_2(n))
    lanes = min(STEPS, max(2, states // 8))
    programs = b * triton.cdiv(d, CHANNELS)
    blocks = triton.cdiv(l, BLOCK)
    spans = min(triton.cdiv(40 * multiprocessors, programs), max(1, blocks // 2))
    span = triton.cdiv(blocks, spans) * BLOCK
    spans = triton.cdiv(l, span)
    return Launch(lanes, states // lanes, span, spans, whole=spans == 1 or programs >= 2 * multiprocessors)


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
) -> tuple[Tensor, Tensor]:
    """The gated scan, and with `keep` the states before every BLOCK steps (k, b, blocks, NP, d)."""
    (k, b, l, d), n = u.shape, A.shape[-1]
    u, delta, A, D, delta_bias = (x.contiguous() for x in (u, delta, A, D, delta_bias))
    z = z if z.stride(-1) == 1 else z.contiguous()
    span, spans = (launch.rows, 1) if launch.whole else (launch.span, launch.spans)
    bc = pack(B, C, launch)
    out = torch.empty(b, l, d, dtype=u.dtype, device=u.device)
    carry = torch.empty(k, b, spans, launch.states, d, device=u.device)
    decay = torch.empty(k, b, spans, d, device=u.device)
    states = torch.empty(k, b, launch.blocks if keep else 0, launch.states, d, device=u.device)

    def run(*, ends: bool) -> None:
        scan_kernel[triton.cdiv(d, CHANNELS), spans, b](
            u,
            delta,
            A,
            bc,
            D,
            z,
            delta_bias,
            out,
            carry,
            decay,
            states,
            l,
            d,
            launch.rows,
            span,
            launch.blocks,
            z.stride(0),
            z.stride(1),
            K=k,
            N=n,
            NL=launch.lanes,
            NR=launch.held,
            BD=CHANNELS,
            TT=STEPS,
            BLOCK=BLOCK,
            ENDS=ends,
            CARRY=spans > 1 and not ends,
            SAVE=keep and not ends,
            num_warps=max(1, k * launch.lanes * CHANNELS // 64),
            maxnreg=REGISTERS,
        )

    if spans > 1:
        run(ends=True)
        chain(carry, decay, A, last=False)
    run(ends=False)
    return out, states


def pack(B: Tensor, C: Tensor, launch: Launch) -> Tensor:
    """B and C as the kernels read them: (k, b, rows, 2, NP) float32 in reading order, as 64-bit words."""
    k, b, l, n = B.shape
    padded = launch.states
    # a tile more than the rows: the kernels ask for the next tile before they know that there is none
    out = torch.empty(k * b * launch.rows + STEPS, padded, dtype=torch.int64, device=B.device)
    pack_kernel[triton.cdiv(launch.rows, 32), b, k](
        B, C, out.view(torch.float32), l, launch.rows, n, *B.stride(), *C.stride(), NP=padded, ROWS=32
    )
    return out


def chain(carry: Tensor, decay: Tensor, A: Tensor, *, last: bool) -> None:
    """Turn, in place, the effects of the spans into the states at their beginnings (last: ends)."""
    k, b, spans, padded, d = carry.shape
    grid = (triton.cdiv(d, 128) * padded, b, k)
    chain_kernel[grid](carry, decay, A.contiguous(), spans, d, N=A.shape[-1], NP=padded, BD=128, LAST=last)


def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of the device; 1 where the interpreter runs the kernels on the CPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
