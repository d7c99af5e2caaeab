"""VideoMamba as its official code runs it, on the kernels of mamba-ssm and causal-conv1d.

Sequences come last, the backward direction gets a flipped copy, each direction is one fused function which
keeps few activations and finds the rest again (`checkpoint_lvl=1`), and the outputs are added. Padded, all of
it runs on a multiple of 2048 tokens, which those kernels work off anyway, and more slowly when the number of
tokens is odd, as it always is here.

The official mixers come with a fork of mamba-ssm that current PyTorch cannot build; this is written anew on
the kernels of the released packages.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flexvideo.models.mixer import STATE, BiMamba
from flexvideo.models.videomamba import VideoMamba

CHUNK = 2048
AddNorm = Callable[[Tensor, nn.Module, Tensor | None], tuple[Tensor, Tensor]]


class OfficialVideoMamba(nn.Module):
    """The weights of a VideoMamba, run the official way.

    Args:
        model: what to run; its parameters are used in place.
        padded: with a multiple of 2048 tokens in the mixers.
        add_norm: (output of a mixer, norm, residual) -> (normalised sum, sum); mamba-ssm's own kernel.
    """

    def __init__(self, model: VideoMamba, *, padded: bool, add_norm: AddNorm) -> None:
        super().__init__()
        self.model, self.padded, self.add_norm = model, padded, add_norm

    def forward(self, clip: Tensor) -> Tensor:
        hidden, residual = self.model.embed(clip), None
        for layer in self.model.layers:
            hidden, residual = self.add_norm(hidden, layer.norm, residual)
            hidden = mix(layer.mixer, hidden, padded=self.padded)
        hidden, _ = self.add_norm(hidden, self.model.norm_f, residual)
        return self.model.head(hidden[:, 0])


def mix(mixer: BiMamba, hidden: Tensor, *, padded: bool) -> Tensor:
    """One mixer over (B, L, D) tokens."""
    batch, length, _ = hidden.shape
    hidden = F.pad(hidden, (0, 0, 0, -length % CHUNK if padded else 0))
    # the product itself leaves sequences last: (B, 2 E, L), stored with the channels outermost
    xz = (mixer.in_proj.weight @ hidden.flatten(0, 1).t()).unflatten(1, (batch, -1)).transpose(0, 1)
    turned = Turn.apply(xz, length) if padded else xz.flip(-1)
    out, back = (direction(mixer, each, end) for each, end in ((xz, ""), (turned, "_b")))
    return mixer.out_proj((out[..., :length] + back[..., :length].flip(-1)).transpose(1, 2))


def direction(mixer: BiMamba, xz: Tensor, end: str) -> Tensor:
    """The inner part of the mixer with the parameters of one direction."""
    conv, x_proj, dt_proj = (getattr(mixer, name + end) for name in ("conv1d", "x_proj", "dt_proj"))
    A = -getattr(mixer, f"A{end}_log").float().exp()
    D, bias = getattr(mixer, f"D{end}").float(), dt_proj.bias.float()
    return Inner.apply(xz, conv.weight.squeeze(1), conv.bias, x_proj.weight, dt_proj.weight, bias, A, D)


class Turn(torch.autograd.Function):
    """Reverse the first steps of padded sequences and leave the rest where it is; its own inverse."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, length: int) -> Tensor:
        ctx.length = length
        order = torch.arange(x.shape[-1], device=x.device)
        order[:length] = order[:length].flip(0)
        return x.transpose(0, 1).index_select(-1, order).transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return Turn.forward(ctx, grad, ctx.length), None


class Inner(torch.autograd.Function):
    """Convolution, projections and gated scan of one direction, on (B, 2 E, L); gate last."""

    @staticmethod
    def forward(
        ctx: Any,
        xz: Tensor,
        conv_weight: Tensor,
        conv_bias: Tensor,
        x_weight: Tensor,
        dt_weight: Tensor,
        dt_bias: Tensor,
        A: Tensor,
        D: Tensor,
    ) -> Tensor:
        x_weight, dt_weight = x_weight.to(xz.dtype), dt_weight.to(xz.dtype)
        x, z = xz.chunk(2, dim=1)
        u = convolve(x, conv_weight, conv_bias)
        rows = u.transpose(1, 2).flatten(0, 1) @ x_weight.t()  # (B * L, R + 2 N)
        delta = step_sizes(rows, dt_weight, like=u)
        B, C = (part(rows, number, len(xz)) for number in (0, 1))
        scan = extension("selective_scan_cuda")
        out, states, gated = scan.fwd(u, delta, A, B, C, D, z, dt_bias, True)
        ctx.save_for_backward(
            xz, conv_weight, conv_bias, rows, x_weight, dt_weight, dt_bias, A, B, C, D, states, out
        )
        return gated

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        xz, conv_weight, conv_bias, rows, x_weight, dt_weight, dt_bias, A, B, C, D, states, out = (
            ctx.saved_tensors
        )
        d_xz, rank = torch.empty_like(xz), dt_weight.shape[1]
        (x, z), (d_x, d_z) = xz.chunk(2, dim=1), d_xz.chunk(2, dim=1)
        u = convolve(x, conv_weight, conv_bias)
        delta = step_sizes(rows, dt_weight, like=u)
        d_u, d_delta, d_A, d_B, d_C, d_D, d_bias, *_ = extension("selective_scan_cuda").bwd(
            u, delta, A, B, C, D, z, dt_bias, grad.contiguous(), states, out, d_z, True, False
        )
        d_delta, d_u = (each.transpose(0, 1).flatten(1) for each in (d_delta, d_u))  # (E, B * L)
        d_rows = torch.empty_like(rows)
        d_rows[:, :rank] = d_delta.t() @ dt_weight
        for number, each in enumerate((d_B, d_C)):
            d_rows[:, rank + number * STATE :][:, :STATE] = each.squeeze(1).transpose(1, 2).flatten(0, 1)
        d_u = torch.addmm(d_u, x_weight.t(), d_rows.t())
        d_conv = convolve_backward(
            x, conv_weight, conv_bias, d_u.unflatten(1, (len(xz), -1)).transpose(0, 1), d_x
        )
        d_weights = d_rows.t() @ u.transpose(1, 2).flatten(0, 1), d_delta @ rows[:, :rank]
        return d_xz, *d_conv, *d_weights, d_bias, d_A, d_D


def step_sizes(rows: Tensor, dt_weight: Tensor, *, like: Tensor) -> Tensor:
    """(B, E, L), stored as (E, B, L)."""
    low = rows[:, : dt_weight.shape[1]]
    return (dt_weight @ low.t()).unflatten(1, (len(like), -1)).transpose(0, 1)


def part(rows: Tensor, number: int, batch: int) -> Tensor:
    """B or C as the kernel takes them: (B, 1, N, L)."""
    start = rows.shape[1] - (2 - number) * STATE
    return rows[:, start : start + STATE].unflatten(0, (batch, -1)).mT.contiguous().unsqueeze(1)


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    out = torch.empty_like(x)
    extension("causal_conv1d_cuda").causal_conv1d_fwd(x, weight, bias, None, None, out, None, True)
    return out


def convolve_backward(
    x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor, d_x: Tensor
) -> tuple[Tensor, Tensor]:
    """Fills the gradient of x in and returns those of weight and bias."""
    d_weight, d_bias = (torch.zeros_like(each, dtype=torch.float32) for each in (weight, bias))
    extension("causal_conv1d_cuda").causal_conv1d_bwd(
        x, weight, bias, grad, None, None, None, d_x, d_weight, d_bias, None, True
    )
    return d_weight, d_bias


def extension(name: str) -> ModuleType:
    return importlib.import_module(name)


def official_add_norm() -> AddNorm:
    """mamba-ssm's fused addition and RMSNorm, by which the official code runs."""
    rms_norm_fn = _without_package("mamba_ssm", "mamba_ssm.ops.triton.layer_norm").rms_norm_fn

    def add_norm(hidden: Tensor, norm: nn.Module, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        return rms_norm_fn(
            hidden, norm.weight, None, residual=residual, eps=norm.eps, prenorm=True, residual_in_fp32=True
        )

    return add_norm


def _without_package(package: str, module: str) -> ModuleType:
    """A module of a package whose own `__init__`, which imports 15 seconds' worth of others, does not run."""
    if package not in sys.modules:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.submodule_search_locations is None:
            raise ModuleNotFoundError(f"the package {package!r} is not installed", name=package)
        empty = ModuleType(package)
        empty.__path__, empty.__spec__ = list(spec.submodule_search_locations), spec
        sys.modules[package] = empty
    return importlib.import_module(module)
