"""The truth: the selective scan and the causal convolution as plain loops of differentiable torch operations.

Any dtype, any device, `torch.func.vmap` and double backward work through it; it is slow, and training with
it keeps every state. Every other backend is tested against this one.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which states are kept: float64 for float64 inputs, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def selective_scan(
    u: Float[Tensor, "k b l d"],
    delta: Float[Tensor, "k b l d"],
    A: Float[Tensor, "k d n"],
    B: Float[Tensor, "k b l n"],
    C: Float[Tensor, "k b l n"],
    D: Float[Tensor, "k d"],
    z: Float[Tensor, "b l d"],
    delta_bias: Float[Tensor, "k d"],
) -> Float[Tensor, "b l d"]:
    """Selective scan, one step at a time; see `flexvideo.scan.selective_scan`."""
    dtype = accumulation_dtype(u)
    u_, delta, A, B, C, D, gate, bias = (x.to(dtype) for x in (u, delta, A, B, C, D, z, delta_bias))
    dt = F.softplus(delta + bias[:, None, None])
    ys = [_scan(u_[k], dt[k], A[k], B[k], C[k], reverse=k == 1) + u_[k] * D[k] for k in range(len(u_))]
    return (sum(ys[1:], start=ys[0]) * F.silu(gate)).to(u.dtype)


def _scan(
    u: Float[Tensor, "b l d"],
    dt: Float[Tensor, "b l d"],
    A: Float[Tensor, "d n"],
    B: Float[Tensor, "b l n"],
    C: Float[Tensor, "b l n"],
    *,
    reverse: bool,
) -> Float[Tensor, "b l d"]:
    # unbind, not indexing: the backward of x[:, t] would build a whole sequence of zeros at every step
    steps = list(zip(*(x.unbind(1) for x in (u, dt, B, C)), strict=True))
    h = torch.zeros(u.shape[0], *A.shape, dtype=u.dtype, device=u.device)
    ys = []
    for u_t, dt_t, B_t, C_t in reversed(steps) if reverse else steps:
        h = torch.exp(dt_t[..., None] * A) * h + (dt_t * u_t)[..., None] * B_t[:, None]
        ys.append((h * C_t[:, None]).sum(-1))
    return torch.stack(ys[::-1] if reverse else ys, dim=1)


def causal_conv(
    x: Float[Tensor, "b l d"], weight: Float[Tensor, "k d w"], bias: Float[Tensor, "k d"]
) -> Float[Tensor, "k b l d"]:
    """Depthwise convolution and SiLU in both directions; see `flexvideo.scan.causal_conv`."""
    dtype = accumulation_dtype(x)
    taps, length = weight.shape[-1], x.shape[1]
    padded = F.pad(x.to(dtype), (0, 0, taps - 1, taps - 1))
    outs = []
    for k in range(len(weight)):
        # direction 1 reads the future: tap j looks at t + (taps - 1 - j) instead of t - (taps - 1 - j)
        starts = [j if k == 0 else 2 * (taps - 1) - j for j in range(taps)]
        terms = [padded[:, s : s + length] * weight[k, :, j].to(dtype) for j, s in enumerate(starts)]
        outs.append(F.silu(sum(terms[1:], start=terms[0]) + bias[k].to(dtype)))
    return torch.stack(outs).to(x.dtype)


def unavailable() -> str | None:
    """Always available."""
    return None
