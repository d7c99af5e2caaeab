"""The CUDA kernels of the normalisation: emulated on the CPU, and compiled where NVRTC is installed."""

import cuda_cpu
import pytest
import torch
from scan_cases import emulated, error, with_nvrtc

from flexvideo.errors import BackendError
from flexvideo.scan import norm, nvrtc
from flexvideo.scan.cuda_norm import norm_backward, norm_forward
from flexvideo.scan.mixing import fused

WIDE, HALF, NARROW = torch.float32, torch.float16, torch.bfloat16


@emulated
@pytest.mark.parametrize(
    ("kind", "dtype"), [(WIDE, WIDE), (WIDE, NARROW), (NARROW, NARROW), (NARROW, WIDE), (HALF, NARROW)]
)
@pytest.mark.parametrize("shape", [(2, 5, 70), (1, 67, 7), (3, 1, 1)])
def test_agrees_with_torch(shape, kind, dtype):
    torch.manual_seed(0)
    hidden, residual, weight = torch.randn(shape).to(kind), torch.randn(shape), torch.randn(shape[-1])
    bound = 1e-6 if dtype == kind == WIDE else 4e-3
    for before in (None, residual, residual.to(NARROW)):  # sharding in mixed precision casts what blocks get
        exact = norm.forward(hidden.float(), before, weight, 1e-5, WIDE)
        total, out = norm_forward(hidden, before, weight, 1e-5, dtype, run=cuda_cpu.run)
        assert (total.dtype, out.dtype) == (WIDE, dtype)
        assert error(total, exact[0]) < 1e-6
        assert error(out, exact[1]) < bound
    grad_total, grad = torch.randn(shape), torch.randn(shape).to(dtype)
    expected = norm.backward(grad_total, grad, total, weight, 1e-5, kind)
    found = norm_backward(grad_total, grad, total, weight, 1e-5, kind, run=cuda_cpu.run)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert error(a, b) < (1e-5 if a.dtype == WIDE else bound)


@pytest.mark.parametrize("at", [1, 2])
def test_tensors_on_two_devices_are_refused(at):
    tensors = [torch.zeros(1, 2, 4), torch.zeros(1, 2, 4), torch.ones(4)]
    tensors[at] = tensors[at].to("meta")
    name = ("input", "residual stream", "weight")[at]
    with pytest.raises(BackendError, match=f"The {name} of a normalisation is on meta, and its input on cpu"):
        fused("cuda").add_norm(*tensors, 1e-5, torch.float32)


@pytest.mark.slow
@with_nvrtc
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_compiles(architecture, tmp_path, monkeypatch):
    monkeypatch.setattr(nvrtc, "_folder", lambda: tmp_path)
    for wide in (0, 1):
        defines = {"DTYPE": 2, "PAIRS": 1 - wide, "WIDE_HIDDEN": wide, "WIDE_OUT": 0, "ADD": 1}
        assert nvrtc.compiled("cuda_norm.cu", tuple(defines.items()), architecture)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [192, 576, 7])
def test_agrees_on_the_device(width):
    hidden, residual = torch.randn(2, 301, width, device="cuda"), torch.randn(2, 301, width, device="cuda")
    weight = torch.randn(width, device="cuda")
    for kind, dtype in ((WIDE, NARROW), (NARROW, NARROW), (WIDE, WIDE)):
        x, grad = hidden.to(kind), hidden.flip(0).to(dtype)
        total, out = norm_forward(x, residual, weight, 1e-5, dtype)
        exact = norm.forward(x, residual, weight, 1e-5, dtype)
        found = (total, out, *norm_backward(residual, grad, total, weight, 1e-5, kind))
        for a, b in zip(
            found, (*exact, *norm.backward(residual, grad, total, weight, 1e-5, kind)), strict=True
        ):
            assert error(a, b) < (4e-3 if a.dtype == NARROW else 1e-5)
