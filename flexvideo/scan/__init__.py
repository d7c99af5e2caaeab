"""Selective scan and causal convolution of a bidirectional Mamba mixer: one seam, several backends.

A backend is a module with three functions: `selective_scan` and `causal_conv` (differentiable, the signatures
below without `backend`) and `unavailable() -> str | None` (one sentence saying why it cannot run here).
It may hold a constant `FUSED`, with which whole blocks run as two operators (`flexvideo.scan.mixing`).
Modules are imported when first asked for. Kernels which only know plain tensors get autograd, fake tensors
and FLOP counts from `flexvideo.scan.ops.operators`.

Tensors are stacked by direction, k = 1 or 2: [0] runs forward in time, [1] backward over the same un-flipped
tensors. Sequences are channel-last.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from flexvideo.errors import BackendError, GeometryError
from flexvideo.scan import mixing as mixing
from flexvideo.scan import ops as ops  # an exported program needs the operators, whichever backend runs
from flexvideo.scan.mixing import Fused as Fused
from flexvideo.scan.mixing import Normed as Normed
from flexvideo.scan.reference import accumulation_dtype as accumulation_dtype
from flexvideo.scan.registry import available_backends as available_backends
from flexvideo.scan.registry import backend_for
from flexvideo.scan.registry import check_name as check_name


def selective_scan(
    u: Float[Tensor, "k b l d"],
    delta: Float[Tensor, "k b l d"],
    A: Float[Tensor, "k d n"],
    B: Float[Tensor, "k b l n"],
    C: Float[Tensor, "k b l n"],
    D: Float[Tensor, "k d"],
    z: Float[Tensor, "b l d"],
    delta_bias: Float[Tensor, "k d"],
    *,
    backend: str = "auto",
) -> Float[Tensor, "b l d"]:
    """Run the gated selective scan of Mamba in one or both directions and sum the directions.

    With dt = softplus(delta + delta_bias): h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t, y_t = C_t h_t + D u_t,
    and the result is (sum over k of y) * silu(z). States are float32 (float64 for float64 inputs).

    Args:
        u: input of the recurrence.
        delta: step sizes before bias and softplus.
        A: decay rates, negative: -exp(A_log), float32.
        B: input projections, shared by all channels.
        C: output projections, shared by all channels.
        D: skip weights.
        z: gate, shared by the directions.
        delta_bias: bias of the step sizes.
        backend: "auto" or a name of `available_backends()`.

    Raises:
        GeometryError: shapes that do not belong together, other directions than 1 or 2, no tokens.
        ConfigError: an unknown backend.
        BackendError: a backend that cannot run here, or tensors on several devices.

    Example:
        >>> import torch
        >>> from flexvideo.scan import selective_scan
        >>> u, B, D, z = torch.ones(2, 1, 5, 4), torch.ones(2, 1, 5, 3), torch.ones(2, 4), torch.ones(1, 5, 4)
        >>> selective_scan(u, u, -torch.ones(2, 4, 3), B, B, D, z, D).shape
        torch.Size([1, 5, 4])

    Source: Mamba (arXiv 2312.00752), algorithm 2; both directions as in Vision Mamba (arXiv 2401.09417).
    """
    (k, b, l, d), n = u.shape, A.shape[-1]
    _check_sizes(k, l)
    _check("delta", delta, (k, b, l, d), u.device)
    _check("A", A, (k, d, n), u.device)
    _check("B", B, (k, b, l, n), u.device)
    _check("C", C, (k, b, l, n), u.device)
    _check("D", D, (k, d), u.device)
    _check("z", z, (b, l, d), u.device)
    _check("delta_bias", delta_bias, (k, d), u.device)
    module = backend_for(backend, u.device.type, u.dtype)
    return module.selective_scan(u, delta, A, B, C, D, z, delta_bias)


def causal_conv(
    x: Float[Tensor, "b l d"],
    weight: Float[Tensor, "k d w"],
    bias: Float[Tensor, "k d"],
    *,
    backend: str = "auto",
) -> Float[Tensor, "k b l d"]:
    """Convolve every channel with its own causal filter and apply SiLU, in one or both directions.

    Args:
        x: sequence.
        weight: filters; the last tap multiplies the current step, in both directions.
        bias: one per channel.
        backend: "auto" or a name of `available_backends()`.

    Raises:
        GeometryError: shapes that do not belong together, other directions than 1 or 2, no tokens.
        ConfigError: an unknown backend.
        BackendError: a backend that cannot run here, or tensors on several devices.

    Example:
        >>> import torch
        >>> from flexvideo.scan import causal_conv
        >>> causal_conv(torch.ones(1, 5, 4), torch.ones(2, 4, 3), torch.zeros(2, 4)).shape
        torch.Size([2, 1, 5, 4])
    """
    k, d, w = weight.shape
    _check_sizes(k, x.shape[1])
    _check("weight", weight, (k, x.shape[-1], w), x.device)
    _check("bias", bias, (k, d), x.device)
    module = backend_for(backend, x.device.type, x.dtype)
    return module.causal_conv(x, weight, bias)


def fused_operators(x: Float[Tensor, "b l d"], *, backend: str = "auto") -> Fused | None:
    """The operators as which a block may run, with few launches and little kept; None where there are none.

    Args:
        x: what the block is given.
        backend: "auto" or a name of `available_backends()`.

    Raises:
        ConfigError: an unknown backend.
        BackendError: a backend that cannot run here.

    Example:
        >>> import torch
        >>> from flexvideo.scan import fused_operators
        >>> fused_operators(torch.ones(1, 5, 4), backend="reference") is None
        True
    """
    return getattr(backend_for(backend, x.device.type, x.dtype), "FUSED", None)


def _check_sizes(k: int, l: int) -> None:
    """Refuse what no kernel is made for."""
    if k not in (1, 2) or l == 0:
        raise GeometryError(f"A scan takes 1 or 2 directions and at least 1 token, got {k} and {l}.")


def _check(name: str, x: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    """Refuse what a kernel, which sees addresses alone, would read past the end of, or not find."""
    if x.shape != shape:
        raise GeometryError(f"`{name}` has the shape {tuple(x.shape)}, and {shape} goes with the others.")
    if x.device != device:
        raise BackendError(
            f"`{name}` is on {x.device}, and the sequence on {device}: move both to one device."
        )
