"""The causal depthwise convolution with SiLU, both directions in one launch, forward and backward.

It moves bytes and little else: the forward pass reads x once from memory (the taps hit the cache) and writes
both directions. The backward pass finds the convolution again instead of keeping it, and writes the gradients
before the SiLU, of which a second kernel makes the gradient of x. Direction 1 reads the future: its tap j
looks at t + (w - 1 - j). Gradients of filters and biases are sums over a program's rows, added up over the
programs in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from flexvideo.scan.triton_tile import sigmoid

ROWS, CHANNELS = 8, 128
LONG = 256  # rows of a program of the backward pass


@triton.jit(do_not_specialize=["L"])
def conv_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    L,
    D,
    x_b,
    x_l,
    K: tl.constexpr,
    W: tl.constexpr,
    ROWS: tl.constexpr,
    BD: tl.constexpr,
):
    """One tile of all directions."""
    b = tl.program_id(2).to(tl.int64)
    t = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    d = tl.program_id(0) * BD + tl.arange(0, BD)[None, :]
    on = d < D
    x_at = x_ptr + b * x_b + d
    for k in tl.static_range(K):
        total = tl.load(bias_ptr + k * D + d, mask=on, other=0.0).to(tl.float32)
        total = total + tl.zeros([ROWS, BD], tl.float32)
        for j in tl.static_range(W):
            seen = t - (W - 1 - j) if k == 0 else t + (W - 1 - j)
            x = tl.load(x_at + seen.to(tl.int64) * x_l, mask=on & (seen >= 0) & (seen < L), other=0.0)
            weight = tl.load(weight_ptr + (k * D + d) * W + j, mask=on, other=0.0)
            total += x.to(tl.float32) * weight.to(tl.float32)
        out = out_ptr + ((k * tl.num_programs(2) + b) * L + t) * D + d
        tl.store(out, (total * sigmoid(total)).to(out_ptr.dtype.element_ty), mask=on & (t < L))


@triton.jit(do_not_specialize=["L"])
def slope_kernel(
    grad_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    slope_ptr,
    dweight_ptr,
    dbias_ptr,
    L,
    D,
    x_b,
    x_l,
    K: tl.constexpr,
    W: tl.constexpr,
    ROWS: tl.constexpr,
    BD: tl.constexpr,
    LONG: tl.constexpr,
):
    """LONG rows: gradients before the SiLU, and this program's sums (programs, k, W, d), (programs, k, d)."""
    b, c = tl.program_id(2).to(tl.int64), tl.program_id(1)
    samples, chunks = tl.num_programs(2), tl.num_programs(1)
    d = tl.program_id(0) * BD + tl.arange(0, BD)[None, :]
    on = d < D
    x_at = x_ptr + b * x_b + d
    part = (b * chunks + c) * K
    for k in tl.static_range(K):
        bias = tl.load(bias_ptr + k * D + d, mask=on, other=0.0).to(tl.float32)
        sums = ()
        for _ in tl.static_range(W + 1):
            sums = sums + (tl.zeros([ROWS, BD], tl.float32),)
        for row in range(0, LONG, ROWS):
            t = c * LONG + row + tl.arange(0, ROWS)[:, None]
            at = ((k * samples + b) * L + t) * D + d
            grad = tl.load(grad_ptr + at, mask=on & (t < L), other=0.0).to(tl.float32)
            total = bias + tl.zeros([ROWS, BD], tl.float32)
            xs = ()
            for j in tl.static_range(W):
                seen = t - (W - 1 - j) if k == 0 else t + (W - 1 - j)
                x = tl.load(x_at + seen.to(tl.int64) * x_l, mask=on & (seen >= 0) & (seen < L), other=0.0)
                xs = xs + (x.to(tl.float32),)
                weight = tl.load(weight_ptr + (k * D + d) * W + j, mask=on, other=0.0)
                total += xs[j] * weight.to(tl.float32)
            open = sigmoid(total)
            slope = grad * open * (1.0 + total * (1.0 - open))
            tl.store(slope_ptr + at, slope.to(slope_ptr.dtype.element_ty), mask=on & (t < L))
            new = (sums[0] + slope,)
            for j in tl.static_range(W):
                new = new + (sums[j + 1] + slope * xs[j],)
            sums = new
        tl.store(dbias_ptr + (part + k) * D + d, tl.sum(sums[0], 0, keep_dims=True), mask=on)
        for j in tl.static_range(W):
            total_j = tl.sum(sums[j + 1], 0, keep_dims=True)
            tl.store(dweight_ptr + ((part + k) * W + j) * D + d, total_j, mask=on)


@triton.jit(do_not_specialize=["L"])
def input_kernel(
    slope_ptr,
    weight_ptr,
    dx_ptr,
    L,
    D,
    K: tl.constexpr,
    W: tl.constexpr,
    ROWS: tl.constexpr,
    BD: tl.constexpr,
):
    """The gradient of x: the outputs at t + back (direction 1: t - back) have seen x at t."""
    b = tl.program_id(2).to(tl.int64)
    t = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    d = tl.program_id(0) * BD + tl.arange(0, BD)[None, :]
    on = d < D
    dx = tl.zeros([ROWS, BD], tl.float32)
    for k in tl.static_range(K):
        for j in tl.static_range(W):
            other = t + (W - 1 - j) if k == 0 else t - (W - 1 - j)
            at = slope_ptr + ((k * tl.num_programs(2) + b) * L + other) * D + d
            slope = tl.load(at, mask=on & (other >= 0) & (other < L), other=0.0)
            weight = tl.load(weight_ptr + (k * D + d) * W + j, mask=on, other=0.0)
            dx += slope.to(tl.float32) * weight.to(tl.float32)
    tl.store(dx_ptr + (b * L + t) * D + d, dx.to(dx_ptr.dtype.element_ty), mask=on & (t < L))


def conv_forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """silu(depthwise convolution) in every direction: (k, b, l, d)."""
    (b, l, d), (k, _, w) = x.shape, weight.shape
    x = x if x.stride(-1) == 1 else x.contiguous()
    out = x.new_empty(k, b, l, d)
    grid = (triton.cdiv(d, CHANNELS), triton.cdiv(l, ROWS), b)
    conv_kernel[grid](
        x,
        weight.contiguous(),
        bias.contiguous(),
        out,
        l,
        d,
        x.stride(0),
        x.stride(1),
        K=k,
        W=w,
        ROWS=ROWS,
        BD=CHANNELS,
        num_warps=4,
    )
    return out


def conv_backward(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (contiguous), the filters and the biases (float32)."""
    (b, l, d), (k, _, w) = x.shape, weight.shape
    x = x if x.stride(-1) == 1 else x.contiguous()
    chunks = triton.cdiv(l, LONG)
    weight, bias = weight.contiguous(), bias.contiguous()
    dx, slope = x.new_empty(b, l, d), x.new_empty(k, b, l, d)
    dweight = torch.empty(b * chunks, k, w, d, dtype=torch.float32, device=x.device)
    dbias = torch.empty(b * chunks, k, d, dtype=torch.float32, device=x.device)
    sizes = {"K": k, "W": w, "ROWS": ROWS, "BD": CHANNELS, "num_warps": 4}
    slope_kernel[triton.cdiv(d, CHANNELS), chunks, b](
        grad.contiguous(),
        x,
        weight,
        bias,
        slope,
        dweight,
        dbias,
        l,
        d,
        x.stride(0),
        x.stride(1),
        LONG=LONG,
        **sizes,
    )
    input_kernel[triton.cdiv(d, CHANNELS), triton.cdiv(l, ROWS), b](slope, weight, dx, l, d, **sizes)
    return dx, dweight.sum(0).transpose(1, 2), dbias.sum(0)
