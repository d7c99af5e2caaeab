"""What every GPU backend of the scan is given and held to; without Triton, which not every system has."""

import platform
import sys

import pytest
import torch

# dtype -> relative error of outputs, of gradients
TOLERANCES = {torch.float32: (1e-5, 1e-4), torch.float16: (2e-3, 4e-3), torch.bfloat16: (1e-2, 1e-2)}
# On the systems that have them a test without NVRTC, which the test extra brings, or g++ fails.
with_nvrtc = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="the test extra has NVRTC for Linux on x86 alone",
)
emulated = pytest.mark.skipif(
    sys.platform != "linux", reason="the emulation is built by g++, which other systems lack"
)


def scan_inputs(k, b, l, d, n, *, device, dtype=torch.float32, seed=0):
    """Random inputs of a scan; z, B and C are strided views, as in the model."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    u, delta = (x.to(device, dtype) for x in (draw(k, b, l, d), draw(k, b, l, d) - 1))
    A, rows = -torch.exp(draw(k, d, n)).to(device), draw(k, b, l, 4 + 2 * n).to(device, dtype)
    B, C, z = rows[..., 4 : 4 + n], rows[..., 4 + n :], draw(b, l, 2 * d).to(device, dtype)[..., d:]
    return [u, delta, A, B, C, draw(k, d).to(device), z, draw(k, d).to(device)]


def with_every_memory(inputs, decades):
    """The same with A from -1e-8 over so many powers of ten."""
    inputs, generator = list(inputs), torch.Generator().manual_seed(1)
    inputs[2] = -(10 ** (torch.rand(inputs[2].shape, generator=generator) * decades - 8))
    return inputs


def error(a, b):
    """Relative error, 0 where both are 0."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).norm() / b.norm().clamp(min=1e-300))


def conv_inputs(device, dtype):
    """Inputs of the convolution in one and two directions, on strided views."""
    for k, b, l, d, w in [(2, 2, 37, 20, 4), (1, 1, 1, 3, 3), (2, 1, 300, 5, 2)]:
        x = torch.randn(b, l, 2 * d)[..., :d].to(device, dtype)
        yield [x, torch.randn(k, d, w).to(device), torch.randn(k, d).to(device)]


def check(function, inputs, dtype, *, backend):
    """Output and gradients against the reference in float64 on the very numbers that the kernel gets.

    On the CPU, which is faster at thousands of small steps.
    """
    inputs = [x.detach().requires_grad_() for x in inputs]
    exact = [x.detach().double().cpu().requires_grad_() for x in inputs]
    out, truth = function(*inputs, backend=backend), function(*exact, backend="reference")
    upstream = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    grads = torch.autograd.grad(out, inputs, upstream.to(out.device))
    truths = torch.autograd.grad(truth, exact, upstream.double())
    forward, backward = TOLERANCES[dtype]
    assert out.dtype == dtype
    assert error(out, truth) < forward, error(out, truth)
    for i, (grad, expected, x) in enumerate(zip(grads, truths, inputs, strict=True)):
        assert (grad.dtype, grad.shape) == (x.dtype, x.shape), i
        assert error(grad, expected) < backward, (i, error(grad, expected))
