"""The CUDA kernel of the backward pass: emulated on the CPU, and compiled by NVRTC if that is installed."""

import cuda_cpu
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import emulated, error, scan_inputs, with_every_memory, with_nvrtc

from flexvideo.scan import nvrtc
from flexvideo.scan.cuda_backward import (
    MOST_WARPS,
    BackwardLaunch,
    backward_launch_for,
    macros,
    scan_backward,
    shared_bytes,
)
from flexvideo.scan.cuda_forward import BLOCK, kept
from flexvideo.scan.reference import selective_scan

TOLERANCES = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 4e-3}
H100 = {"multiprocessors": 132, "shared": 232448}


def layout(b: int, l: int, d: int, *, spans: int = 1, grid: int | None = None) -> BackwardLaunch:
    """One warp a direction; time in spans, and all the work in equal shares."""
    blocks, parts = -(-l // BLOCK), -(-d // 16)
    span = -(-blocks // spans)
    work = b * parts * -(-blocks // span) * span
    share = max(span, -(-work // grid)) if grid else span
    return BackwardLaunch(1, span * BLOCK, -(-blocks // span), -(-work // share), share, 1, far=False)


def kept_states(inputs):
    """What the forward pass keeps, in float64: steps not there come last, or for direction 1 first."""
    u, delta, A, B, _, _, _, bias = (x.double() for x in inputs)
    (k, b, l, d), n = u.shape, A.shape[-1]
    blocks, padded = kept(l, n)
    states = torch.zeros(k, b, blocks, padded, d)
    dt = torch.nn.functional.softplus(delta + bias[:, None, None])
    for side in range(k):
        h = torch.zeros(b, n, d, dtype=torch.double)
        for s in range(blocks * BLOCK):
            if s % BLOCK == 0:
                states[side, :, s // BLOCK, :n] = h
            t = blocks * BLOCK - 1 - s if side else s
            if t < l:
                step = dt[side, :, t, None]
                h = torch.exp(step * A[side].mT) * h + step * u[side, :, t, None] * B[side, :, t, :, None]
    return states


def upstream_of(inputs):
    """The gradient of the output."""
    z = inputs[6]
    return torch.randn(z.shape, generator=torch.Generator().manual_seed(1)).to(z.device, z.dtype)


def run_backward(inputs, launch, *, remake=True):
    """The kernel in the emulation, with its threads in both orders: the same bits."""
    states, results = kept_states(inputs), []
    for order in (False, True):

        def run(*arguments, order=order, **keywords):
            cuda_cpu.run(*arguments, **keywords, reversed_order=order)

        results.append(
            scan_backward(upstream_of(inputs), *inputs, states, launch=launch, remake=remake, run=run)
        )
    for one, other in zip(*results, strict=True):
        assert torch.equal(one.nan_to_num(), other.nan_to_num())
    return results[0]


def truth(inputs):
    """The 8 gradients and the output, in float64."""
    exact = [x.double().requires_grad_() for x in inputs]
    out = selective_scan(*exact)
    return *torch.autograd.grad(out, exact, upstream_of(inputs).double()), out


def agrees(shape, dtype, **sizes):
    inputs = scan_inputs(*shape, dtype=dtype, device="cpu")
    results = run_backward(inputs, layout(*shape[1:4], **sizes))
    for i, (result, expected) in enumerate(zip(results, truth(inputs), strict=True)):
        assert result.shape == expected.shape, i
        assert result.dtype == (inputs[i].dtype if i < 8 else dtype), i
        assert error(result, expected) < TOLERANCES[dtype], i


@emulated
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_agrees_with_the_reference(dtype):
    agrees((2, 2, 99, 20, 16), dtype)
    agrees((2, 1, 1, 20, 16), dtype)


@emulated
@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    "shape", [(2, 1, 21, 3, 5), (1, 2, 70, 6, 16), (2, 1, 65, 17, 24), (2, 1, 130, 34, 4), (1, 1, 66, 4, 64)]
)
def test_agrees_at_odd_sizes(shape, dtype):
    agrees(shape, dtype)


@emulated
@pytest.mark.parametrize("length", [2, 28, 29, 32, 33, 36, 63, 64, 65])
def test_every_tile_is_met_by_both_directions(length):
    agrees((2, 1, length, 4, 16), torch.float32)


@emulated
@pytest.mark.parametrize(
    "sizes", [{"grid": 2}, {"grid": 5}, {"spans": 2}, {"spans": 4, "grid": 5}], ids=["2", "5", "s2", "s4"]
)
def test_shares_and_spans_agree(sizes):
    agrees((2, 2, 300, 36, 16), torch.float32, **sizes)


def short_memory(d, n, *, k=2, l=300):
    """Inputs of which nothing is left after 16 steps."""
    inputs = scan_inputs(k, 2, l, d, n, device="cpu")
    inputs[1], inputs[2] = inputs[1].abs() + 1, inputs[2].abs() * -0.1 - 9
    return inputs


@emulated
@pytest.mark.parametrize("slow", [0.0, 1e-3], ids=str)
@pytest.mark.parametrize("k", [1, 2])
def test_looking_on_no_further_than_needed_gives_the_same_bits(slow, k):
    inputs = short_memory(6, 5, k=k)
    results = run_backward(inputs, layout(2, 300, 6, spans=2))
    inputs[2] = inputs[2].clone()
    inputs[2][:, 5, 4] = slow  # the last state of the last channel keeps its block looking
    further = run_backward(inputs, layout(2, 300, 6, spans=2))
    for i in (0, 1, 6, 8):
        assert torch.equal(results[i][..., :5], further[i][..., :5]), i
    for i, expected in enumerate(truth(inputs)):
        assert error(further[i], expected) < 2e-6, i  # states that grow lose as much in one span


@emulated
@pytest.mark.parametrize(("d", "n"), [(3, 5), (17, 16)])
def test_what_is_forgotten_is_not_looked_at(d, n):
    # states and channels that are not there keep nobody looking; NaN of the gate shows who looked
    inputs = short_memory(d, n)
    inputs[6] = inputs[6].clone()
    inputs[6][0, 280] = float("nan")  # in direction 0, of the second span
    launch = layout(2, 300, d, spans=2)  # of 192 steps
    du = run_backward(inputs, launch)[0][0, 0]
    assert du[192:281].isnan().all()
    assert not du[:192].isnan().any()
    inputs[2] = inputs[2].clone()
    inputs[2][0, -1, -1] = 0.0
    du = run_backward(inputs, launch)[0][0, 0]
    assert du[:281, -1].isnan().all()


@emulated
@pytest.mark.parametrize("shape", [(2, 1, 301, 17, 16), (1, 1, 193, 3, 5)])
def test_memory_of_every_length(shape):
    inputs = with_every_memory(scan_inputs(*shape, device="cpu"), decades=10)
    expected = truth(inputs)
    for spans in (1, 2, 4):
        results = run_backward(inputs, layout(*shape[1:4], spans=spans))
        for i, (result, exact) in enumerate(zip(results, expected, strict=True)):
            assert error(result, exact) < 2e-6, i


@emulated
@pytest.mark.slow
def test_put_aside_in_global_memory():
    inputs = scan_inputs(2, 2, 70, 20, 16, device="cpu")
    near = run_backward(inputs, BackwardLaunch(1, 128, 1, 3, 3, 1, far=False))
    far = run_backward(inputs, BackwardLaunch(1, 128, 1, 3, 3, 1, far=True))
    assert all(torch.equal(a, b) for a, b in zip(near, far, strict=True))


@emulated
@pytest.mark.slow
def test_several_warps_agree():
    inputs = scan_inputs(2, 1, 130, 100, 16, dtype=torch.bfloat16, device="cpu")
    one = run_backward(inputs, layout(1, 130, 100))
    three = run_backward(inputs, BackwardLaunch(3, 192, 1, 3, 3, 1, far=False))
    for i, (a, b) in enumerate(zip(one, three, strict=True)):
        assert error(a, b) < (TOLERANCES[torch.bfloat16] if i in (3, 4) else 1e-12), (
            i
        )  # B and C: another order


@emulated
@pytest.mark.parametrize(
    ("shift", "scale"),
    [(12.0, 1.0), (-20.0, 1.0), (0.0, 1e4), (0.0, 1e-7)],
    ids=["forget", "never", "far", "near"],
)
def test_extremes(shift, scale):
    inputs = scan_inputs(2, 1, 30, 4, 16, device="cpu")
    inputs[1], inputs[2] = inputs[1] + shift, inputs[2] * scale
    for i, (result, expected) in enumerate(
        zip(run_backward(inputs, layout(1, 30, 4)), truth(inputs), strict=True)
    ):
        assert (result - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max()), i


@emulated
@pytest.mark.parametrize("place", [0, 1, 3, 4, 6], ids=["u", "delta", "B", "C", "z"])
def test_nan_reaches_its_gradient_and_no_other_sample(place):
    inputs = scan_inputs(2, 2, 11, 4, 16, device="cpu")
    inputs[place] = inputs[place].clone()
    inputs[place][(0,) * (inputs[place].ndim - 2)][5] = float("nan")
    results = run_backward(inputs, layout(2, 11, 4))
    assert results[6][0, 5].isnan().all()  # of z
    for i in (0, 1, 3, 4, 6):
        assert not results[i].select(-3, 1).isnan().any(), i


@emulated
@pytest.mark.slow
def test_any_alignment():
    inputs = scan_inputs(2, 1, 37, 6, 16, device="cpu")
    expected = truth(inputs)
    for place in (3, 4, 6):
        wide = torch.empty(*inputs[place].shape[:-1], inputs[place].shape[-1] + 3)
        wide[..., 1:-2] = inputs[place]
        inputs[place] = wide[..., 1:-2]
    results = run_backward(inputs, layout(1, 37, 6))
    assert all(error(a, b) < 1e-6 for a, b in zip(results, expected, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    "shape",
    [(2, 2, 301, 96, 16), (2, 1, 1, 24, 16), (1, 3, 130, 41, 16), (2, 1, 97, 33, 64), (2, 9, 700, 384, 16)],
)
def test_agrees_on_a_gpu_in_the_same_bits(shape, dtype):
    from flexvideo.scan import cuda

    inputs = scan_inputs(*shape, dtype=dtype, device="cuda")
    runs = [cuda.backward(upstream_of(inputs), *inputs, cuda.scan(*inputs)[1], remake=True) for _ in range(3)]
    for i, (result, expected) in enumerate(zip(runs[0], truth(inputs), strict=True)):
        assert error(result, expected) < 10 * TOLERANCES[dtype], i
        assert all(torch.equal(result, run[i]) for run in runs[1:]), i


def test_without_remake_there_are_8():
    inputs = scan_inputs(2, 1, 3, 4, 16, device="cpu")
    states = torch.zeros(2, 1, 1, 16, 4)
    launch = layout(1, 3, 4)
    nothing = {"launch": launch, "run": lambda *_, **__: None}
    assert len(scan_backward(inputs[6], *inputs, states, **nothing)) == 8


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 2),
    st.integers(0, 64),
    st.integers(1, 3000),
    st.integers(1, 2500),
    st.integers(1, 64),
    st.sampled_from([(132, 232448), (108, 166912), (16, 101376)]),
)
def test_launches_are_whole(k, b, blocks, d, n, device):
    multiprocessors, shared = device
    launch = backward_launch_for(k, b, blocks, d, n, multiprocessors=multiprocessors, shared=shared)
    span, chains = launch.span // BLOCK, b * -(-d // (16 * launch.warps)) * launch.spans
    assert span * (launch.spans - 1) < blocks <= span * launch.spans
    assert launch.share >= span  # of two pieces of a chain, one is the first of its block of threads
    assert launch.grid * launch.share >= chains * span > (launch.grid - 1) * launch.share
    assert k * launch.warps * launch.resident <= max(MOST_WARPS, k)
    assert shared_bytes(k, n, launch.warps, aside=not launch.far) <= shared


def test_launch_for_the_large_model_fills_the_device():
    launch = backward_launch_for(2, 16, 50, 1152, 16, **H100)
    assert launch == BackwardLaunch(6, 3200, 1, 132, 73, 1, far=False)
    assert backward_launch_for(2, 1, 50, 1152, 16, **H100).spans * 12 >= 120


def test_time_is_split_where_that_counts_less_than_idle_blocks_of_threads():
    def shares(blocks, *batches):
        layouts = [backward_launch_for(2, b, blocks, 1152, 16, **H100) for b in batches]
        return [(layout.spans, layout.share) for layout in layouts]

    assert shares(50, 1, 8, 9, 10, 11) == [(10, 5), (2, 37), (2, 41), (2, 46), (1, 50)]  # 12 chains a sample
    assert shares(7, 1, 6, 7) == [(7, 1), (2, 5), (1, 7)]  # not the pass before the pass to save one of 7
    assert shares(2, 5, 6) == [(2, 1), (1, 2)]


def variants():
    """Sources and macros of every kind of kernel that is compiled for a model."""
    launch = backward_launch_for(2, 16, 50, 1152, 16, **H100)
    for dtype in TOLERANCES:
        defines = macros(dtype, 2, 16, 16, launch, even=True, remake=True)
        yield "cuda_back_ends.cu", defines
        for carry in (0, 1):
            yield "cuda_backward.cu", defines | {"CARRY": carry}
    yield "cuda_backward.cu", macros(torch.bfloat16, 2, 16, 16, launch, even=False, remake=False)
    yield "cuda_backward.cu", macros(torch.bfloat16, 1, 16, 16, launch, even=True, remake=False)
    wide = backward_launch_for(2, 16, 50, 1152, 64, multiprocessors=16, shared=101376)
    yield "cuda_backward.cu", macros(torch.float32, 2, 64, 64, wide, even=True, remake=True)


@pytest.mark.slow
@with_nvrtc
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_compiles(architecture, tmp_path, monkeypatch):
    monkeypatch.setattr(nvrtc, "_folder", lambda: tmp_path)
    for source, defines in variants():
        assert nvrtc.compiled(source, tuple(defines.items()), architecture)
