"""The backend of CUDA kernels as a whole: on a GPU, and what it refuses."""

import dataclasses
import locale
from functools import partial
from types import SimpleNamespace

import cuda_cpu
import pytest
import torch
from cuda_cases import emulated, error, scan_inputs

from flexvideo import VideoMamba
from flexvideo.errors import BackendError
from flexvideo.scan import available_backends, causal_conv, cuda, nvrtc, registry, selective_scan
from flexvideo.scan.cuda_conv import conv_forward
from flexvideo.scan.cuda_norm import norm_forward

# dtype -> relative error of outputs, of gradients
TOLERANCES = {torch.float32: (1e-5, 1e-4), torch.float16: (2e-3, 4e-3), torch.bfloat16: (1e-2, 1e-2)}
SHAPES = [
    (2, 2, 301, 96, 16),
    (2, 1, 1, 24, 16),
    (1, 3, 130, 40, 16),
    (2, 1, 97, 33, 64),
    (2, 1, 3137, 64, 16),
    (2, 1, 75, 10, 24),
]


def check(function, inputs, dtype):
    """Output and gradients against the reference in float64 on the very numbers that the kernel gets."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    out, truth = function(*inputs, backend="cuda"), function(*exact, backend="reference")
    upstream = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1)).to(truth.device, dtype)
    grads = torch.autograd.grad(out, inputs, upstream)
    truths = torch.autograd.grad(truth, exact, upstream.double())
    forward, backward = TOLERANCES[dtype]
    assert out.dtype == dtype
    assert error(out, truth) < forward, error(out, truth)
    for i, (grad, expected, x) in enumerate(zip(grads, truths, inputs, strict=True)):
        assert (grad.dtype, grad.shape) == (x.dtype, x.shape), i
        assert error(grad, expected) < backward, (i, error(grad, expected))


@pytest.fixture
def emulation(monkeypatch):
    """The backend on the CPU, as if on a device of two multiprocessors."""
    device = SimpleNamespace(multi_processor_count=2, shared_memory_per_multiprocessor=228 << 10)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    monkeypatch.setattr(registry, "reason", lambda _: None)
    for name in ("scan_forward", "scan_backward"):
        monkeypatch.setattr(cuda, name, partial(getattr(cuda, name), run=cuda_cpu.run))
    plain = ("conv", "conv_backward", "add_norm", "add_norm_backward", "gather")
    here = {name: partial(getattr(cuda.KERNELS, name), run=cuda_cpu.run) for name in plain}
    monkeypatch.setattr(cuda, "KERNELS", dataclasses.replace(cuda.KERNELS, **here))


def gradients_of_a_model(backend):
    """Output of a small model, and the gradients of its parameters."""
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_frames": 4}
    model = VideoMamba(**sizes, drop_path_rate=0.0, scan_backend=backend)
    x = torch.rand(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    out = model(x)
    with torch.no_grad():
        assert torch.equal(model(x), out)
    out.square().sum().backward()
    return [out, *(x.grad for x in model.parameters())]


@emulated
@pytest.mark.slow
@pytest.mark.usefixtures("emulation")
def test_a_whole_model_in_the_emulation():
    found, expected = gradients_of_a_model("cuda"), gradients_of_a_model("reference")
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or error(a, b) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", SHAPES)
def test_scan_agrees(shape, dtype):
    check(selective_scan, scan_inputs(*shape, device="cuda", dtype=dtype), dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_conv_agrees(dtype):
    for k, b, l, d, w in [(2, 2, 37, 20, 4), (1, 1, 1, 3, 3), (2, 1, 300, 5, 2)]:
        x = torch.randn(b, l, 2 * d)[..., :d].to("cuda", dtype)
        check(causal_conv, [x, torch.randn(k, d, w).cuda(), torch.randn(k, d).cuda()], dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 5])
def test_gradients_are_the_same_bits_on_every_run(batch):
    inputs = scan_inputs(2, batch, 3137, 384, 16, dtype=torch.bfloat16, device="cuda")
    conv = [torch.randn(batch, 3137, 384, device="cuda"), torch.randn(2, 384, 4, device="cuda"), inputs[5]]
    for function, tensors in ((selective_scan, inputs), (causal_conv, conv)):
        tensors = [x.detach().requires_grad_() for x in tensors]
        runs = []
        for _ in range(3):
            out = function(*tensors, backend="cuda")
            runs.append((out, *torch.autograd.grad(out.square().sum(), tensors)))
        for run in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("length", [12545, 65537])
def test_long_memory_no_worse_than_the_sequential_float32(length):
    inputs = scan_inputs(2, 1, length, 8, 16, device="cuda")
    inputs[1], inputs[2] = inputs[1] * 0.1 - 6, inputs[2] * 1e-4
    truth = selective_scan(*(x.double() for x in inputs), backend="reference")
    bound = error(selective_scan(*inputs, backend="reference"), truth)
    assert error(selective_scan(*inputs, backend="cuda"), truth) < max(1e-5, 2 * bound)


@pytest.mark.gpu
def test_opcheck():
    inputs = [x.requires_grad_() for x in scan_inputs(2, 1, 40, 16, 16, device="cuda")]
    torch.library.opcheck(torch.ops.flexvideo.selective_scan.default, (*inputs, True, "cuda"))
    conv = [torch.randn(s, device="cuda", requires_grad=True) for s in ((1, 40, 16), (2, 16, 4), (2, 16))]
    torch.library.opcheck(torch.ops.flexvideo.causal_conv.default, (*conv, "cuda"))


@pytest.mark.gpu
def test_in_a_cuda_graph():
    inputs = scan_inputs(2, 1, 500, 64, 16, device="cuda")
    expected = selective_scan(*inputs, backend="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = selective_scan(*inputs, backend="cuda")
    graph.replay()
    assert torch.equal(out, expected)


@pytest.mark.gpu
def test_mixed_dtypes_and_another_stream():
    inputs = scan_inputs(2, 1, 50, 64, 16, dtype=torch.bfloat16, device="cuda")
    inputs[1] = inputs[1].float()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        out = selective_scan(*inputs, backend="cuda")
    torch.cuda.synchronize()
    assert out.dtype == torch.bfloat16
    assert error(out, selective_scan(*(x.double() for x in inputs), backend="reference")) < 1e-2


def test_without_a_device_says_why():
    if not torch.cuda.is_available():
        assert available_backends()["cuda"] == "it needs a CUDA device."


def test_float64_is_refused():
    inputs = [x.double() for x in scan_inputs(1, 1, 2, 2, 4, device="cpu")]
    with pytest.raises(BackendError, match=r"float16 and bfloat16, got torch\.float64: use 'reference'"):
        cuda.alike(*inputs)


def test_float64_is_refused_by_each_kernel():
    wide, weight = torch.zeros(1, 3, 4, dtype=torch.double), torch.ones(4)
    for start in (
        lambda: conv_forward(wide, torch.zeros(2, 4, 4), torch.zeros(2, 4)),
        lambda: norm_forward(wide, None, weight, 1e-5, torch.double),
    ):
        with pytest.raises(BackendError, match=r"works in float32, float16 and bfloat16, got torch\.float64"):
            start()


def test_what_was_cut_short_is_compiled_again(tmp_path, monkeypatch):
    monkeypatch.setattr(nvrtc, "_folder", lambda: tmp_path)
    monkeypatch.setattr(nvrtc, "_compiler", lambda: None)
    monkeypatch.setattr(nvrtc, "_version", lambda compiler: b"1")
    monkeypatch.setattr(nvrtc, "_compile", lambda *arguments: b"whole")
    assert nvrtc.compiled("cuda_norm.cu", (), "sm_90") == b"whole"
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(b"")
    assert nvrtc.compiled("cuda_norm.cu", (), "sm_90") == b"whole"
    assert kept.read_bytes() == b"whole"
    monkeypatch.setattr(nvrtc, "_folder", lambda: tmp_path / "gone")
    with pytest.warns(UserWarning, match="cannot be kept and are compiled anew next time: .*gone"):
        assert nvrtc.compiled("cuda_norm.cu", (), "sm_90") == b"whole"


@pytest.mark.skipif(nvrtc.unavailable() is not None, reason="NVRTC is not installed")
def test_the_compiler_leaves_the_locale_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(nvrtc, "_folder", lambda: tmp_path)
    before = locale.getencoding()
    defines = {"DTYPE": 2, "PAIRS": 1, "WIDE_HIDDEN": 0, "WIDE_OUT": 0, "ADD": 1}
    assert nvrtc.compiled("cuda_norm.cu", tuple(defines.items()), "sm_80")
    assert locale.getencoding() == before


def test_an_empty_batch_starts_nothing():
    nvrtc.run("none.cu", "none", (1, 0, 1), 32, torch.zeros(1), defines={})


def test_widest_dtype_is_taken():
    inputs = scan_inputs(1, 1, 2, 2, 4, dtype=torch.bfloat16, device="cpu")
    inputs[1] = inputs[1].float()
    assert {x.dtype for x in cuda.alike(*inputs)} == {torch.float32}


def test_states_are_as_promised():
    u, A = torch.empty(2, 3, 130, 8), torch.empty(2, 8, 6)
    assert cuda.saved(u, A)[0].shape == (2, 3, 3, 8, 8)


def test_without_the_compiler_says_where_it_was_looked_for(monkeypatch):
    monkeypatch.setattr(nvrtc, "_candidates", lambda: iter(["libno-such-compiler.so"]))
    nvrtc._compiler.cache_clear()
    try:
        assert nvrtc.unavailable() == (
            "NVRTC, the compiler for CUDA kernels, was not found (looked for libno-such-compiler.so): "
            "install it with `pip install nvidia-cuda-nvrtc` (CUDA 12: `nvidia-cuda-nvrtc-cu12`)."
        )
    finally:
        nvrtc._compiler.cache_clear()


@pytest.mark.skipif(nvrtc.unavailable() is not None, reason="NVRTC is not installed")
def test_a_source_that_does_not_compile_is_quoted(tmp_path, monkeypatch):
    monkeypatch.setattr(nvrtc, "_folder", lambda: tmp_path)
    with pytest.raises(BackendError, match=r"compile cuda_conv\.cu \(--gpu.*DTYPE=0\):.*TAPS.* is undefined"):
        nvrtc.compiled("cuda_conv.cu", (("DIRECTIONS", 2), ("DTYPE", 0)), "sm_90")
    assert not list(tmp_path.iterdir())
