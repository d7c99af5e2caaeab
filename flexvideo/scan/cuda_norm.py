"""Starts the kernels of `cuda_norm.cu`: residual sum and RMS normalisation, and their gradients."""

import struct
from collections.abc import Callable

import torch
from torch import Tensor

from flexvideo.scan import nvrtc
from flexvideo.scan.cuda_forward import number_of

SOURCE = "cuda_norm.cu"
WARPS = 4  # of a block, a row each at a time
EACH = 32  # rows of a block of the backward pass


def norm_forward(
    hidden: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    eps: float,
    dtype: torch.dtype,
    *,
    run: Callable[..., None] = nvrtc.run,
) -> tuple[Tensor, Tensor]:
    """The sum in float32, and it normalised in `dtype`; without a residual the sum may be `hidden` itself."""
    hidden = hidden.contiguous() if hidden.dtype in (dtype, torch.float32) else hidden.float().contiguous()
    alone = residual is None and hidden.dtype == torch.float32
    total = hidden if alone else torch.empty_like(hidden, dtype=torch.float32)
    out = torch.empty_like(hidden, dtype=dtype)
    before = total if residual is None else residual.float().contiguous()
    tensors = (hidden, before, weight.float().contiguous(), total, out)
    rows, d = hidden.numel() // hidden.shape[-1], hidden.shape[-1]
    defines = _variant(tensors, hidden.dtype, dtype) | {"ADD": int(residual is not None)}
    run(
        SOURCE,
        "norm_forward",
        (-(-rows // WARPS), 1, 1),
        32 * WARPS,
        *tensors,
        rows,
        d,
        _bits(eps),
        defines=defines,
    )
    return total, out


def norm_backward(
    grad_total: Tensor,
    grad: Tensor,
    total: Tensor,
    weight: Tensor,
    eps: float,
    dtype: torch.dtype,
    *,
    run: Callable[..., None] = nvrtc.run,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the sum, the same in `dtype` (empty if that is float32), and of the weight (float32)."""
    if grad.dtype not in (dtype, torch.float32) and dtype != torch.float32:
        grad = grad.float()
    rows, d = total.numel() // total.shape[-1], total.shape[-1]
    blocks = -(-rows // EACH)
    d_total = torch.empty_like(total)
    d_hidden = total.new_empty(0 if dtype == torch.float32 else total.shape, dtype=dtype)
    d_weight = total.new_empty(blocks, d)
    tensors = (grad_total.contiguous(), grad.contiguous(), total, weight.float().contiguous(), d_total)
    defines = _variant((*tensors, d_hidden), dtype, grad.dtype) | {"ADD": 0}
    numbers = (rows, d, _bits(eps), EACH)
    shared = 4 * WARPS * d
    tensors += (d_hidden, d_weight)
    run(
        SOURCE,
        "norm_backward",
        (blocks, 1, 1),
        32 * WARPS,
        *tensors,
        *numbers,
        defines=defines,
        shared=shared,
    )
    return d_total, d_hidden, d_weight.sum(0)


def _variant(tensors: tuple[Tensor, ...], hidden: torch.dtype, out: torch.dtype) -> dict[str, int]:
    """Macros; of the two dtypes at most one is narrow, or both are the same."""
    even = tensors[0].shape[-1] % 2 == 0
    pairs = even and not any(x.data_ptr() % (2 * x.element_size()) for x in tensors)
    wide = {"WIDE_HIDDEN": int(hidden == torch.float32), "WIDE_OUT": int(out == torch.float32)}
    return {"DTYPE": number_of(out if hidden == torch.float32 else hidden), "PAIRS": int(pairs), **wide}


def _bits(eps: float) -> int:
    return int.from_bytes(struct.pack("<f", eps), "little")
