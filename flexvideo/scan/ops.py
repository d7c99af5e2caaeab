"""The operators `flexvideo::selective_scan` and `flexvideo::causal_conv`: autograd, fake tensors, FLOPs.

A backend that computes on plain tensors describes itself by a constant `KERNELS` and takes its two functions
from `operators`. Everything that torch must know besides (gradients, fake tensors for compile and export,
FLOP counts) is here once. The backend travels as a string argument of the operator.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from flexvideo.errors import BackendError
from flexvideo.scan.entry import Run, entry
from flexvideo.scan.registry import load
from flexvideo.scan.stacking import Stack

SCAN = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, Tensor z, Tensor delta_bias"
CONV = "Tensor x, Tensor weight, Tensor bias"
GRADS = ", ".join(["Tensor"] * 8)


@dataclass(frozen=True)
class Kernels:
    """What a backend computes, on plain tensors and without autograd.

    Args:
        scan: (the 8 arguments of `selective_scan`, `keep=`) -> (out, tensors saved for the backward pass);
            without `keep` none need be.
        scan_backward: (gradient of out, the 8 arguments, saved) -> 8 gradients; for `flexvideo::mixer`
            also `remake=True`, which returns the output of `scan` after them.
        saved: (u, A) -> empty tensors like those which `scan` saves; works on fake tensors.
        conv: (x, weight, bias) -> (k, b, l, d).
        conv_backward: (gradient, x, weight, bias) -> 3 gradients.
        add_norm: `flexvideo.scan.norm.forward`, which runs when None.
        add_norm_backward: `flexvideo.scan.norm.backward`, which runs when None.
        gather: `flexvideo.scan.stacking.stacked`, which runs when None.
    """

    scan: Callable[..., tuple[Tensor, list[Tensor]]]
    scan_backward: Callable[..., Sequence[Tensor]]
    saved: Callable[[Tensor, Tensor], list[Tensor]]
    conv: Callable[[Tensor, Tensor, Tensor], Tensor]
    conv_backward: Callable[..., Sequence[Tensor]]
    add_norm: Callable[..., tuple[Tensor, Tensor]] | None = None
    add_norm_backward: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None
    gather: Callable[[Sequence[Tensor], tuple[Stack, ...]], list[Tensor]] | None = None


def operators(backend: str) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """`selective_scan` and `causal_conv` of a backend whose module holds `KERNELS`."""

    def selective_scan(
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        z: Tensor,
        delta_bias: Tensor,
    ) -> Tensor:
        inputs = (u, delta, A, B, C, D, z, delta_bias)
        return _scan_operator(*inputs, gradient_wanted(*inputs), backend)[0]

    def causal_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _conv_operator(x, weight, bias, backend)

    return selective_scan, causal_conv


def gradient_wanted(*inputs: Tensor | None) -> bool:
    """Whether a backward pass may follow, for which an operator on these must keep something."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


def kernels_of(backend: str) -> Kernels:
    """What a backend computes."""
    return load(backend).KERNELS


def _like(grads: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(grad.to(x.dtype).contiguous() for grad, x in zip(grads, inputs, strict=True))


def _empty(*inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in inputs)


# not `custom_op`, which wraps every call in 30 microseconds of checks
for _name, _schema in {
    "selective_scan": f"({SCAN}, bool keep, str backend) -> (Tensor, Tensor[])",
    "selective_scan_backward": f"(Tensor grad, {SCAN}, Tensor[] saved, str backend) -> ({GRADS})",
    "causal_conv": f"({CONV}, str backend) -> Tensor",
    "causal_conv_backward": f"(Tensor grad, {CONV}, str backend) -> (Tensor, Tensor, Tensor)",
}.items():
    torch.library.define(f"flexvideo::{_name}", _schema, tags=(torch.Tag.pt2_compliant_tag,))


def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    keep: bool,
    backend: str,
) -> tuple[Tensor, list[Tensor]]:
    out, saved = kernels_of(backend).scan(u, delta, A, B, C, D, z, delta_bias, keep=keep)
    return out.contiguous(), saved


def _scan_backward(
    grad: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    saved: list[Tensor],
    backend: str,
) -> tuple[Tensor, ...]:
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    return _like(kernels_of(backend).scan_backward(grad, *inputs, saved), inputs)


def _conv(x: Tensor, weight: Tensor, bias: Tensor, backend: str) -> Tensor:
    return kernels_of(backend).conv(x, weight, bias).contiguous()


def _conv_backward(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, backend: str) -> tuple[Tensor, ...]:
    inputs = (x, weight, bias)
    return _like(kernels_of(backend).conv_backward(grad, *inputs), inputs)


@torch.library.register_fake("flexvideo::selective_scan")
def _fake_scan(u: Tensor, delta: Tensor, A: Tensor, *rest: Any) -> tuple[Tensor, list[Tensor]]:
    *_, keep, backend = rest
    return u.new_empty(u.shape[1:]), kernels_of(backend).saved(u, A) if keep else []


@torch.library.register_fake("flexvideo::selective_scan_backward")
def _fake_scan_backward(grad: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return _empty(*rest[:8])


@torch.library.register_fake("flexvideo::causal_conv")
def _fake_conv(x: Tensor, weight: Tensor, bias: Tensor, backend: str) -> Tensor:
    return x.new_empty(weight.shape[0], *x.shape)


@torch.library.register_fake("flexvideo::causal_conv_backward")
def _fake_conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, backend: str
) -> tuple[Tensor, ...]:
    return _empty(x, weight, bias)


def save(ctx: Any, tensors: Sequence[Tensor], kept: Sequence[Tensor]) -> None:
    """Save for the backward pass tensors, and outputs that are kept for it and have no gradient."""
    ctx.save_for_backward(*tensors, *kept)
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)  # what is kept would get zeros


class SelectiveScan(torch.autograd.Function):
    """What autograd records of the scan."""

    @staticmethod
    def forward(ctx: Any, run: Run, *inputs: Any) -> tuple[Tensor, ...]:
        """The output and what is kept."""
        out, saved = run(*inputs)
        *tensors, ctx.keep, ctx.backend = inputs
        save(ctx, tensors, saved)
        return out, *saved

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        """Gradients of the eight tensors; none where nothing came of the output."""
        if grad_outputs[0] is None:
            return (None,) * len(ctx.needs_input_grad)
        check_kept(ctx.keep)
        tensors = ctx.saved_tensors
        arguments = (grad_outputs[0], *tensors[:8], list(tensors[8:]), ctx.backend)
        return None, *_scan_backward_operator(*arguments), None, None


def check_kept(keep: bool) -> None:
    """Refuse the backward pass of what was recorded, as by an export, where gradients were off."""
    if not keep:
        raise BackendError(
            "This program was exported for inference, and its scans keep nothing for a backward pass: export "
            "the model again with gradients on, outside of torch.no_grad() and torch.inference_mode()."
        )


class CausalConv(torch.autograd.Function):
    """What autograd records of the convolution."""

    @staticmethod
    def forward(ctx: Any, run: Run, *inputs: Any) -> Tensor:
        """The output."""
        *tensors, ctx.backend = inputs
        ctx.save_for_backward(*tensors)
        return run(*inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the three tensors."""
        return None, *_conv_backward_operator(*grad_outputs, *ctx.saved_tensors, ctx.backend), None


def _record_scan(run: Run, *inputs: Any) -> tuple[Tensor, list[Tensor]]:
    out, *saved = SelectiveScan.apply(run, *inputs)
    return out, saved


_scan_operator = entry("selective_scan", _scan, _record_scan)
_scan_backward_operator = entry("selective_scan_backward", _scan_backward)
_conv_operator = entry("causal_conv", _conv, CausalConv.apply)
_conv_backward_operator = entry("causal_conv_backward", _conv_backward)

Shape = Sequence[int]


@register_flop_formula(torch.ops.flexvideo.selective_scan)
def scan_flops(u: Shape, delta: Shape, A: Shape, *rest: Any, out_shape: Any = None) -> int:
    """9 b l d n for the recurrence and b l d for the skip per direction, b l d for the gate."""
    k, b, l, d = u
    return b * l * d * (k * (9 * A[2] + 1) + 1)


@register_flop_formula(torch.ops.flexvideo.selective_scan_backward)
def scan_backward_flops(
    grad: Shape, u: Shape, delta: Shape, A: Shape, *rest: Any, out_shape: Any = None
) -> int:
    """Twice the forward pass, as for a matrix product."""
    return 2 * scan_flops(u, delta, A)


@register_flop_formula(torch.ops.flexvideo.causal_conv)
def conv_flops(x: Shape, weight: Shape, *rest: Any, out_shape: Any = None) -> int:
    """A multiplication and an addition per tap and output."""
    b, l, d = x
    return 2 * b * l * d * weight[0] * weight[2]


@register_flop_formula(torch.ops.flexvideo.causal_conv_backward)
def conv_backward_flops(grad: Shape, x: Shape, weight: Shape, *rest: Any, out_shape: Any = None) -> int:
    """Twice the forward pass."""
    return 2 * conv_flops(x, weight)
