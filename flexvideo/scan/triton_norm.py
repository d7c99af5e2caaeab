"""Residual sum and RMS normalisation in one pass over the tokens, forward and backward.

Bytes are all it costs: forward 12 a value (read float32 and 16 bits, write the same), backward 16. A program
holds whole rows; the gradient of the weight is summed over a program's rows and then over the programs, in a
fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 4096  # of a program at a time
LONG = 32  # rows of a program of the backward pass, at least


@triton.jit(do_not_specialize=["rows"])
def norm_kernel(
    hidden_ptr,
    residual_ptr,
    weight_ptr,
    total_ptr,
    out_ptr,
    rows,
    D,
    eps,
    ROWS: tl.constexpr,
    BD: tl.constexpr,
    ADD: tl.constexpr,
    SUM: tl.constexpr,
):
    """ROWS tokens: their sums (SUM: stored), and these normalised."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    d = tl.arange(0, BD)[None, :]
    on = (row < rows) & (d < D)
    at = row * D + d
    total = tl.load(hidden_ptr + at, mask=on, other=0.0).to(tl.float32)
    if ADD:
        total += tl.load(residual_ptr + at, mask=on, other=0.0)
    if SUM:
        tl.store(total_ptr + at, total, mask=on)
    scale = tl.rsqrt(tl.sum(total * total, 1, keep_dims=True) / D + eps)
    weight = tl.load(weight_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, (total * scale * weight).to(out_ptr.dtype.element_ty), mask=on)


@triton.jit(do_not_specialize=["rows"])
def norm_backward_kernel(
    grad_total_ptr,
    grad_ptr,
    total_ptr,
    weight_ptr,
    dtotal_ptr,
    dhidden_ptr,
    dweight_ptr,
    rows,
    D,
    eps,
    ROWS: tl.constexpr,
    BD: tl.constexpr,
    LONG: tl.constexpr,
    CAST: tl.constexpr,
):
    """LONG tokens: gradients of their sums (CAST: in a second dtype too), and their part of the weight's."""
    d = tl.arange(0, BD)[None, :]
    weight = tl.load(weight_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    dweight = tl.zeros([ROWS, BD], tl.float32)
    for first in range(0, LONG, ROWS):
        row = tl.program_id(0).to(tl.int64) * LONG + first + tl.arange(0, ROWS)[:, None]
        on = (row < rows) & (d < D)
        at = row * D + d
        total = tl.load(total_ptr + at, mask=on, other=0.0)
        grad = tl.load(grad_ptr + at, mask=on, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(total * total, 1, keep_dims=True) / D + eps)
        unit = total * scale
        scaled = grad * weight
        mean = tl.sum(scaled * unit, 1, keep_dims=True) / D
        dtotal = tl.load(grad_total_ptr + at, mask=on, other=0.0) + scale * (scaled - unit * mean)
        tl.store(dtotal_ptr + at, dtotal, mask=on)
        if CAST:
            tl.store(dhidden_ptr + at, dtotal.to(dhidden_ptr.dtype.element_ty), mask=on)
        dweight += grad * unit
    sums = tl.sum(dweight, 0, keep_dims=True)
    tl.store(dweight_ptr + tl.program_id(0) * D + d, sums, mask=d < D)


def norm_forward(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The sum in float32, which may be `hidden` itself, and it normalised in `dtype`."""
    hidden = hidden.contiguous()
    same = residual is None and hidden.dtype == torch.float32
    total = hidden if same else torch.empty_like(hidden, dtype=torch.float32)
    out = torch.empty_like(hidden, dtype=dtype)
    rows, d, sizes = _layout(hidden)
    norm_kernel[(triton.cdiv(rows, sizes["ROWS"]),)](
        hidden,
        total if residual is None else residual.contiguous(),
        weight,
        total,
        out,
        rows,
        d,
        eps,
        ADD=residual is not None,
        SUM=not same,
        num_warps=4,
        **sizes,
    )
    return total, out


def norm_backward(
    grad_total: Tensor, grad: Tensor, total: Tensor, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the sum, the same in `dtype` (empty if that is float32), and of the weight (float32)."""
    rows, d, sizes = _layout(total)
    long = max(LONG, sizes["ROWS"])
    programs, cast = triton.cdiv(rows, long), dtype != torch.float32
    d_total = torch.empty_like(total)
    d_hidden = total.new_empty(total.shape if cast else 0, dtype=dtype)
    d_weight = total.new_empty(programs, d)
    norm_backward_kernel[(programs,)](
        grad_total.contiguous(),
        grad.contiguous(),
        total,
        weight,
        d_total,
        d_hidden,
        d_weight,
        rows,
        d,
        eps,
        LONG=long,
        CAST=cast,
        num_warps=4,
        **sizes,
    )
    return d_total, d_hidden, d_weight.sum(0)


def _layout(x: Tensor) -> tuple[int, int, dict[str, int]]:
    """Rows, their length, and how many of them a program holds."""
    d = x.shape[-1]
    wide = triton.next_power_of_2(d)
    return x.numel() // d, d, {"ROWS": max(1, min(LONG, ELEMENTS // wide)), "BD": wide}
