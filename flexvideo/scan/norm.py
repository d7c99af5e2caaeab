"""The operator `flexvideo::add_norm`: add to the residual stream and RMS-normalise, keeping only the sum.

What comes out normalised is the input of a matrix product, which would keep it for its weight's gradient:
`flexvideo.scan.mixing` finds it again from the sum instead, which the residual stream keeps anyway.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flexvideo.errors import BackendError
from flexvideo.scan.entry import Run, entry
from flexvideo.scan.ops import kernels_of
from flexvideo.scan.reference import accumulation_dtype

for _name, _schema in {
    "add_norm": "(Tensor hidden, Tensor? residual, Tensor weight, float eps, ScalarType dtype, str backend)"
    " -> (Tensor, Tensor)",
    "add_norm_backward": "(Tensor grad_total, Tensor grad, Tensor total, Tensor weight, float eps,"
    " ScalarType dtype, str backend) -> (Tensor, Tensor, Tensor)",
}.items():
    torch.library.define(f"flexvideo::{_name}", _schema, tags=(torch.Tag.pt2_compliant_tag,))


def forward(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The sum of the two in float32 (float64 for float64), and that sum normalised in `dtype`.

    The sum may be `hidden` itself where there is no residual.
    """
    wide = accumulation_dtype(hidden)
    total = hidden.to(wide) if residual is None else residual.to(wide) + hidden
    return total, F.rms_norm(total, weight.shape, weight.to(total.dtype), eps).to(dtype)


def backward(
    grad_total: Tensor, grad: Tensor, total: Tensor, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the sum, of what was added in `dtype` (empty if that is the sum's), and of the weight."""
    scale = torch.rsqrt(total.square().mean(-1, keepdim=True) + eps)
    unit, grad = total * scale, grad.to(total.dtype)
    scaled = grad * weight
    d_total = grad_total + scale * (scaled - unit * (scaled * unit).mean(-1, keepdim=True))
    d_hidden = d_total.new_empty(0, dtype=dtype) if dtype == d_total.dtype else d_total.to(dtype)
    return d_total, d_hidden, (grad * unit).flatten(0, -2).sum(0)


def _add_norm(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype, backend: str
) -> tuple[Tensor, Tensor]:
    for name, x in (("residual stream", residual), ("weight", weight)):
        if x is not None and x.device != hidden.device:  # a kernel would fault on it
            raise BackendError(
                f"The {name} of a normalisation is on {x.device}, and its input on {hidden.device}: move the "
                "whole model to one device."
            )
    with torch._C._DisableAutocast():
        function = kernels_of(backend).add_norm or forward
        total, normed = function(hidden, residual, weight, eps, dtype)
    return total.clone() if total is hidden else total, normed  # an operator's outputs are its own


def _add_norm_backward(
    grad_total: Tensor,
    grad: Tensor,
    total: Tensor,
    weight: Tensor,
    eps: float,
    dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    with torch._C._DisableAutocast():
        function = kernels_of(backend).add_norm_backward or backward
        d_total, d_hidden, d_weight = function(grad_total, grad, total, weight, eps, dtype)
    return d_total, d_hidden, d_weight.to(weight.dtype)


@torch.library.register_fake("flexvideo::add_norm")
def _fake(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype, backend: str
) -> tuple[Tensor, Tensor]:
    wide = accumulation_dtype(hidden)
    return hidden.new_empty(hidden.shape, dtype=wide), hidden.new_empty(hidden.shape, dtype=dtype)


@torch.library.register_fake("flexvideo::add_norm_backward")
def _fake_backward(
    grad_total: Tensor, grad: Tensor, total: Tensor, weight: Tensor, eps: float, dtype: torch.dtype, _: str
) -> tuple[Tensor, Tensor, Tensor]:
    shape: Sequence[int] = (0,) if dtype == total.dtype else total.shape
    return total.new_empty(total.shape), total.new_empty(shape, dtype=dtype), weight.new_empty(weight.shape)


class AddNorm(torch.autograd.Function):
    """What autograd records of the operator."""

    @staticmethod
    def forward(ctx: Any, run: Run, *inputs: Any) -> tuple[Tensor, Tensor]:
        """The sum, and it normalised."""
        hidden, residual, weight, ctx.eps, _, ctx.backend = inputs
        ctx.dtype, ctx.first = hidden.dtype, residual is None
        total, normed = run(*inputs)
        ctx.save_for_backward(total, weight)
        return total, normed

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of what was added, the residual and the weight."""
        arguments = (*grad_outputs, *ctx.saved_tensors, ctx.eps, ctx.dtype, ctx.backend)
        d_total, d_hidden, d_weight = _backward_operator(*arguments)
        added = d_total if ctx.dtype == d_total.dtype else d_hidden
        return None, added, None if ctx.first else d_total, d_weight, None, None, None


add_norm = entry("add_norm", _add_norm, AddNorm.apply)
_backward_operator = entry("add_norm_backward", _add_norm_backward)
