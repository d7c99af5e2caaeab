"""What the kernels of both GPU backends must do: nothing here knows how they are written."""

import functools

import pytest
import torch
from scan_cases import TOLERANCES, check, conv_inputs, error, scan_inputs

from flexvideo.scan import causal_conv, selective_scan

SHAPES = [
    (2, 2, 301, 96, 16),
    (2, 1, 1, 24, 16),
    (1, 3, 130, 40, 16),
    (2, 1, 97, 33, 64),
    (2, 1, 3137, 64, 16),
    (2, 1, 75, 10, 24),
]
pytestmark = [pytest.mark.gpu, pytest.mark.parametrize("backend", ["cuda", "triton"])]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", SHAPES)
def test_scan_agrees(backend, shape, dtype):
    check(selective_scan, scan_inputs(*shape, device="cuda", dtype=dtype), dtype, backend=backend)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_conv_agrees(backend, dtype):
    for inputs in conv_inputs("cuda", dtype):
        check(causal_conv, inputs, dtype, backend=backend)


@pytest.mark.parametrize("batch", [1, 5])
def test_gradients_are_the_same_bits_on_every_run(backend, batch):
    inputs = scan_inputs(2, batch, 3137, 384, 16, dtype=torch.bfloat16, device="cuda")
    conv = [torch.randn(batch, 3137, 384, device="cuda"), torch.randn(2, 384, 4, device="cuda"), inputs[5]]
    for function, tensors in ((selective_scan, inputs), (causal_conv, conv)):
        tensors = [x.detach().requires_grad_() for x in tensors]
        runs = []
        for _ in range(3):
            out = function(*tensors, backend=backend)
            runs.append((out, *torch.autograd.grad(out.square().sum(), tensors)))
        for run in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@functools.cache
def long_memory(length):
    """Inputs on the CPU, the truth, and the error of the sequential float32 reference."""
    inputs = scan_inputs(2, 1, length, 8, 16, device="cpu")
    inputs[1], inputs[2] = inputs[1] * 0.1 - 6, inputs[2] * 1e-4
    truth = selective_scan(*(x.double() for x in inputs), backend="reference")
    return inputs, truth, error(selective_scan(*inputs, backend="reference"), truth)


@pytest.mark.parametrize("length", [12545, 65537])
def test_long_memory_no_worse_than_the_sequential_float32(backend, length):
    inputs, truth, bound = long_memory(length)
    assert error(selective_scan(*(x.cuda() for x in inputs), backend=backend), truth) < max(1e-5, 2 * bound)


def test_opcheck(backend):
    inputs = [x.requires_grad_() for x in scan_inputs(2, 1, 40, 16, 16, device="cuda")]
    torch.library.opcheck(torch.ops.flexvideo.selective_scan.default, (*inputs, True, backend))
    conv = [torch.randn(s, device="cuda", requires_grad=True) for s in ((1, 40, 16), (2, 16, 4), (2, 16))]
    torch.library.opcheck(torch.ops.flexvideo.causal_conv.default, (*conv, backend))


def test_in_a_cuda_graph(backend):
    inputs = scan_inputs(2, 1, 500, 64, 16, device="cuda")
    expected = selective_scan(*inputs, backend=backend)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = selective_scan(*inputs, backend=backend)
    graph.replay()
    assert torch.equal(out, expected)
