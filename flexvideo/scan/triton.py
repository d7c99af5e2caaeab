"""The scan on NVIDIA GPUs by Triton kernels: no build step, both directions in one launch.

`triton_scan.py` and `triton_backward.py` hold the scan, `triton_conv.py` the convolution, `triton_tile.py`
what they share, `triton_norm.py` the normalisation. Float64 is left to the reference.
"""

import os
import shutil

import torch
import triton
from torch import Tensor

from flexvideo.scan.mixing import fused
from flexvideo.scan.ops import Kernels, operators
from flexvideo.scan.triton_conv import conv_backward, conv_forward
from flexvideo.scan.triton_gradients import scan_backward
from flexvideo.scan.triton_norm import norm_backward, norm_forward
from flexvideo.scan.triton_scan import launch_for, multiprocessors, scan_forward


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
    launch = launch_for(*u.shape, A.shape[-1], multiprocessors(u.device))
    out, states = scan_forward(u, delta, A, B, C, D, z, delta_bias, launch=launch, keep=keep)
    return out, [states] if keep else []


def backward(
    grad: Tensor, *inputs_and_saved: Tensor | list[Tensor], remake: bool = False
) -> tuple[Tensor, ...]:
    """The 8 gradients, and with `remake` the output."""
    *inputs, (states,) = inputs_and_saved
    u, A = inputs[0], inputs[2]
    launch = launch_for(*u.shape, A.shape[-1], multiprocessors(u.device))
    return scan_backward(grad, *inputs, states, launch=launch, remake=remake)


def saved(u: Tensor, A: Tensor) -> list[Tensor]:
    """Empty tensors like those that `scan` keeps."""
    k, b, l, d = u.shape
    launch = launch_for(k, b, l, d, A.shape[-1], multiprocessors(u.device))
    return [A.new_empty(k, b, launch.blocks, launch.states, d)]


def unavailable() -> str | None:
    """Why the kernels cannot run here."""
    if triton.knobs.runtime.interpret:
        return None
    if not torch.cuda.is_available():
        return "it needs a CUDA device."
    if torch.cuda.get_device_capability() < (8, 0):
        return "it needs a GPU of compute capability 8.0 or newer."
    if os.environ.get("CC") is None and not any(shutil.which(name) for name in ("gcc", "clang")):
        return (
            "Triton needs a C compiler to start a kernel, and finds none (it looks for $CC, gcc and clang)."
        )
    return None


KERNELS = Kernels(scan, backward, saved, conv_forward, conv_backward, norm_forward, norm_backward)
selective_scan, causal_conv = operators("triton")
FUSED = fused("triton")
