"""Starts the kernels of `cuda_conv.cu`: the causal convolution with SiLU, and its gradients."""

from collections.abc import Callable

import torch
from torch import Tensor

from flexvideo.scan import nvrtc
from flexvideo.scan.cuda_forward import DTYPES, aligned

SOURCE = "cuda_conv.cu"
THREADS = 128  # of a block, two channels each
ROWS = 32  # of a block
LONG = 128  # rows of a block of the backward pass


def conv_forward(x: Tensor, weight: Tensor, bias: Tensor, *, run: Callable[..., None] = nvrtc.run) -> Tensor:
    """silu(depthwise convolution) in every direction: (k, b, l, d)."""
    (b, l, d), (k, _, taps) = x.shape, weight.shape
    x = x if x.stride(-1) == 1 else x.contiguous()
    out = x.new_empty(k, b, l, d)
    # the first row of direction 1 is done at the end of its window
    grid = (-(-d // (2 * THREADS)), -(-(l + (k - 1) * (taps - 1)) // ROWS), b)
    tensors = (x, weight.float().contiguous(), bias.float().contiguous(), out)
    defines = _variant(x, k, taps, ROWS)
    run(SOURCE, "conv_forward", grid, THREADS, *tensors, l, d, x.stride(0), x.stride(1), defines=defines)
    return out


def conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, *, run: Callable[..., None] = nvrtc.run
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (contiguous), the filters and the biases (float32)."""
    (b, l, d), (k, _, taps) = x.shape, weight.shape
    x, grad = x if x.stride(-1) == 1 else x.contiguous(), grad.contiguous()
    chunks = -(-l // LONG)
    dx = x.new_empty(b, l, d)
    dweight = torch.empty(b * chunks, k, taps, d, dtype=torch.float32, device=x.device)
    dbias = torch.empty(b * chunks, k, d, dtype=torch.float32, device=x.device)
    grid = (-(-d // (2 * THREADS)), chunks, b)
    tensors = (grad, x, weight.float().contiguous(), bias.float().contiguous(), dx, dweight, dbias)
    defines = _variant(x, k, taps, LONG) | {"PAIRS": int(aligned(2, x, grad))}
    run(SOURCE, "conv_backward", grid, THREADS, *tensors, l, d, x.stride(0), x.stride(1), defines=defines)
    return dx, dweight.sum(0).transpose(1, 2), dbias.sum(0)


def _variant(x: Tensor, k: int, taps: int, rows: int) -> dict[str, int]:
    sizes = {"DIRECTIONS": k, "TAPS": taps, "ROWS": rows}
    return {"DTYPE": DTYPES[x.dtype], **sizes, "PAIRS": int(aligned(2, x))}
