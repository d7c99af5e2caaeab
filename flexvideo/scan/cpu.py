"""The scan on a CPU by a small C kernel, compiled at first use: see `cpu.c` and `native.py`.

It works in the threads of torch's OpenMP, as many as `torch.get_num_threads()`. Where torch has no OpenMP,
and in forked processes, it starts threads of its own for each call.
"""

import ctypes
import math
import os

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from flexvideo.errors import BackendError, BackendMemoryError
from flexvideo.scan.native import CompileError, library, team
from flexvideo.scan.ops import Kernels, operators
from flexvideo.scan.registry import HOME

CHUNK, GROUP, ALIGN = 64, 64, 16  # steps between saved states, channels of a task: as in cpu.c; widest vector
SIZES = ("k", "b", "l", "d", "n")


def _struct(name: str, pointers: str, numbers: str) -> type[ctypes.Structure]:
    fields = [(field, ctypes.c_void_p) for field in pointers.split()]
    fields += [(field, ctypes.c_long) for field in numbers.split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


_Scan = _struct(
    "Scan",
    "u delta A B C D z bias out states grad d_u d_delta d_A d_B d_C d_D d_z d_bias",
    "k b l d n z_batch z_row",
)
_Conv = _struct("Conv", "x weight bias out grad d_x d_weight d_bias", "k b l d w x_batch x_row")


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
    """The gated scan, and with `keep` the state at every 64th step."""
    inputs = _scan_inputs(u, delta, A, B, C, D, z, delta_bias)
    padded = inputs["u"]
    out, kept = torch.empty_like(padded[0]), {"states": _states(padded, A)} if keep else {}
    _call("flexvideo_scan", _Scan, inputs | {"out": out} | kept, "z", n=A.shape[-1])
    return out[..., : u.shape[-1]].to(u.dtype), list(kept.values())


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
) -> tuple[Tensor, ...]:
    """Gradients of the eight inputs; sums over samples and channels are in a fixed order."""
    inputs = _scan_inputs(u, delta, A, B, C, D, z, delta_bias)
    (k, b, l, d), n = inputs["u"].shape, A.shape[-1]
    new = inputs["u"].new_empty
    grads = {
        "d_u": new(k, b, l, d),
        "d_delta": new(k, b, l, d),
        "d_A": new(b, k, n, d),
        "d_B": new(-(-d // GROUP), k, b, l, n),
        "d_C": new(-(-d // GROUP), k, b, l, n),
        "d_D": new(b, k, d),
        "d_z": new(b, l, d),
        "d_bias": new(b, k, d),
    }
    tensors = inputs | {"grad": _rows(grad), "states": saved[0]} | grads
    _call("flexvideo_scan_backward", _Scan, tensors, "z", n=n)
    grads |= {name: grads[name].sum(0) for name in ("d_A", "d_B", "d_C", "d_D", "d_bias")}
    grads["d_A"] = grads["d_A"].mT[:, : u.shape[-1]]
    return tuple(g if name in ("d_A", "d_B", "d_C") else g[..., : u.shape[-1]] for name, g in grads.items())


def saved(u: Float[Tensor, "k b l d"], A: Float[Tensor, "k d n"]) -> list[Tensor]:
    """Empty tensors like those which `scan` saves."""
    return [_states(u.new_empty(*u.shape[:3], -(-u.shape[3] // ALIGN) * ALIGN), A)]


def conv(
    x: Float[Tensor, "b l d"], weight: Float[Tensor, "k d w"], bias: Float[Tensor, "k d"]
) -> Float[Tensor, "k b l d"]:
    """Depthwise convolution and SiLU in both directions."""
    inputs = _conv_inputs(x, weight, bias)
    out = inputs["x"].new_empty(weight.shape[0], *inputs["x"].shape)
    _call("flexvideo_conv", _Conv, inputs | {"out": out}, "x", w=weight.shape[-1])
    return out[..., : x.shape[-1]].to(x.dtype)


def conv_backward(
    grad: Float[Tensor, "k b l d"],
    x: Float[Tensor, "b l d"],
    weight: Float[Tensor, "k d w"],
    bias: Float[Tensor, "k d"],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the three inputs."""
    inputs = _conv_inputs(x, weight, bias)
    (b, _, d), (k, _, w) = inputs["x"].shape, weight.shape
    new = inputs["x"].new_zeros
    grads = {"d_x": new(inputs["x"].shape), "d_weight": new(b, k, w, d), "d_bias": new(b, k, d)}
    _call("flexvideo_conv_backward", _Conv, inputs | {"grad": _rows(grad)} | grads, "x", w=w)
    width = x.shape[-1]
    d_weight = grads["d_weight"].sum(0).mT[:, :width]
    return grads["d_x"][..., :width], d_weight, grads["d_bias"].sum(0)[..., :width]


def _scan_inputs(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> dict[str, Tensor]:
    if u.dtype == torch.float64:
        raise BackendError(
            "The scan backend 'cpu' works in float32; use 'reference' or 'chunked' in float64."
        )
    return {
        "u": _rows(u),
        "delta": _rows(delta),
        "A": _rows(A.float().mT * math.log2(math.e)),
        "B": B.float().contiguous(),
        "C": C.float().contiguous(),
        "D": _rows(D),
        "z": _padded(z),
        "bias": _rows(bias),
    }


def _conv_inputs(x: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    if x.dtype == torch.float64:
        raise BackendError(
            "The scan backend 'cpu' works in float32; use 'reference' or 'chunked' in float64."
        )
    return {"x": _padded(x), "weight": _rows(weight.mT), "bias": _rows(bias)}


def _padded(x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d2"]:
    """Float32 with whole vectors of channels, which lie side by side."""
    x = F.pad(x.float(), (0, -x.shape[-1] % ALIGN)) if x.shape[-1] % ALIGN else x.float()
    return x if x.stride(-1) == 1 else x.contiguous()


def _rows(x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d2"]:
    return _padded(x).contiguous()


def _states(u: Float[Tensor, "k b l d2"], A: Float[Tensor, "k d n"]) -> Float[Tensor, "s d2"]:
    # flat, as a dimension of the chunks alone would make compilers treat one chunk as a special case
    k, b, l, d = u.shape
    return u.new_empty(-(-l // CHUNK) * k * b * A.shape[-1], d, dtype=torch.float32)


def _call(
    name: str, struct: type[ctypes.Structure], tensors: dict[str, Tensor], strided: str, **sizes: int
) -> None:
    """Call a kernel on these tensors; `strided` names the one whose rows may lie apart."""
    rows = tensors[strided]
    k, b, l, d = tensors["bias"].shape[0], *rows.shape
    sizes |= {"k": k, "b": b, "l": l, "d": d}
    sizes |= {f"{strided}_batch": rows.stride(0), f"{strided}_row": rows.stride(1)}
    arguments = struct(**{key: x.data_ptr() for key, x in tensors.items()}, **sizes)
    threads = ctypes.c_long(torch.get_num_threads())
    # a forked process has none of the threads of the one that imported torch, and would wait for ever
    own = team() if os.getpid() == HOME else None
    if getattr(library(), name)(ctypes.byref(arguments), threads, own):
        raise BackendMemoryError(
            f"No memory is left for the scan backend 'cpu' to work in, at {b} clips of {l} tokens: use a "
            "smaller batch or shorter clips."
        )


def unavailable() -> str | None:
    """Why the kernels cannot be built here."""
    try:
        library()
    except CompileError as error:
        return str(error)
    return None


KERNELS = Kernels(scan, scan_backward, saved, conv, conv_backward)
selective_scan, causal_conv = operators("cpu")
