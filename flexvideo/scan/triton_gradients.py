"""Starts the backward pass of the scan: the kernel of `triton_backward.py`, then sums over its programs."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from flexvideo.scan.triton_backward import backward_kernel
from flexvideo.scan.triton_scan import BLOCK, Launch, chain, pack

STEPS = 4  # of a tile
CHANNELS = 32  # of a program


@triton.jit(do_not_specialize=["L", "rows", "parts"])
def unpack_kernel(
    dbc_ptr, db_ptr, dc_ptr, L, rows, parts, N: tl.constexpr, NP: tl.constexpr, ROWS: tl.constexpr
):
    """Add the programs' sums in order and put them back in the order of the sequence."""
    b, k = tl.program_id(1), tl.program_id(2)
    kb = k.to(tl.int64) * tl.num_programs(1) + b
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, 2 * NP)[None, :]
    s = tl.where(k == 0, t, rows - 1 - t)
    stride = tl.num_programs(2).to(tl.int64) * tl.num_programs(1) * rows * (2 * NP)
    at = dbc_ptr + (kb * rows + s) * (2 * NP) + column
    total = tl.zeros([ROWS, 2 * NP], tl.float32)
    for _ in range(0, parts):
        total += tl.load(at, mask=t < L, other=0.0)
        at += stride
    n = column % NP
    place = (kb * L + t) * N + n
    inside = (t < L) & (n < N)
    tl.store(db_ptr + place, total.to(db_ptr.dtype.element_ty), mask=inside & (column < NP))
    tl.store(dc_ptr + place, total.to(dc_ptr.dtype.element_ty), mask=inside & (column >= NP))


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
    launch: Launch,
    remake: bool = False,
) -> tuple[Tensor, ...]:
    """The gradients of the eight inputs, in their order, and with `remake` the output of the forward pass."""
    (k, b, l, d), n = u.shape, A.shape[-1]
    padded, spans = launch.states, launch.spans
    held, channels, steps = max(4, padded // STEPS), CHANNELS, STEPS
    lanes = padded // held
    u, delta, grad, A = (x.contiguous() for x in (u, delta, grad, A))
    z = z if z.stride(-1) == 1 else z.contiguous()
    parts = triton.cdiv(d, channels)
    wide = {"device": u.device, "dtype": torch.float32}
    bc = pack(B, C, launch)
    carry = torch.empty(k, b, spans, padded, d, **wide)
    decay = torch.empty(k, b, spans, d, **wide)
    scratch = torch.empty(b * spans * parts, BLOCK // steps, k, padded, channels, **wide)
    du, ddelta = torch.empty_like(u), torch.empty_like(delta)
    dz, out = torch.empty_like(grad), torch.empty_like(grad if remake else grad[:0])
    da = torch.empty(b * spans, k, d, padded, **wide)
    dskip, dbias = torch.empty(b * spans, k, d, **wide), torch.empty(b * spans, k, d, **wide)
    dbc = torch.empty(parts, k, b, launch.rows, 2, padded, **wide)

    def run(*, ends: bool) -> None:
        backward_kernel[parts, spans, b](
            grad,
            u,
            delta,
            A,
            bc,
            D.contiguous(),
            z,
            delta_bias.contiguous(),
            states,
            carry,
            decay,
            scratch,
            du,
            ddelta,
            dz,
            out,
            da,
            dbc,
            dskip,
            dbias,
            l,
            d,
            launch.rows,
            launch.span,
            launch.blocks,
            z.stride(0),
            z.stride(1),
            K=k,
            N=n,
            NL=lanes,
            NR=held,
            BD=channels,
            TT=steps,
            BLOCK=BLOCK,
            ENDS=ends,
            CARRY=spans > 1 and not ends,
            OUT=remake,
            num_warps=max(1, k * lanes * channels // 128),
        )

    if spans > 1:
        run(ends=True)
        chain(carry, decay, A, last=True)
    run(ends=False)
    dB, dC = B.new_empty(k, b, l, n), C.new_empty(k, b, l, n)
    unpack_kernel[triton.cdiv(l, 16), b, k](dbc, dB, dC, l, launch.rows, parts, N=n, NP=padded, ROWS=16)
    gradients = du, ddelta, da.sum(0)[..., :n], dB, dC, dskip.sum(0), dz, dbias.sum(0)
    return (*gradients, out) if remake else gradients
