"""The backend of CUDA kernels as a whole: on a GPU, and what it refuses."""

import ctypes
import dataclasses
import locale
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import cuda_cpu
import pytest
import torch
from scan_cases import emulated, error, scan_inputs, with_nvrtc

from flexvideo import VideoMamba
from flexvideo.errors import BackendError
from flexvideo.scan import available_backends, cuda, nvrtc, registry, selective_scan
from flexvideo.scan.cuda_conv import conv_forward
from flexvideo.scan.cuda_norm import norm_forward


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


def test_an_old_gpu_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for capability, why in (((7, 5), "it needs a GPU of compute capability 8.0 or newer."), ((8, 0), None)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        monkeypatch.setattr(nvrtc, "unavailable", lambda _: None)
        assert cuda.unavailable() == why


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


def test_what_was_damaged_is_compiled_again(tmp_path, monkeypatch):
    monkeypatch.setattr(nvrtc, "_folder", lambda: tmp_path)
    monkeypatch.setattr(nvrtc, "_compiler", lambda: None)
    monkeypatch.setattr(nvrtc, "_version", lambda compiler: b"1")
    compilations = []
    monkeypatch.setattr(nvrtc, "_compile", lambda *arguments: compilations.append(1) or b"whole")
    assert nvrtc.compiled("cuda_norm.cu", (), "sm_90") == b"whole"
    (path,) = tmp_path.iterdir()
    kept = path.read_bytes()
    assert nvrtc.compiled("cuda_norm.cu", (), "sm_90") == b"whole"
    assert len(compilations) == 1
    # a machine that lost its power, a full disk, a flipped bit, a file of an older release
    for count, damaged in enumerate((b"", kept[:-1], b"x" + kept[1:], b"whole"), start=2):
        path.write_bytes(damaged)
        assert nvrtc.compiled("cuda_norm.cu", (), "sm_90") == b"whole"
        assert path.read_bytes() == kept
        assert len(compilations) == count
    monkeypatch.setattr(nvrtc, "_folder", lambda: tmp_path / "gone")
    with pytest.warns(UserWarning, match="cannot be kept and are compiled anew next time: .*gone"):
        assert nvrtc.compiled("cuda_norm.cu", (), "sm_90") == b"whole"


@with_nvrtc
def test_the_compiler_leaves_the_locale_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(nvrtc, "_folder", lambda: tmp_path)
    before = locale.getencoding()
    defines = {"DTYPE": 2, "PAIRS": 1, "WIDE_HIDDEN": 0, "WIDE_OUT": 0, "ADD": 1}
    assert nvrtc.compiled("cuda_norm.cu", tuple(defines.items()), "sm_80")
    assert locale.getencoding() == before


def test_tensors_that_are_not_on_a_cuda_device_are_refused():
    with pytest.raises(BackendError, match="'cuda' is for tensors on a CUDA device, and these are elsewhere"):
        nvrtc.run("none.cu", "none", (1, 1, 1), 32, torch.zeros(1), defines={})


def test_an_empty_batch_starts_nothing():
    nvrtc.run("none.cu", "none", (1, 0, 1), 32, torch.zeros(1), defines={})


def test_what_a_kernel_is_given_lies_side_by_side_in_each_thread(monkeypatch):
    given = []

    def launch(*arguments):
        pointers = ctypes.cast(arguments[9], ctypes.POINTER(ctypes.c_void_p))
        first = pointers[0]
        assert first is not None
        assert [pointers[i] for i in range(3)] == [first, first + 8, first + 16]
        given.append(list((ctypes.c_longlong * 3).from_address(first)))
        return 0

    driver = {"cuCtxPushCurrent_v2": lambda _: 0, "cuCtxPopCurrent_v2": lambda _: 0, "cuLaunchKernel": launch}
    monkeypatch.setattr(nvrtc, "_driver", lambda: SimpleNamespace(**driver))
    monkeypatch.setattr(nvrtc, "_loaded", lambda *_: (None, None))
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda _: 0, raising=False)
    x = torch.zeros(1)

    def start(number):
        nvrtc.run("none.cu", "none", (1, 1, 1), 32, x, number, -number, defines={"A": 1})

    start(2**40)
    with ThreadPoolExecutor(1) as thread:
        thread.submit(start, 7).result()
    assert given == [[x.data_ptr(), 2**40, -(2**40)], [x.data_ptr(), 7, -7]]


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


@with_nvrtc
def test_a_source_that_does_not_compile_is_quoted(tmp_path, monkeypatch):
    monkeypatch.setattr(nvrtc, "_folder", lambda: tmp_path)
    with pytest.raises(BackendError, match=r"compile cuda_conv\.cu \(--gpu.*DTYPE=0\):.*TAPS.* is undefined"):
        nvrtc.compiled("cuda_conv.cu", (("DIRECTIONS", 2), ("DTYPE", 0)), "sm_90")
    assert not list(tmp_path.iterdir())
