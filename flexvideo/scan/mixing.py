"""The operator `flexvideo::mixer`: a whole bidirectional mixer that keeps little for its backward pass.

Plain autograd keeps the input of every product: of a block of VideoMamba-M some 1.1 GB at 16 clips of 3137
tokens. The operator keeps the states of the scan and the rows of `x_proj`, (K, B L, R + 2 N), and finds the
rest again: its normalised input from the residual stream, the projections, convolution and step sizes by
computing them twice, and the output of the scan on the scan's own way back; where no gradient is wanted it
keeps nothing. Its 16 weights are gathered, stacked by direction, on every call, since they change.

Shapes: B batch, L tokens, D width, E inner width, N state, R rank of the step size, K = 2 directions.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from flexvideo.scan.entry import Run, entry
from flexvideo.scan.norm import add_norm as add_norm_operator
from flexvideo.scan.norm import forward as add_norm_forward
from flexvideo.scan.ops import (
    Kernels,
    check_kept,
    conv_flops,
    gradient_wanted,
    kernels_of,
    save,
    scan_flops,
)
from flexvideo.scan.reference import accumulation_dtype
from flexvideo.scan.stacking import Stack, stacked

COUNT = 16  # weights
ALIGN = 8  # elements of 16 bits that products load at once

for _name, _schema in {
    "mixer": "(Tensor hidden, Tensor? total, Tensor? scale, Tensor[] weights, float eps, bool keep,"
    " str backend) -> (Tensor, Tensor[])",
    "mixer_backward": "(Tensor grad, Tensor kept, Tensor? scale, Tensor[] weights, Tensor[] saved, float eps,"
    " str backend) -> (Tensor, Tensor[])",
}.items():
    torch.library.define(f"flexvideo::{_name}", _schema, tags=(torch.Tag.pt2_compliant_tag,))


class Normed(NamedTuple):
    """Where the input of a mixer comes from: it is `total` normalised, and need not be kept.

    Args:
        total: the residual stream.
        scale: weight of the normalisation.
        eps: as in `torch.nn.RMSNorm`.
    """

    total: Tensor
    scale: Tensor
    eps: float


@dataclass(frozen=True)
class Fused:
    """The two operators as which a backend runs a block.

    Args:
        add_norm: (hidden (b, l, d), residual or None, weight, eps, dtype) -> their sum in float32 (float64
            for float64), and it normalised in `dtype`.
        mixer: (hidden (b, l, d) in the dtype of the products, weights, its source or None) -> (b, l, d). The
            weights are `in_proj`, `out_proj`, and for both directions filters and biases of the convolution,
            `x_proj`, `dt_proj`, its bias, `A_log` and `D`, 16 in all.
    """

    add_norm: Callable[[Tensor, Tensor | None, Tensor, float, torch.dtype], tuple[Tensor, Tensor]]
    mixer: Callable[[Tensor, Sequence[Tensor], Normed | None], Tensor]


def fused(backend: str) -> Fused:
    """The operators of a backend whose module holds `KERNELS`, for its constant `FUSED`.

    Where it has none, blocks are run layer by layer: products computed twice are slow on a CPU.
    """

    def add_norm(
        hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        return add_norm_operator(hidden, residual, weight, eps, dtype, backend)

    def mixer(hidden: Tensor, weights: Sequence[Tensor], source: Normed | None) -> Tensor:
        total, scale, eps = (None, None, 0.0) if source is None else source
        keep = gradient_wanted(hidden, total, scale, *weights)
        return _operator(hidden, total, scale, list(weights), eps, keep, backend)[0]

    return Fused(add_norm, mixer)


class _Weights(NamedTuple):
    """The weights as the products take them; pairs stacked by direction."""

    in_proj: Tensor
    out_proj: Tensor
    conv: Float[Tensor, "k e w"]
    conv_bias: Float[Tensor, "k e"]
    x_proj: Float[Tensor, "k m e"]
    dt_proj: Float[Tensor, "k e r"]
    dt_bias: Float[Tensor, "k e"]
    A: Float[Tensor, "k e n"]
    D: Float[Tensor, "k e"]


def _gathered(weights: list[Tensor], dtype: torch.dtype, kernels: Kernels) -> _Weights:
    cast = [weight for weight in weights[:2] if weight.dtype != dtype]
    stacks = _stacks(len(cast), weights[8].shape[1], dtype)
    made = (kernels.gather or stacked)([*cast, *weights[2:]], stacks)
    in_proj, out_proj = (weight if weight.dtype == dtype else made.pop(0)[0] for weight in weights[:2])
    conv, *rest = made
    return _Weights(in_proj, out_proj, conv.squeeze(2), *rest)


@functools.cache
def _stacks(cast: int, rank: int, dtype: torch.dtype) -> tuple[Stack, ...]:
    wide, pad = accumulation_dtype(torch.empty(0, dtype=dtype)), _padding(rank)
    projections = Stack(2, dtype, (0, rank, pad)), Stack(2, dtype, (1, rank, pad))
    kept = Stack(2, wide)
    return (*[Stack(1, dtype)] * cast, kept, kept, *projections, kept, Stack(2, wide, decay=True), kept)


def _padding(rank: int) -> int:
    """Zeros to add to a rank: products are several times slower where rows do not begin at 16 bytes."""
    return -rank % ALIGN


def _split(rows: Tensor, weights: _Weights, tokens: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Step sizes of low rank (K, B L, R), and B and C (K, B, L, N)."""
    rank, n = weights.dt_proj.shape[-1], weights.A.shape[-1]
    low, B, C = rows.split_with_sizes((rank, n, n), dim=-1)
    return low, B.view(2, *tokens, n), C.view(2, *tokens, n)


def _mixer(
    hidden: Tensor,
    total: Tensor | None,
    scale: Tensor | None,
    weights: list[Tensor],
    eps: float,
    keep: bool,
    backend: str,
) -> tuple[Tensor, list[Tensor]]:
    kernels, tokens = kernels_of(backend), hidden.shape[:2]
    with torch._C._DisableAutocast():
        w = _gathered(weights, hidden.dtype, kernels)
        x, z = F.linear(hidden, w.in_proj).chunk(2, dim=-1)  # (B, L, E) each
        u = kernels.conv(x, w.conv, w.conv_bias)
        rows = torch.bmm(u.flatten(1, 2), w.x_proj.mT)
        low, B, C = _split(rows, w, tokens)
        # Multiplied within the scan, by tensor cores, step sizes take as long as they do written and read.
        delta = torch.bmm(low, w.dt_proj.mT).view(u.shape)
        y, saved = kernels.scan(u, delta, w.A, B, C, w.D, z, w.dt_bias, keep=keep)
        return F.linear(y, w.out_proj), [rows, *saved] if keep else []


def _mixer_backward(
    grad: Tensor,
    kept: Tensor,
    scale: Tensor | None,
    weights: list[Tensor],
    saved: list[Tensor],
    eps: float,
    backend: str,
) -> tuple[Tensor, list[Tensor]]:
    kernels, (rows, *states), tokens, dtype = kernels_of(backend), saved, grad.shape[:2], grad.dtype
    with torch._C._DisableAutocast():
        w = _gathered(weights, dtype, kernels)
        hidden = kept
        if scale is not None:
            _, hidden = (kernels.add_norm or add_norm_forward)(kept, None, scale, eps, dtype)
        x, z = F.linear(hidden, w.in_proj).chunk(2, dim=-1)
        u = kernels.conv(x, w.conv, w.conv_bias)
        low, B, C = _split(rows, w, tokens)
        delta = torch.bmm(low, w.dt_proj.mT).view(u.shape)
        d_u, d_delta, d_A, d_B, d_C, d_D, d_z, d_bias, y = kernels.scan_backward(
            grad @ w.out_proj, u, delta, w.A, B, C, w.D, z, w.dt_bias, states, remake=True
        )
        d_out_proj = grad.flatten(0, 1).mT @ _cast(y, dtype).flatten(0, 1)
        del delta, y  # what is not needed any more makes room: this is where a training step needs most
        d_delta = _cast(d_delta, dtype).flatten(1, 2)
        d_low, d_dt_proj = torch.bmm(d_delta, w.dt_proj), torch.bmm(d_delta.mT, low)
        del d_delta
        d_rows = torch.cat((d_low, *(_cast(d, dtype).flatten(1, 2) for d in (d_B, d_C))), dim=-1)
        d_u = _cast(d_u, dtype).flatten(1, 2).baddbmm_(d_rows, w.x_proj)
        d_x_proj = torch.bmm(d_rows.mT, u.flatten(1, 2))
        if pad := _padding(rank := weights[8].shape[1]):
            d_x_proj = torch.cat((d_x_proj[:, :rank], d_x_proj[:, rank + pad :]), dim=1)
            d_dt_proj = d_dt_proj[..., :rank]
        d_x, d_conv, d_conv_bias = kernels.conv_backward(d_u.view(u.shape), x, w.conv, w.conv_bias)
        del d_u
        # half by half, for to put the halves together takes longer than the second product
        halves = [_cast(d, dtype).flatten(0, 1) for d in (d_x, d_z)]
        into, gate = w.in_proj.chunk(2)
        d_hidden = torch.addmm(halves[0] @ into, halves[1], gate).view(grad.shape)
        d_in_proj = torch.cat([half.mT @ hidden.flatten(0, 1) for half in halves])
        pairs = [d_conv.unsqueeze(2), d_conv_bias, d_x_proj, d_dt_proj, d_bias, d_A * w.A, d_D]
        kinds = [weight.dtype for weight in (*weights[:2], *weights[2::2])]
        gradients = zip((d_in_proj, d_out_proj, *pairs), kinds, strict=True)
        return d_hidden, [_cast(d, kind).contiguous() for d, kind in gradients]


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """As `to`, which takes ten times as long to find out that there is nothing to do."""
    return x if x.dtype == dtype else x.to(dtype)


@torch.library.register_fake("flexvideo::mixer")
def _fake(
    hidden: Tensor,
    total: Tensor | None,
    scale: Tensor | None,
    weights: list[Tensor],
    eps: float,
    keep: bool,
    backend: str,
) -> tuple[Tensor, list[Tensor]]:
    if not keep:
        return hidden.new_empty(hidden.shape), []
    (b, l, _), (r, e), n = hidden.shape, weights[6].shape, weights[12].shape[1]
    r += _padding(weights[8].shape[1])
    A = hidden.new_empty(2, e, n, dtype=accumulation_dtype(hidden))
    saved = kernels_of(backend).saved(hidden.new_empty(2, b, l, e), A)
    return hidden.new_empty(hidden.shape), [hidden.new_empty(2, b * l, r), *saved]


@torch.library.register_fake("flexvideo::mixer_backward")
def _fake_backward(
    grad: Tensor, kept: Tensor, scale: Tensor | None, weights: list[Tensor], *rest: Any
) -> tuple[Tensor, list[Tensor]]:
    pairs = [weight.new_empty(2, *weight.shape) for weight in weights[2::2]]
    return grad.new_empty(grad.shape), [*(weight.new_empty(weight.shape) for weight in weights[:2]), *pairs]


class Mixer(torch.autograd.Function):
    """What autograd records of a mixer."""

    @staticmethod
    def forward(ctx: Any, run: Run, *inputs: Any) -> tuple[Tensor, ...]:
        """The output and what is kept, of the operator's arguments with the weights after all others."""
        hidden, total, scale, ctx.eps, ctx.keep, ctx.backend, *weights = inputs
        out, saved = run(hidden, total, scale, weights, ctx.eps, ctx.keep, ctx.backend)
        made = (hidden,) if scale is None else (total, scale)
        ctx.made = len(made)
        save(ctx, (*made, *weights), saved)
        return out, *saved

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        """Gradients of the input and the weights; none where nothing came of the output."""
        if grad_outputs[0] is None:
            return (None,) * len(ctx.needs_input_grad)
        check_kept(ctx.keep)
        kept, *rest = ctx.saved_tensors
        scale, rest = (None, rest) if ctx.made == 1 else (rest[0], rest[1:])
        arguments = (kept, scale, rest[:COUNT], rest[COUNT:], ctx.eps, ctx.backend)
        d_hidden, (d_in, d_out, *pairs) = _backward_operator(grad_outputs[0], *arguments)
        d_weights = (d for pair in pairs for d in pair.unbind())
        return None, d_hidden, None, None, None, None, None, d_in, d_out, *d_weights


def _record(run: Run, *inputs: Any) -> tuple[Tensor, list[Tensor]]:
    hidden, total, scale, weights, *rest = inputs
    out, *saved = Mixer.apply(run, hidden, total, scale, *rest, *weights)
    return out, saved


_operator = entry("mixer", _mixer, _record)
_backward_operator = entry("mixer_backward", _mixer_backward)


@register_flop_formula(torch.ops.flexvideo.mixer)
def mixer_flops(
    hidden: Sequence[int], total: Any, scale: Any, weights: Any, *rest: Any, out_shape: Any = None
) -> int:
    """Products, convolution and scan, as if each were run by itself."""
    (b, l, d), (r, e), rank, n = hidden, weights[6], weights[8][1], weights[12][1]
    products = 2 * b * l * (2 * e * d + d * e + 2 * e * r + 2 * rank * e)
    conv = conv_flops((b, l, e), (2, e, weights[2][2]))
    return products + conv + scan_flops((2, b, l, e), (2, b, l, e), (2, e, n))


@register_flop_formula(torch.ops.flexvideo.mixer_backward)
def mixer_backward_flops(
    grad: Sequence[int], kept: Any, scale: Any, weights: Any, *rest: Any, out_shape: Any = None
) -> int:
    """Twice the forward pass: what is computed again is not counted."""
    return 2 * mixer_flops(grad, None, None, weights)
