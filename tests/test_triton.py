"""The Triton kernels: through Triton's interpreter on the CPU, and on a GPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flexvideo.scan import available_backends, causal_conv, selective_scan

# On Linux the test extra brings Triton, and a test without it must fail; it has no wheels for other systems.
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="Triton has wheels for Linux alone")
if sys.platform == "linux":
    import triton_cases as cases

HERE = Path(__file__).parent
GPU = {"device": "cuda"}


@on_linux
@pytest.mark.slow
def test_in_the_interpreter():
    # another process: Triton reads TRITON_INTERPRET when a kernel is defined, and for all kernels
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": f"{HERE.parent}:{HERE}"}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", HERE / "triton_cases.py"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def test_without_a_device_says_why():
    if importlib.util.find_spec("triton") is None:
        assert available_backends()["triton"] == "the module 'triton' is not installed."
    elif not torch.cuda.is_available():
        assert available_backends()["triton"] == "it needs a CUDA device."


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(2, 2, 301, 96, 16), (2, 1, 1, 24, 16), (1, 3, 130, 40, 16), (2, 1, 97, 33, 64)]
)
def test_scan_agrees(shape, dtype):
    cases.scan_agrees(shape, "cuda", dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_conv_agrees(dtype):
    cases.conv_agrees("cuda", dtype)


@pytest.mark.gpu
def test_spans_agree():
    cases.spans_agree("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_as_two_operators(dtype):
    cases.output_is_remade("cuda", dtype)
    cases.norm_agrees("cuda", dtype)
    cases.blocks_agree("cuda", dtype, outputs=(True, False))


@pytest.mark.gpu
def test_nan_propagates():
    cases.nan_propagates("cuda")


@pytest.mark.gpu
def test_extremes():
    cases.extremes_are_finite("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 5])
def test_gradients_are_the_same_bits_on_every_run(batch):
    inputs = cases.scan_inputs(2, batch, 3137, 384, 16, dtype=torch.bfloat16, **GPU)
    conv = [torch.randn(batch, 3137, 384, device="cuda"), torch.randn(2, 384, 4, device="cuda"), inputs[5]]
    for function, tensors in ((selective_scan, inputs), (causal_conv, conv)):
        tensors = [x.detach().requires_grad_() for x in tensors]
        runs = []
        for _ in range(3):
            out = function(*tensors, backend="triton")
            runs.append((out, *torch.autograd.grad(out.square().sum(), tensors)))
        for run in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("length", [12545, 65537])
def test_long_memory_no_worse_than_the_sequential_float32(length):
    inputs = cases.scan_inputs(2, 1, length, 8, 16, **GPU)
    inputs[1] = inputs[1] * 0.1 - 6
    inputs[2] = inputs[2] * 1e-4
    truth = selective_scan(*(x.double() for x in inputs), backend="reference")
    bound = cases.error(selective_scan(*inputs, backend="reference"), truth)
    assert cases.error(selective_scan(*inputs, backend="triton"), truth) < max(1e-5, 2 * bound)


@pytest.mark.gpu
def test_opcheck():
    inputs = [x.requires_grad_() for x in cases.scan_inputs(2, 1, 40, 16, 16, **GPU)]
    torch.library.opcheck(torch.ops.flexvideo.selective_scan.default, (*inputs, True, "triton"))
    conv = [torch.randn(s, device="cuda", requires_grad=True) for s in ((1, 40, 16), (2, 16, 4), (2, 16))]
    torch.library.opcheck(torch.ops.flexvideo.causal_conv.default, (*conv, "triton"))


@pytest.mark.gpu
def test_in_a_cuda_graph():
    inputs = cases.scan_inputs(2, 1, 500, 64, 16, **GPU)
    expected = selective_scan(*inputs, backend="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = selective_scan(*inputs, backend="triton")
    graph.replay()
    assert torch.equal(out, expected)
