"""Adapter to the CUDA kernels of mamba-ssm and causal-conv1d.

The two extension modules are imported directly: `import mamba_ssm` needs many packages that the kernels do
not. They want sequences last and know one direction only, so sequences are transposed, and flipped for the
backward direction, on the way in and out.
"""

import functools
import importlib
from types import ModuleType

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from flexvideo.scan.mixing import fused
from flexvideo.scan.ops import Kernels, operators

CHUNK = 2048  # steps between the states which the kernel keeps


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
    """The gated scan; with `keep` the kernel's states and the sum of the directions before the gate too."""
    y, states = torch.zeros_like(z, dtype=u.dtype), []
    for k in range(u.shape[0]):
        out, state, *_ = _extension("selective_scan_cuda").fwd(
            *_arguments(k, u, delta, A, B, C, D, delta_bias), True
        )
        y += _back(out, k)
        states.append(state.flatten(2))
    return y * F.silu(z), [torch.stack(states), y] if keep else []


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
    """Gradients of the eight inputs, and with `remake` the output; not deterministic, as the kernel."""
    states, y = saved
    slope = torch.sigmoid(z.float())
    grad_y = (grad * z * slope).to(u.dtype)
    d_z = grad * y * slope * (1 + z * (1 - slope))
    grads: list[list[Tensor]] = []
    for k in range(u.shape[0]):
        d_u, d_delta, d_A, d_B, d_C, d_D, d_bias, *_ = _extension("selective_scan_cuda").bwd(
            *_arguments(k, u, delta, A, B, C, D, delta_bias),
            _forth(grad_y, k), states[k].unflatten(2, (-1, 2 * A.shape[-1])), None, None, True, False,
        )  # fmt: skip
        sequences = [_back(x, k) for x in (d_u, d_delta, d_B.squeeze(1), d_C.squeeze(1))]
        grads.append([*sequences, d_A, d_D, d_bias])
    d_u, d_delta, d_B, d_C, d_A, d_D, d_bias = (torch.stack(both) for both in zip(*grads, strict=True))
    output = (y * F.silu(z),) if remake else ()
    return d_u, d_delta, d_A, d_B, d_C, d_D, d_z, d_bias, *output


def saved(u: Float[Tensor, "k b l d"], A: Float[Tensor, "k d n"]) -> list[Tensor]:
    """Empty tensors like those which `scan` saves."""
    k, b, l, d = u.shape
    # flat, as a dimension of the chunks alone would make compilers treat one chunk as a special case
    states = u.new_empty(k, b, d, -(-l // CHUNK) * 2 * A.shape[-1], dtype=torch.float32)
    return [states, u.new_empty(b, l, d)]


def conv(
    x: Float[Tensor, "b l d"], weight: Float[Tensor, "k d w"], bias: Float[Tensor, "k d"]
) -> Float[Tensor, "k b l d"]:
    """Depthwise convolution and SiLU in both directions."""
    outs = []
    for k in range(weight.shape[0]):
        columns = _channel_last(x, k)
        out = torch.empty_like(columns)
        _extension("causal_conv1d_cuda").causal_conv1d_fwd(
            columns, weight[k].contiguous(), bias[k].contiguous(), None, None, out, None, True
        )
        outs.append(_back(out, k))
    return torch.stack(outs)


def conv_backward(
    grad: Float[Tensor, "k b l d"],
    x: Float[Tensor, "b l d"],
    weight: Float[Tensor, "k d w"],
    bias: Float[Tensor, "k d"],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the three inputs."""
    d_x = torch.zeros_like(x)
    d_weight, d_bias = (torch.zeros_like(w, dtype=torch.float32) for w in (weight, bias))
    for k in range(weight.shape[0]):
        columns = _channel_last(x, k)
        part = torch.empty_like(columns)
        _extension("causal_conv1d_cuda").causal_conv1d_bwd(
            columns, weight[k].contiguous(), bias[k].contiguous(), _channel_last(grad[k], k).to(x.dtype),
            None, None, None, part, d_weight[k], d_bias[k], None, True,
        )  # fmt: skip
        d_x += _back(part, k)
    return d_x, d_weight, d_bias


def _arguments(
    k: int, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor
) -> list[Tensor | None]:
    """What both kernels take first; the gate is left to torch, because the directions share it."""
    u_, delta, B, C = (_forth(x[k].to(u.dtype), k) for x in (u, delta, B, C))
    A, D, bias = (x[k].float().contiguous() for x in (A, D, bias))
    return [u_, delta, A, B.unsqueeze(1), C.unsqueeze(1), D, None, bias]


def _forth(x: Float[Tensor, "b l c"], k: int) -> Float[Tensor, "b c l"]:
    """Sequence last, in the direction's own order of time."""
    return (x.flip(1) if k else x).mT.contiguous()


def _back(x: Float[Tensor, "b c l"], k: int) -> Float[Tensor, "b l c"]:
    return x.mT.flip(1) if k else x.mT


def _channel_last(x: Float[Tensor, "b l c"], k: int) -> Float[Tensor, "b c l"]:
    """Sequence last by strides only, where the convolution takes that: channels in multiples of 8."""
    if x.shape[-1] % 8:
        return _forth(x, k)
    return (x.flip(1) if k else x).contiguous().mT


@functools.cache
def _extension(name: str) -> ModuleType:
    return importlib.import_module(name)


def unavailable() -> str | None:
    """Why the kernels cannot run here."""
    if not torch.cuda.is_available():
        return "it needs a CUDA device, and torch finds none."
    for name, package in (("selective_scan_cuda", "mamba-ssm"), ("causal_conv1d_cuda", "causal-conv1d")):
        try:
            _extension(name)
        except ModuleNotFoundError:
            return f"the module {name!r} is not installed (pip install 'flexvideo[mamba]' brings {package})."
        except ImportError as error:
            return f"the module {name!r} of {package} does not load ({error})."
    return None


KERNELS = Kernels(scan, scan_backward, saved, conv, conv_backward)
selective_scan, causal_conv = operators("mamba-ssm")
FUSED = fused("mamba-ssm")
