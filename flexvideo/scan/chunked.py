"""The selective scan in plain torch operations, a chunk of steps at a time: for any device and dtype.

Slow next to a kernel, yet several times faster than the reference, and it keeps one state in 64: the backward
pass recomputes each chunk from the state at its start.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from flexvideo.scan.ops import Kernels, operators
from flexvideo.scan.reference import accumulation_dtype
from flexvideo.scan.reference import causal_conv as conv

CHUNK = 64


def scan(
    u: Float[Tensor, "k b l d"],
    delta: Float[Tensor, "k b l d"],
    A: Float[Tensor, "k d n"],
    B: Float[Tensor, "k b l n"],
    C: Float[Tensor, "k b l n"],
    D: Float[Tensor, "k d"],
    z: Float[Tensor, "b l d"],
    delta_bias: Float[Tensor, "k d"],
    *,
    keep: bool = True,
) -> tuple[Float[Tensor, "b l d"], list[Tensor]]:
    """The gated scan, and with `keep` the state at the start of every chunk."""
    dtype = accumulation_dtype(u)
    A, bias = A.to(dtype), delta_bias.to(dtype)[:, None, None]
    y = (u.to(dtype) * D.to(dtype)[:, None, None]).sum(0)
    h, states = A.new_zeros(*u.shape[:2], *A.shape[1:]), []
    for span in _spans(u.shape[2]):
        if keep:
            states.append(h)
        u_t, delta_t, B_t, C_t = (_take(x, span).to(dtype) for x in (u, delta, B, C))
        hs = _states(h, *_recurrence(u_t, F.softplus(delta_t + bias), A, B_t))
        h = hs[-1].clone()  # not a view, which would keep the whole chunk alive
        _give(y, (hs @ C_t.movedim(2, 0)[..., None]).squeeze(-1).movedim(0, 2), span)
    saved = [torch.stack(states, dim=-2).flatten(-2)] if keep else []
    return (y * F.silu(z.to(dtype))).to(u.dtype), saved


def scan_backward(
    grad: Float[Tensor, "b l d"],
    u: Float[Tensor, "k b l d"],
    delta: Float[Tensor, "k b l d"],
    A: Float[Tensor, "k d n"],
    B: Float[Tensor, "k b l n"],
    C: Float[Tensor, "k b l n"],
    D: Float[Tensor, "k d"],
    z: Float[Tensor, "b l d"],
    delta_bias: Float[Tensor, "k d"],
    saved: list[Tensor],
    *,
    remake: bool = False,
) -> tuple[Tensor, ...]:
    """Gradients of the eight inputs, chunk by chunk from the last step; with `remake` the output too."""
    dtype, kind = accumulation_dtype(u), u.dtype
    u, delta, A, B, C, D, z, grad = (x.to(dtype) for x in (u, delta, A, B, C, D, z, grad))
    bias, slope = delta_bias.to(dtype)[:, None, None], torch.sigmoid(z)
    grad_y = (grad * z * slope).expand(u.shape)
    y, d_u = (u * D[:, None, None]).sum(0), grad_y * D[:, None, None]
    d_delta, d_A, d_B, d_C = (torch.zeros_like(x) for x in (delta, A, B, C))
    states = saved[0].unflatten(-1, (-1, A.shape[-1])).unbind(-2)
    g = torch.zeros_like(states[0])  # gradient with respect to the state behind the chunk, decayed into it
    for span, h in reversed(list(zip(_spans(u.shape[2]), states, strict=True))):
        u_t, delta_t, B_t, C_t, gy_t = (_take(x, span) for x in (u, delta, B, C, grad_y))
        dt = F.softplus(delta_t + bias)
        decays, inputs = _recurrence(u_t, dt, A, B_t)
        hs = _states(h, decays, inputs)
        gs = _adjoint(g, decays, gy_t.movedim(2, 0)[..., None] * C_t.movedim(2, 0)[..., None, :])
        g = decays[0] * gs[0]
        d_exponent = gs * decays * torch.cat((h[None], hs[:-1]))
        g_B = torch.einsum("tkbdn,kbtn->kbtd", gs, B_t)
        d_dt = torch.einsum("tkbdn,kdn->kbtd", d_exponent, A) + g_B * u_t
        d_A += torch.einsum("tkbdn,kbtd->kdn", d_exponent, dt)
        _put(d_u, g_B * dt, span)
        _put(d_delta, d_dt * torch.sigmoid(delta_t + bias), span)
        _put(d_B, torch.einsum("tkbdn,kbtd->kbtn", gs, dt * u_t), span)
        _put(d_C, torch.einsum("tkbdn,kbtd->kbtn", hs, gy_t), span)
        _give(y, (hs @ C_t.movedim(2, 0)[..., None]).squeeze(-1).movedim(0, 2), span)
    d_z = grad * y * slope * (1 + z * (1 - slope))
    output = ((y * z * slope).to(kind),) if remake else ()
    return d_u, d_delta, d_A, d_B, d_C, (grad_y * u).sum((1, 2)), d_z, d_delta.sum((1, 2)), *output


def _recurrence(
    u: Float[Tensor, "k b t d"],
    dt: Float[Tensor, "k b t d"],
    A: Float[Tensor, "k d n"],
    B: Float[Tensor, "k b t n"],
) -> tuple[Float[Tensor, "t k b d n"], Float[Tensor, "t k b d n"]]:
    """What multiplies the state and what is added to it, at every step of a chunk."""
    decays = torch.exp(dt.movedim(2, 0)[..., None] * A[:, None])
    return decays, (dt * u).movedim(2, 0)[..., None] * B.movedim(2, 0)[..., None, :]


def _states(
    h: Float[Tensor, "k b d n"], decays: Float[Tensor, "t k b d n"], inputs: Float[Tensor, "t k b d n"]
) -> Float[Tensor, "t k b d n"]:
    """All states of a chunk, from the one before it; overwrites the inputs."""
    for decay, state in zip(decays, inputs, strict=True):
        h = state.addcmul_(decay, h)
    return inputs


def _adjoint(
    g: Float[Tensor, "k b d n"], decays: Float[Tensor, "t k b d n"], grads: Float[Tensor, "t k b d n"]
) -> Float[Tensor, "t k b d n"]:
    """Gradients with respect to all states of a chunk, from the one behind it; overwrites `grads`."""
    grads[-1].add_(g)
    for t in range(len(grads) - 2, -1, -1):
        grads[t].addcmul_(decays[t + 1], grads[t + 1])
    return grads


def _spans(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + CHUNK, length)) for start in range(0, length, CHUNK)]


def _part(x: Float[Tensor, "b l c"], k: int, span: tuple[int, int]) -> Float[Tensor, "b t c"]:
    """Steps of direction k, counted in its own order of time, still lying as in the sequence."""
    start, stop = span
    return x[:, x.shape[1] - stop : x.shape[1] - start] if k else x[:, start:stop]


def _take(x: Float[Tensor, "k b l c"], span: tuple[int, int]) -> Float[Tensor, "k b t c"]:
    """Steps of every direction, each in its own order of time."""
    parts = [_part(x[k], k, span) for k in range(len(x))]
    return torch.stack([part.flip(1) if k else part for k, part in enumerate(parts)])


def _put(x: Float[Tensor, "k b l c"], chunk: Float[Tensor, "k b t c"], span: tuple[int, int]) -> None:
    """Add a chunk in the directions' own order of time to a tensor that lies as the sequence."""
    for k, part in enumerate(chunk):
        _part(x[k], k, span).add_(part.flip(1) if k else part)


def _give(y: Float[Tensor, "b l c"], chunk: Float[Tensor, "k b t c"], span: tuple[int, int]) -> None:
    """Like `_put`, to the sum of the directions."""
    _put(y.expand(len(chunk), *y.shape), chunk, span)


def saved(u: Float[Tensor, "k b l d"], A: Float[Tensor, "k d n"]) -> list[Tensor]:
    """Empty tensors like those which `scan` saves."""
    # flat, as a dimension of the chunks alone would make compilers treat one chunk as a special case
    k, b, l, d = u.shape
    return [u.new_empty(k, b, d, -(-l // CHUNK) * A.shape[-1], dtype=accumulation_dtype(u))]


def conv_backward(
    grad: Float[Tensor, "k b l d"],
    x: Float[Tensor, "b l d"],
    weight: Float[Tensor, "k d w"],
    bias: Float[Tensor, "k d"],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the convolution's inputs."""
    dtype, taps, length = accumulation_dtype(x), weight.shape[-1], x.shape[1]
    padded = F.pad(x.to(dtype), (0, 0, taps - 1, taps - 1))
    d_x, d_weight, d_bias = torch.zeros_like(padded), torch.zeros_like(weight, dtype=dtype), []
    for k in range(len(weight)):
        spans = [slice(s, s + length) for s in (j if k == 0 else 2 * (taps - 1) - j for j in range(taps))]
        pre = sum(padded[:, span] * weight[k, :, j] for j, span in enumerate(spans)) + bias[k]
        slope = torch.sigmoid(pre)
        g = grad[k] * slope * (1 + pre * (1 - slope))
        d_bias.append(g.sum((0, 1)))
        for j, span in enumerate(spans):
            d_x[:, span] += g * weight[k, :, j]
            d_weight[k, :, j] = (g * padded[:, span]).sum((0, 1))
    return d_x[:, taps - 1 : taps - 1 + length], d_weight, torch.stack(d_bias)


def unavailable() -> str | None:
    """Always available."""
    return None


def _full_precision(function: Callable[..., Any]) -> Callable[..., Any]:
    """Without autocast, which would lower the precision of the products in here."""

    @functools.wraps(function)
    def wrapped(first: Tensor, *rest: Any, **options: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *rest, **options)

    return wrapped


KERNELS = Kernels(_full_precision(scan), _full_precision(scan_backward), saved, conv, conv_backward)
selective_scan, causal_conv = operators("chunked")
