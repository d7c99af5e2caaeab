"""The scan as torch's `scan` operator, which the ONNX exporter turns into an ONNX Scan.

Every backend gives way to this one during `torch.onnx.export(..., dynamo=True)`; elsewhere it is not used.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch._higher_order_ops.scan import scan_op

from flexvideo.scan.reference import accumulation_dtype
from flexvideo.scan.reference import causal_conv as causal_conv


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
    """Selective scan as a graph; see `flexvideo.scan.selective_scan`."""
    dtype, (k, b, _, d), n = accumulation_dtype(u), u.shape, A.shape[-1]
    u_, delta, A, B, C, D, gate, bias = (x.to(dtype) for x in (u, delta, A, B, C, D, z, delta_bias))
    dt = F.softplus(delta + bias[:, None, None])

    def step(h: Tensor, now: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
        dt_t, x_t, B_t, C_t = now.split((d, d, n, n), dim=-1)
        h = torch.exp(dt_t[..., None] * A[:, None]) * h + x_t[..., None] * B_t[..., None, :]
        return h, (h * C_t[..., None, :]).sum(-1)

    # one sequence and one state: the exporter of torch 2.13 miscounts when their numbers differ
    steps = torch.cat((dt, dt * u_, B, C), dim=-1)
    _, ys = scan_op(step, (u_.new_zeros(k, b, d, n),), (_turned(steps).movedim(2, 0),), (A,))
    y = _turned(ys.movedim(0, 2)) + u_ * D[:, None, None]
    return (y.sum(0) * F.silu(gate)).to(u.dtype)


def _turned(x: Float[Tensor, "k b l c"]) -> Float[Tensor, "k b l c"]:
    """Direction 1 in its own order of time, or back."""
    return torch.cat((x[:1], x[1:].flip(2)))
