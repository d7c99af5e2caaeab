"""The CUDA kernels of the convolution: emulated on the CPU, and compiled by NVRTC where that is installed."""

import cuda_cpu
import pytest
import torch
from scan_cases import emulated, error, with_nvrtc

from flexvideo.scan import cuda_conv, nvrtc
from flexvideo.scan.cuda_conv import LOADS, LONG, ROWS, conv_backward, conv_forward
from flexvideo.scan.reference import causal_conv

MORE = [(2, 1, 9, 6, 4), (1, 1, 70, 520, 4)]  # pairs of channels; several blocks of them


@emulated
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("k", "b", "l", "d", "taps"),
    [
        (2, 2, 37, 20, 4),
        (1, 1, 1, 3, 3),
        (2, 1, 130, 5, 2),
        (2, 2, 129, 8, 4),
        (2, 1, 9, 6, 4),
        (1, 1, 70, 520, 4),
    ],
)
def test_agrees_with_the_reference(k, b, l, d, taps, dtype):
    torch.manual_seed(0)
    inputs = [torch.randn(b, l, 2 * d)[..., :d].to(dtype), torch.randn(k, d, taps), torch.randn(k, d)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    truth, out = causal_conv(*exact), conv_forward(*inputs, run=cuda_cpu.run)
    grad = torch.randn(truth.shape).to(dtype)
    expected = torch.autograd.grad(truth, exact, grad.double())
    bound = 1e-6 if dtype == torch.float32 else 4e-3
    assert error(out, truth) < bound
    for i, gradient in enumerate(conv_backward(grad, *inputs, run=cuda_cpu.run)):
        assert error(gradient, expected[i]) < bound, i


@emulated
def test_blocks_of_a_large_batch(monkeypatch):
    monkeypatch.setattr(cuda_conv, "FEW", 0)
    torch.manual_seed(0)
    inputs = [torch.randn(1, 67, 8), torch.randn(2, 8, 4), torch.randn(2, 8)]
    truth = causal_conv(*(x.double() for x in inputs))
    assert error(conv_forward(*inputs, run=cuda_cpu.run), truth) < 1e-6


@pytest.mark.slow
@with_nvrtc
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_compiles(architecture, tmp_path, monkeypatch):
    monkeypatch.setattr(nvrtc, "_folder", lambda: tmp_path)
    for dtype in range(3):
        for rows in (ROWS, LONG):
            defines = {"DTYPE": dtype, "DIRECTIONS": 2, "TAPS": 4, "ROWS": rows, "PAIRS": 1}
            defines |= {"QUADS": int(rows == ROWS), "LOADS": LOADS}
            assert nvrtc.compiled("cuda_conv.cu", tuple(defines.items()), architecture)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("b", "l", "d"), [(1, 3137, 1152), (6, 3137, 384), (2, 9001, 72), (2, 301, 70)])
def test_agrees_on_the_device(b, l, d, dtype):
    x = torch.randn(b, l, 2 * d, device="cuda").to(dtype)[..., :d]
    weight, bias = torch.randn(2, d, 4, device="cuda"), torch.randn(2, d, device="cuda")
    truth = causal_conv(x.double(), weight.double(), bias.double())
    assert error(conv_forward(x, weight, bias), truth) < (1e-5 if dtype == torch.float32 else 4e-3)
