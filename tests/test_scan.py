"""Scan backends against the reference, and the reference against arithmetic done by hand."""

import ctypes
import multiprocessing
import os
import platform
import threading
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from flexvideo.errors import BackendError, ConfigError, GeometryError
from flexvideo.scan import available_backends, causal_conv, cpu, native, registry, selective_scan

FAST = ["chunked", "cpu"]
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
sizes = st.tuples(
    st.sampled_from([1, 2]),
    st.integers(1, 3),
    st.integers(1, 70),
    st.integers(1, 40),
    st.sampled_from([1, 5, 16]),
)


def scan_inputs(k=2, b=2, l=37, d=24, n=16, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=g)

    A = -torch.exp(draw(k, d, n)) * 2
    raw = (draw(k, b, l, d), draw(k, b, l, d) * 2 - 2, A, draw(k, b, l, n), draw(k, b, l, n))
    raw += (draw(k, d), draw(b, l, d), draw(k, d))
    return [x.to(dtype).requires_grad_() for x in raw]


def conv_inputs(k=2, b=2, l=37, d=24, w=4, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = ((b, l, d), (k, d, w), (k, d))
    return [torch.randn(*s, dtype=torch.float64, generator=g).to(dtype).requires_grad_() for s in shapes]


def error(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-12))


def both(function, inputs, backend):
    out = function(*inputs, backend=backend)
    upstream = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape).cos()
    return out.detach(), torch.autograd.grad(out, inputs, upstream)


def assert_agrees(function, inputs, backend, *, dtype=torch.float32, forward=1e-5, backward=1e-4):
    truth, truths = both(function, inputs, "reference")
    cast = [x.detach().to(dtype).requires_grad_() for x in inputs]
    out, grads = both(function, cast, backend)
    assert out.dtype == dtype
    assert error(out, truth) < forward
    for grad, expected, x in zip(grads, truths, cast, strict=True):
        assert grad.dtype == x.dtype
        assert grad.shape == x.shape
        # a gradient that is zero but for rounding has no relative error
        assert error(grad, expected) < backward or (grad.double() - expected).abs().max() < 1e-6


# --- the reference itself ---


def test_reference_by_hand():
    u, dt = torch.tensor([2.0, 3.0]), torch.tensor([0.5, 0.25])
    delta = torch.log(torch.expm1(dt)).reshape(1, 1, 2, 1)
    one = torch.ones(1, 1, 2, 1)
    z = torch.tensor([1.0, -1.0]).reshape(1, 2, 1)
    out = selective_scan(
        u.reshape(1, 1, 2, 1), delta, torch.full((1, 1, 1), -2.0), 3 * one, 5 * one,
        torch.full((1, 1), 7.0), z, torch.zeros(1, 1), backend="reference",
    )  # fmt: skip
    h0 = 0.5 * 3 * 2.0
    h1 = torch.exp(torch.tensor(-0.5)) * h0 + 0.25 * 3 * 3.0
    y = torch.stack((5 * torch.tensor(h0) + 7 * 2.0, 5 * h1 + 7 * 3.0))
    torch.testing.assert_close(out.flatten(), y * F.silu(z.flatten()))


def test_second_direction_is_the_first_flipped():
    inputs = [x.detach() for x in scan_inputs(k=1)]
    u, delta, A, B, C, D, z, bias = inputs
    flipped = [x.flip(2) if x.dim() == 4 else x for x in inputs]
    pair = [torch.cat((x, y)) for x, y in zip(inputs, flipped, strict=True)]
    pair[6] = z
    forward = selective_scan(u, delta, A, B, C, D, torch.ones_like(z), bias)
    # both directions see the same sequence, each in its own order of time
    total = selective_scan(*pair[:6], torch.ones_like(z), pair[7])
    torch.testing.assert_close(total, forward + forward.flip(1))


def test_second_convolution_is_the_first_flipped():
    x, weight, bias = (t.detach() for t in conv_inputs(k=1))
    out = causal_conv(x, weight.repeat(2, 1, 1), bias.repeat(2, 1))
    flipped = causal_conv(x.flip(1), weight, bias)[0].flip(1)
    torch.testing.assert_close(out[1], flipped)
    padded = F.pad(x.mT, (3, 0))
    torch.testing.assert_close(out[0], F.silu(F.conv1d(padded, weight[0][:, None], bias[0], groups=24)).mT)


def test_reference_gradients():
    small = scan_inputs(k=2, b=1, l=4, d=2, n=2)
    assert torch.autograd.gradcheck(lambda *x: selective_scan(*x, backend="reference"), small)
    assert torch.autograd.gradgradcheck(lambda *x: selective_scan(*x, backend="reference"), small)
    conv = conv_inputs(k=2, b=1, l=5, d=2)
    assert torch.autograd.gradcheck(lambda *x: causal_conv(*x, backend="reference"), conv)
    assert torch.autograd.gradgradcheck(lambda *x: causal_conv(*x, backend="reference"), conv)


@pytest.mark.unchecked
def test_reference_under_vmap_of_grad():
    u, *rest = (x.detach() for x in scan_inputs(k=2, b=1, l=5, d=3, n=2))

    def loss(u):
        return selective_scan(u, *rest, backend="reference").square().sum()

    us = torch.stack((u, 2 * u, -u))
    each = torch.stack([torch.func.grad(loss)(u) for u in us])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(us), each)


# --- the fast ones against it ---


@pytest.mark.parametrize("backend", FAST)
@settings(deadline=None, max_examples=25)
@given(shape=sizes, seed=st.integers(0, 1000))
def test_scan_agrees(backend, shape, seed):
    k, b, l, d, n = shape
    assert_agrees(selective_scan, scan_inputs(k, b, l, d, n, seed=seed), backend)


@pytest.mark.parametrize("backend", FAST)
@settings(deadline=None, max_examples=25)
@given(shape=sizes, taps=st.integers(1, 5), seed=st.integers(0, 1000))
def test_conv_agrees(backend, shape, taps, seed):
    k, b, l, d, _ = shape
    assert_agrees(causal_conv, conv_inputs(k, b, l, d, taps, seed=seed), backend)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("length", [63, 64, 65, 197])
def test_lengths_around_a_chunk(backend, length):
    assert_agrees(selective_scan, scan_inputs(l=length, d=80), backend)
    assert_agrees(causal_conv, conv_inputs(l=length, d=80), backend)


def test_chunked_in_float64_is_exact():
    assert_agrees(
        selective_scan, scan_inputs(), "chunked", dtype=torch.float64, forward=1e-13, backward=1e-13
    )
    assert_agrees(causal_conv, conv_inputs(), "chunked", dtype=torch.float64, forward=1e-13, backward=1e-13)


@pytest.mark.parametrize("backend", FAST)
def test_slow_decay_over_a_long_sequence(backend):
    """Errors of the decay are amplified by 1 / (1 - decay): the exponential must be accurate near one."""
    inputs = [x.detach() for x in scan_inputs(b=1, l=3000, d=16, n=4)]
    inputs[1] = torch.full_like(inputs[1], -9.0) + inputs[1] / 100
    inputs[2] = -torch.rand_like(inputs[2])
    inputs[0], inputs[3], inputs[4] = (x.abs() for x in (inputs[0], inputs[3], inputs[4]))
    truth = selective_scan(*inputs, backend="reference")
    assert error(selective_scan(*(x.float() for x in inputs), backend=backend), truth) < 1e-5


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_extreme_inputs(backend):
    inputs = [x.detach() for x in scan_inputs(l=9, dtype=torch.float32)]
    inputs[1] = torch.linspace(-200, 200, inputs[1].numel()).reshape(inputs[1].shape)
    inputs[6] = torch.linspace(-2000, 2000, inputs[6].numel()).reshape(inputs[6].shape)
    truth = selective_scan(*(x.double() for x in inputs), backend="reference")
    out = selective_scan(*inputs, backend=backend)
    assert out.isfinite().all()
    assert error(out, truth) < 1e-5


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("name", NAMES)
def test_nan_propagates(backend, name):
    inputs = [x.detach().clone() for x in scan_inputs(l=40, dtype=torch.float32)]
    inputs[NAMES.index(name)].view(torch.int32)[..., 3] = 0x7FFFFFFF  # the NaN of CUDA
    expected = selective_scan(*inputs, backend="reference").isnan()
    assert expected.any()
    assert torch.equal(selective_scan(*inputs, backend=backend).isnan(), expected)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_keeps_the_state_in_float32(backend, dtype):
    low = {"u", "delta", "B", "C", "z"}
    inputs = scan_inputs(b=1, l=300, d=16)
    cast = [
        x.detach().to(dtype if name in low else torch.float32).requires_grad_()
        for name, x in zip(NAMES, inputs, strict=True)
    ]
    truth, truths = both(selective_scan, [x.detach().double().requires_grad_() for x in cast], "reference")
    out, grads = both(selective_scan, cast, backend)
    assert out.dtype == dtype
    assert error(out, truth) < torch.finfo(dtype).eps
    for grad, expected, x in zip(grads, truths, cast, strict=True):
        assert grad.dtype == x.dtype
        assert error(grad, expected) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("backend", FAST)
def test_strided_views(backend):
    """The mixer passes halves of one projection: rows that do not touch."""
    x, z = torch.randn(2, 20, 64).chunk(2, dim=-1)
    weight, bias = torch.randn(2, 32, 4), torch.randn(2, 32)
    expected = causal_conv(x.contiguous(), weight, bias, backend="reference")
    torch.testing.assert_close(causal_conv(x, weight, bias, backend=backend), expected, rtol=1e-5, atol=1e-5)
    u, delta, A, B, C, D, _, dt_bias = (t.detach() for t in scan_inputs(b=2, l=20, d=32, dtype=torch.float32))
    expected = selective_scan(u, delta, A, B, C, D, z.contiguous(), dt_bias, backend="reference")
    turned = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (u, delta, B, C)]
    out = selective_scan(turned[0], turned[1], A, turned[2], turned[3], D, z, dt_bias, backend=backend)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def threads():
    """Set the number of torch's threads, for one test."""
    yield torch.set_num_threads
    torch.set_num_threads(1)


@pytest.mark.parametrize("team", [native.team(), ctypes.c_void_p()], ids=["OpenMP", "own threads"])
def test_cpu_does_not_depend_on_threads_and_repeats(team, threads, monkeypatch):
    monkeypatch.setattr(cpu, "team", lambda: team)
    scan, conv = scan_inputs(d=200, l=70, dtype=torch.float32), conv_inputs(d=200, dtype=torch.float32)
    results = []
    for count in (1, 2, 3, 3):
        threads(count)
        results.append([both(selective_scan, scan, "cpu")[1], both(causal_conv, conv, "cpu")[1]])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_team_is_that_of_torch():
    assert bool(native.team()) == torch.backends.openmp.is_available()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork, and so no forked process")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_forked_processes(threads):
    """The threads of OpenMP are not there in a forked process; waiting for them would never end."""
    inputs = [
        x.detach() for x in scan_inputs(d=192, dtype=torch.float32)
    ]  # no padding: torch itself would hang
    threads(2)
    expected = selective_scan(*inputs, backend="cpu").numpy()
    child = multiprocessing.get_context("fork").Process(target=_check_and_leave, args=(inputs, expected))
    child.start()
    child.join(60)
    child.kill()
    assert child.exitcode == 0


def _check_and_leave(inputs, expected):
    os._exit(not (selective_scan(*inputs, backend="cpu").numpy() == expected).all())


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only compilers for x86 know these -march")
@pytest.mark.parametrize("march", ["x86-64-v3", "x86-64"])
def test_narrower_vectors(march, tmp_path, monkeypatch):
    """Other processors compile other branches of the kernel: AVX2, and plain C."""
    compiler = tmp_path / "cc"
    compiler.write_text(f'#!/bin/sh\nexec cc "$@" -march={march}\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library = native.library.__wrapped__()
    monkeypatch.setattr(cpu, "library", lambda: library)
    for shape in ((2, 2, 70, 40, 16), (1, 1, 5, 3, 5)):
        assert_agrees(selective_scan, scan_inputs(*shape), "cpu")
        assert_agrees(causal_conv, conv_inputs(*shape[:4]), "cpu")
    test_extreme_inputs("cpu")
    inputs = [x.detach().clone() for x in scan_inputs(l=40, dtype=torch.float32)]
    inputs[2].view(torch.int32)[..., 3] = 0x7FFFFFFF
    expected = selective_scan(*inputs, backend="reference").isnan()
    assert torch.equal(selective_scan(*inputs, backend="cpu").isnan(), expected)


def test_no_memory_is_an_error(tmp_path, monkeypatch):
    """A C library in which every allocation fails."""
    source = tmp_path / "none.c"
    source.write_text("#include <stddef.h>\nvoid *none(size_t a, size_t b) { return NULL; }\n")
    compiler = tmp_path / "cc"
    compiler.write_text(f'#!/bin/sh\nexec cc "$@" -Daligned_alloc=none -x c {source}\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library = native.library.__wrapped__()
    monkeypatch.setattr(cpu, "library", lambda: library)
    inputs = scan_inputs(b=3, d=200, dtype=torch.float32)
    out = selective_scan(*inputs, backend="cpu")
    with pytest.raises(
        MemoryError, match="'cpu' to work in, at 3 clips of 37 tokens: use a smaller"
    ) as caught:
        out.sum().backward()
    assert isinstance(caught.value, BackendError)


def test_threads_of_the_caller(threads):
    inputs = [x.detach() for x in scan_inputs(d=200, dtype=torch.float32)]
    threads(2)
    expected, outs = selective_scan(*inputs, backend="cpu"), [torch.empty(0)] * 4

    def run(i):
        outs[i] = selective_scan(*inputs, backend="cpu")

    workers = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(out, expected) for out in outs)


# --- operators ---


@pytest.mark.unchecked
@pytest.mark.parametrize("backend", FAST)
def test_opcheck(backend):
    scan, conv = (
        scan_inputs(b=1, l=7, d=6, n=3, dtype=torch.float32),
        conv_inputs(b=1, l=7, d=6, dtype=torch.float32),
    )
    torch.library.opcheck(torch.ops.flexvideo.selective_scan.default, (*scan, True, backend))
    plain = [x.detach() for x in scan]
    torch.library.opcheck(torch.ops.flexvideo.selective_scan.default, (*plain, False, backend))
    torch.library.opcheck(torch.ops.flexvideo.causal_conv.default, (*conv, backend))


@pytest.mark.unchecked
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiled_transforms_are_for_the_reference_too():
    def conv(x):
        return causal_conv(x, torch.ones(2, 4, 4), torch.zeros(2, 4), backend=name)

    def tangent(x):
        return torch.func.jvp(conv, (x,), (x,))[1]

    x, name = torch.ones(1, 5, 4), "cpu"
    compiled = torch.compile(conv, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), conv(x))
    for function in (
        torch.compile(tangent, backend="aot_eager"),
        lambda x: torch.func.jvp(compiled, (x,), (x,)),
    ):
        with pytest.raises(BackendError, match="'cpu' has a backward pass and nothing else"):
            function(x)
    name = "reference"
    torch.testing.assert_close(torch.compile(tangent, backend="aot_eager")(x), tangent(x))


@pytest.mark.unchecked
def test_compiles_without_breaks():
    scan = scan_inputs(b=1, l=7, d=16, dtype=torch.float32)
    compiled = torch.compile(lambda *x: selective_scan(*x) * 2, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*scan), selective_scan(*scan) * 2)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_flops(device):
    k, b, l, d, n, w = 2, 3, 11, 8, 16, 4
    scan = [x.detach().to(device) for x in scan_inputs(k, b, l, d, n, torch.float32)]
    conv = [x.detach().to(device) for x in conv_inputs(k, b, l, d, w, torch.float32)]
    with FlopCounterMode(display=False) as counter:
        assert selective_scan(*scan).shape == (b, l, d)
    assert counter.get_total_flops() == k * (9 * b * l * d * n + b * l * d) + b * l * d
    with FlopCounterMode(display=False) as counter:
        assert causal_conv(*conv).shape == (k, b, l, d)
    assert counter.get_total_flops() == 2 * w * k * b * l * d


def test_flops_of_a_step_are_three_times_the_forward():
    scan = scan_inputs(dtype=torch.float32)
    with FlopCounterMode(display=False) as forward:
        out = selective_scan(*scan)
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    assert backward.get_total_flops() == 2 * forward.get_total_flops()


def test_autocast_does_not_reach_into_the_kernels():
    inputs = [x.detach() for x in scan_inputs(dtype=torch.float32)]
    expected = selective_scan(*inputs, backend="chunked")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(selective_scan(*inputs, backend="chunked"), expected)


# --- choice of a backend ---


def test_available_backends_explain_themselves():
    reasons = available_backends()
    assert list(reasons) == ["reference", "chunked", "cpu", "cuda", "triton", "mamba-ssm"]
    assert reasons["reference"] is None
    assert reasons["chunked"] is None
    assert all(reason is None or reason.endswith(".") for reason in reasons.values())


def test_unavailable_backend_says_why(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(BackendError, match="'mamba-ssm' cannot run here: it needs a CUDA device"):
        selective_scan(*scan_inputs(), backend="mamba-ssm")


def test_what_installing_would_not_help_is_not_asked_for(monkeypatch):
    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'triton'", name="triton")

    monkeypatch.setattr(registry, "load", missing)
    for there, why in ((False, "it needs a CUDA device."), (True, "the module 'triton' is not installed.")):
        monkeypatch.setattr("torch.cuda.is_available", lambda there=there: there)
        assert registry.reason.__wrapped__("triton") == why


@pytest.mark.parametrize(("typed", "meant"), [("mamba_ssm", "mamba-ssm"), ("CUDA", "cuda")])
def test_a_mistyped_backend_is_guessed(typed, meant):
    with pytest.raises(ConfigError, match=f"'mamba-ssm'. Did you mean '{meant}'"):
        registry.check_name(typed)


def test_unknown_backend_lists_the_names():
    with pytest.raises(
        ConfigError, match="Unknown scan backend 'tpu'; known: 'auto', 'reference', 'chunked'"
    ):
        selective_scan(*scan_inputs(), backend="tpu")


def test_cpu_refuses_float64_and_auto_takes_the_reference():
    with pytest.raises(BackendError, match="works in float32; use 'reference' or 'chunked'"):
        selective_scan(*scan_inputs(), backend="cpu")
    assert registry.backend_for("auto", "cpu", torch.float64).__name__.endswith("reference")
    assert registry.backend_for("auto", "cpu", torch.float32).__name__.endswith("cpu")


def test_without_a_kernel_the_slow_path_warns_once(monkeypatch):
    inputs = [x.detach() for x in scan_inputs(dtype=torch.float32)]
    expected = selective_scan(*inputs, backend="chunked")
    monkeypatch.setattr(registry, "reason", lambda name: "no C compiler was found.")
    registry._preferred.cache_clear()
    message = "Selective scans on 'cpu' take the slow path in torch. cpu: no C compiler was found."
    with pytest.warns(UserWarning, match=message):
        out = selective_scan(*inputs)
    assert torch.equal(out, expected)
    assert torch.equal(selective_scan(*inputs), expected)  # and says nothing
    registry._preferred.cache_clear()


def test_a_device_without_kernels_takes_the_slow_path_and_says_so_once():
    registry._preferred.cache_clear()
    message = (
        "scans on 'mps' take the slow path in torch. No backend has kernels for this device: they are for"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        modules = [registry.backend_for("auto", "mps", torch.float32) for _ in range(2)]
    assert len(caught) == 1
    assert [module.__name__ for module in modules] == ["flexvideo.scan.chunked"] * 2
    registry.backend_for("auto", "meta", torch.float32)  # nothing runs there that could be slow


@pytest.mark.unchecked
@pytest.mark.parametrize("at", range(1, 8))
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_shapes_that_do_not_belong_together(at, backend):
    inputs = [x.detach() for x in scan_inputs(dtype=torch.float32)]
    inputs[at] = inputs[at].narrow(0, 0, 1) if at in (2, 5, 7) else inputs[at][:, :1]
    with pytest.raises(GeometryError, match=r"has the shape \(.+\), and \(.+\) goes with the others"):
        selective_scan(*inputs, backend=backend)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("sizes", [{"k": 3, "l": 5}, {"k": 2, "l": 0}])
def test_directions_and_tokens_that_no_kernel_is_made_for(backend, sizes):
    for function, made in ((selective_scan, scan_inputs), (causal_conv, conv_inputs)):
        found = f"at least 1 token, got {sizes['k']} and {sizes['l']}"
        with pytest.raises(GeometryError, match=f"A scan takes 1 or 2 directions and {found}"):
            function(*made(**sizes, dtype=torch.float32), backend=backend)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_tensors_on_several_devices(backend):
    for function, made in ((selective_scan, scan_inputs), (causal_conv, conv_inputs)):
        for at in range(1, len(made())):
            inputs = [x.detach() for x in made(dtype=torch.float32)]
            inputs[at] = inputs[at].to("meta")
            with pytest.raises(
                BackendError, match=r"` is on meta, and the sequence on cpu: move both to one"
            ):
                function(*inputs, backend=backend)


def test_the_backend_of_the_cpu_is_for_the_cpu():
    with pytest.raises(BackendError, match=r"'cpu' is for tensors on the CPU, and these are on 'cuda': use"):
        registry.backend_for("cpu", "cuda", torch.float32)


@pytest.mark.unchecked
@pytest.mark.parametrize("at", [1, 2])
def test_filters_that_do_not_fit(at):
    inputs = [x.detach() for x in conv_inputs(dtype=torch.float32)]
    inputs[at] = inputs[at][:, :1]
    with pytest.raises(GeometryError, match="goes with the others"):
        causal_conv(*inputs, backend="cpu")


def test_library_is_compiled_once_and_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.__wrapped__()
    (library,) = (tmp_path / "flexvideo").iterdir()
    stamp = library.stat().st_mtime_ns
    assert native.library.__wrapped__()._name == str(library)
    assert [path.stat().st_mtime_ns for path in library.parent.iterdir()] == [stamp]


def test_damaged_library_is_made_anew(tmp_path, monkeypatch):
    name = Path(native.library()._name).name
    damaged = tmp_path / "flexvideo" / name
    damaged.parent.mkdir()
    damaged.write_bytes(b"half a fi")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert native.library.__wrapped__()._name == str(damaged)
    assert [path.name for path in damaged.parent.iterdir()] == [name]


def test_library_that_cannot_be_loaded_says_where_it_is(tmp_path, monkeypatch):
    compiler = tmp_path / "cc"
    compiler.write_text(
        '#!/bin/sh\nwhile [ "$1" != -o ]; do [ $# = 0 ] && exit; shift; done; echo no > "$2"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    message = f"the compiled library {tmp_path}/flexvideo/scan-.+ cannot be loaded"
    with pytest.raises(native.CompileError, match=message):
        native.library.__wrapped__()


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.warns(UserWarning, match="every process compiles them anew .*: set XDG_CACHE_HOME"):
        library = native.library.__wrapped__()
    assert library._name.startswith(str(tmp_path / "flexvideo-"))


def test_no_compiler_says_what_was_looked_for(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        native.CompileError, match=r"no C compiler was found \(.*\): install one, such as gcc"
    ):
        native.library.__wrapped__()
    monkeypatch.setenv("CC", "/no/such/compiler")
    with pytest.raises(native.CompileError, match=r"could not be run .*/no/such/compiler"):
        native.library.__wrapped__()


def test_failing_compiler_is_quoted(tmp_path, monkeypatch):
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'cc: out of ideas' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(native.CompileError, match="the C compiler failed: cc: out of ideas"):
        native.library.__wrapped__()


def test_no_warning_where_a_kernel_runs():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        selective_scan(*scan_inputs(dtype=torch.float32))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torch, within its own jvp
@pytest.mark.parametrize(
    "transform", [lambda f, x: torch.func.jvp(f, (x,), (x,)), lambda f, x: torch.func.grad(f)(x)]
)
def test_transforms_are_for_the_reference(transform):
    """Forward-mode differentiation would give zeros."""

    def total(x):
        return causal_conv(x, torch.ones(2, 4, 4), torch.zeros(2, 4), backend=name).sum()

    for name in ("chunked", "cpu"):
        with pytest.raises(BackendError, match=f"{name!r} has a backward pass and nothing else"):
            transform(total, torch.ones(1, 5, 4))
    name = "reference"
    transform(total, torch.ones(1, 5, 4))
