"""The scan on NVIDIA GPUs by kernels in CUDA C, compiled by NVRTC at first use: neither a toolkit nor Triton.

`cuda_forward.*` (with `cuda_tile.cuh`, `cuda_ends.cu` and `cuda_chain.cu`) and `cuda_backward.*` (with
`cuda_back*`) hold the scan, `cuda_conv.*` the convolution, `cuda_norm.*` the normalisation,
`cuda_gather.*` the stacking of weights, `cuda_common.cuh` what they share; `nvrtc.py` compiles and starts
them.
Float64 is left to the reference. The Triton kernels do the same more slowly.
"""

import functools

import torch
from torch import Tensor

from flexvideo.scan import nvrtc
from flexvideo.scan.cuda_backward import backward_launch_for, scan_backward
from flexvideo.scan.cuda_conv import conv_backward, conv_forward
from flexvideo.scan.cuda_forward import kept, launch_for, number_of, scan_forward
from flexvideo.scan.cuda_gather import gather
from flexvideo.scan.cuda_norm import norm_backward, norm_forward
from flexvideo.scan.mixing import fused
from flexvideo.scan.ops import Kernels, operators

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    *,
    keep: bool = True,
) -> tuple[Tensor, list[Tensor]]:
    """Output, and with `keep` the states for the backward pass."""
    (_, b, l, d), device = u.shape, torch.cuda.get_device_properties(u.device)
    shared = device.shared_memory_per_multiprocessor
    launch = launch_for(b, l, d, A.shape[-1], multiprocessors=device.multi_processor_count, shared=shared)
    out, states = scan_forward(*alike(u, delta, A, B, C, D, z, delta_bias), launch=launch, keep=keep)
    return out.to(u.dtype), [states] if keep else []


def backward(
    grad: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    saved: list[Tensor],
    *,
    remake: bool = False,
) -> tuple[Tensor, ...]:
    """The 8 gradients, and with `remake` the output."""
    (k, b, _, d), device, states = u.shape, torch.cuda.get_device_properties(u.device), saved[0]
    launch = backward_launch_for(
        k,
        b,
        states.shape[2],
        d,
        A.shape[-1],
        multiprocessors=device.multi_processor_count,
        shared=device.shared_memory_per_multiprocessor - 1024,  # a block may have all but what CUDA takes
    )
    inputs = alike(u, delta, A, B, C, D, z, delta_bias)
    return scan_backward(grad.to(inputs[0].dtype), *inputs, states, launch=launch, remake=remake)


def alike(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Inputs:
    """What runs along the sequence in one dtype, the widest of them, and the rest in float32.

    Raises:
        BackendError: a dtype that the kernels do not have.
    """
    along = u, delta, B, C, z
    if len(dtypes := {x.dtype for x in along}) > 1:
        dtype = functools.reduce(torch.promote_types, dtypes)
        u, delta, B, C, z = (x.to(dtype) for x in along)
    number_of(u.dtype)  # refuses others
    return u, delta, A.float(), B, C, D.float(), z, delta_bias.float()


def saved(u: Tensor, A: Tensor) -> list[Tensor]:
    """Empty tensors like those that `scan` keeps."""
    k, b, l, d = u.shape
    return [A.new_empty(k, b, *kept(l, A.shape[-1]), d, dtype=torch.float32)]


def unavailable() -> str | None:
    """Why the kernels cannot run here."""
    if not torch.cuda.is_available() or torch.version.cuda is None:
        return "it needs a CUDA device."
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        return "it needs a GPU of compute capability 8.0 or newer."
    return nvrtc.unavailable(capability)


KERNELS = Kernels(scan, backward, saved, conv_forward, conv_backward, norm_forward, norm_backward, gather)
selective_scan, causal_conv = operators("cuda")
FUSED = fused("cuda")
