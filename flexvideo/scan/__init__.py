"""Selective scan and causal convolution of a bidirectional Mamba mixer: one seam, several backends.

A backend is a module with three functions: `selective_scan` and `causal_conv` (differentiable, the signatures
below without `backend`) and `unavailable() -> str | None` (one sentence saying why it cannot run here).
Modules are imported when first asked for. Kernels which only know plain tensors get autograd, fake tensors
and FLOP counts from `flexvideo.scan.ops.operators`.

Tensors are stacked by direction, k = 1 or 2: [0] runs forward in time, [1] backward over the same un-flipped
tensors. Sequences are channel-last.
"""

import functools
import importlib
import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from flexvideo.errors import BackendError, ConfigError
from flexvideo.scan.reference import accumulation_dtype as accumulation_dtype

MODULES = {
    "reference": "flexvideo.scan.reference",
    "chunked": "flexvideo.scan.chunked",
    "cpu": "flexvideo.scan.cpu",
    "triton": "flexvideo.scan.triton",
    "mamba-ssm": "flexvideo.scan.mamba_ssm",
}
PREFERENCE = {"cuda": ("triton", "mamba-ssm", "reference"), "cpu": ("reference",)}


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
        ConfigError: an unknown backend.
        BackendError: a backend that cannot run here.

    Example:
        >>> from flexvideo.scan import selective_scan
        >>> u, B, D, z = torch.ones(2, 1, 5, 4), torch.ones(2, 1, 5, 3), torch.ones(2, 4), torch.ones(1, 5, 4)
        >>> selective_scan(u, u, -torch.ones(2, 4, 3), B, B, D, z, D, backend="reference").shape
        torch.Size([1, 5, 4])

    Source: Mamba (arXiv 2312.00752), algorithm 2; both directions as in Vision Mamba (arXiv 2401.09417).
    """
    scan = _module(_choose(backend, u)).selective_scan
    return scan(u, delta, A, B, C, D, z, delta_bias)


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
        ConfigError: an unknown backend.
        BackendError: a backend that cannot run here.

    Example:
        >>> from flexvideo.scan import causal_conv
        >>> causal_conv(torch.ones(1, 5, 4), torch.ones(2, 4, 3), torch.zeros(2, 4), backend="reference").shape
        torch.Size([2, 1, 5, 4])
    """
    return _module(_choose(backend, x)).causal_conv(x, weight, bias)


def available_backends() -> dict[str, str | None]:
    """Every backend by name, with None where it can run and one sentence saying why where it cannot.

    Example:
        >>> from flexvideo.scan import available_backends
        >>> available_backends()["reference"] is None
        True
    """
    return {name: _reason(name) for name in MODULES}


def _choose(backend: str, x: Tensor) -> str:
    if backend == "auto":
        return "reference" if x.dtype == torch.float64 else _preferred(x.device.type)
    if backend not in MODULES:
        raise ConfigError(f"Unknown scan backend {backend!r}; known: 'auto', {str(list(MODULES))[1:-1]}.")
    if reason := _reason(backend):
        raise BackendError(f"The scan backend {backend!r} cannot run here: {reason} Use scan_backend='auto'.")
    return backend


@functools.cache
def _preferred(device: str) -> str:
    """The first backend of the device's list that can run; says once which ones could not, and why."""
    names = PREFERENCE.get(device, ("reference",))
    reasons = {name: _reason(name) for name in names}
    chosen = next(name for name in names if reasons[name] is None)
    skipped = [f"{name!r}: {reasons[name]}" for name in names[: names.index(chosen)]]
    if chosen == "reference" and skipped:
        text = (
            f"No fast selective scan can run on {device!r}; using slow torch operations. {' '.join(skipped)}"
        )
        warnings.warn(text, stacklevel=4)
    return chosen


@functools.cache
def _reason(name: str) -> str | None:
    try:
        module = _module(name)
    except ImportError as error:
        return f"it needs the module {error.name!r}, which is not installed."
    return module.unavailable()


@functools.cache
def _module(name: str):
    return importlib.import_module(MODULES[name])
