"""Starts the kernels of `cuda_conv.cu`: the causal convolution with SiLU, and its gradients."""

from collections.abc import Callable

import torch
from torch import Tensor

from flexvideo.scan import nvrtc
from flexvideo.scan.cuda_forward import aligned, number_of

SOURCE = "cuda_conv.cu"
THREADS = 128  # of a block, two or four channels each
ROWS = 32  # of a block
FEW = 1 << 14  # tokens below which blocks are half as long, so that every multiprocessor has some
LOADS = 4  # rows that a thread asks for ahead
LONG = 128  # rows of a block of the backward pass


def conv_forward(x: Tensor, weight: Tensor, bias: Tensor, *, run: Callable[..., None] = nvrtc.run) -> Tensor:
    """silu(depthwise convolution) in every direction: (k, b, l, d)."""
    (b, l, d), (k, _, taps) = x.shape, weight.shape
    x = x if x.stride(-1) == 1 else x.contiguous()
    out = x.new_empty(k, b, l, d)
    quads, rows = aligned(4, x), ROWS if b * l >= FEW else ROWS // 2
    groups = -(-d // (4 if quads else 2))
    blocks = -(-groups // THREADS)
    threads = -(-groups // (32 * blocks)) * 32  # as many as leave few without channels
    # the first row of direction 1 is done at the end of its window
    grid = (blocks, -(-(l + (k - 1) * (taps - 1)) // rows), b)
    tensors = (x, _filters(weight), bias.float().contiguous(), out)
    defines = _variant(x, k, taps, rows, pairs=quads or aligned(2, x)) | {"QUADS": int(quads)}
    run(SOURCE, "conv_forward", grid, threads, *tensors, l, d, x.stride(0), x.stride(1), defines=defines)
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
    tensors = (grad, x, _filters(weight), bias.float().contiguous(), dx, dweight, dbias)
    defines = _variant(x, k, taps, LONG, pairs=aligned(2, x, grad)) | {"QUADS": 0}
    run(SOURCE, "conv_backward", grid, THREADS, *tensors, l, d, x.stride(0), x.stride(1), defines=defines)
    return dx, dweight.sum(0).transpose(1, 2), dbias.sum(0)


def _filters(weight: Tensor) -> Tensor:
    """Filters in float32, of which four taps are one load."""
    weight = weight.float().contiguous()
    return weight if weight.data_ptr() % 16 == 0 else weight.clone()


def _variant(x: Tensor, k: int, taps: int, rows: int, *, pairs: bool) -> dict[str, int]:
    sizes = {"DIRECTIONS": k, "TAPS": taps, "ROWS": rows, "LOADS": LOADS}
    return {"DTYPE": number_of(x.dtype), **sizes, "PAIRS": int(pairs)}
