"""The CUDA kernel of the forward pass: emulated on the CPU, and compiled by NVRTC where that is installed."""

import cuda_cpu
import pytest
import torch
from scan_cases import emulated, error, scan_inputs, with_every_memory, with_nvrtc

from flexvideo.errors import BackendError
from flexvideo.scan import nvrtc
from flexvideo.scan.cuda_forward import (
    BLOCK,
    STEPS,
    Deal,
    Launch,
    blocks_resident,
    groups,
    kept,
    launch_for,
    room_of_block,
    scan_forward,
)
from flexvideo.scan.reference import selective_scan

TOLERANCES = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}


def launch(shape, *, warps: int = 2, spans: int = 1, span: int | None = None, extra: int = 0) -> Launch:
    """One chain along time, or several; a block of threads walks `extra` tiles more than one."""
    _, b, l, d, n = shape
    span = span or -(-l // (spans * STEPS)) * STEPS
    spans, share = -(-l // span), span // STEPS + extra
    tiles = b * groups(d, warps) * spans * span // STEPS
    return Launch(-(-n // 4), warps, span, spans, Deal(-(-tiles // share), share, 10 // warps))


def run_forward(inputs, *, keep=True, **sizes):
    """The kernel in the emulation, with its threads in both orders: the same bits."""
    layout = launch((*inputs[0].shape, inputs[2].shape[-1]), **sizes)
    results = []
    for order in (False, True):

        def run(*arguments, order=order, **keywords):
            cuda_cpu.run(*arguments, **keywords, reversed_order=order)

        results.append(scan_forward(*inputs, launch=layout, keep=keep, run=run))
    (out, states), again = results
    for one, other in ((out, again[0]), (states, again[1])):
        assert torch.equal(one.nan_to_num(), other.nan_to_num())
    return out, states


def agrees(shape, dtype, **sizes):
    inputs = scan_inputs(*shape, dtype=dtype, device="cpu")
    out, _ = run_forward(inputs, **sizes)
    truth = selective_scan(*(x.double() for x in inputs))
    assert out.dtype == dtype
    assert error(out, truth) < TOLERANCES[dtype]


@emulated
@pytest.mark.parametrize("length", [2, 15, 16, 17, 31, 32, 33, 47, 48, 49])
def test_every_tile_is_met_by_both_directions(length):
    agrees((2, 1, length, 4, 16), torch.float32)


@emulated
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_agrees_with_the_reference(dtype):
    for shape in ((2, 2, 150, 36, 16), (2, 1, 1, 32, 16), (2, 1, 2, 4, 16)):
        agrees(shape, dtype)


@emulated
@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    "shape",
    [
        (2, 1, 21, 3, 5),
        (1, 2, 9, 6, 16),
        (1, 1, 66, 5, 2),
        (2, 1, 13, 34, 33),
        (2, 1, 70, 40, 8),
        (1, 1, 70, 40, 4),
        (2, 1, 130, 32, 24),
        (2, 1, 2, 33, 64),
    ],
)
def test_agrees_at_odd_sizes(shape, dtype):
    agrees(shape, dtype)


@emulated
@pytest.mark.parametrize("warps", [1, 4])
def test_blocks_of_any_size_give_the_same_bits(warps):
    inputs = scan_inputs(2, 2, 67, 70, 16, device="cpu")
    for spans in (1, 2):
        results = run_forward(inputs, spans=spans), run_forward(inputs, spans=spans, warps=warps, extra=2)
        for one, other in zip(*results, strict=True):
            assert torch.equal(one, other)


@emulated
def test_states_are_kept_only_when_asked_for():
    inputs = scan_inputs(2, 1, 70, 4, 16, device="cpu")
    out, _ = run_forward(inputs)
    again, states = run_forward(inputs, keep=False)
    assert torch.equal(out, again)
    assert states.numel() == 0


def same_bits(shape, *, extra, **sizes):
    inputs = scan_inputs(*shape, device="cpu")
    whole, dealt = run_forward(inputs, **sizes), run_forward(inputs, **sizes, extra=extra)
    for one, other in zip(whole, dealt, strict=True):
        assert torch.equal(one, other)


@emulated
@pytest.mark.parametrize("extra", [1, 2, 5])
def test_cut_chains_give_the_same_bits(extra):
    same_bits((2, 3, 67, 36, 16), extra=extra)  # 6 chains of 5 tiles


@emulated
@pytest.mark.slow
@pytest.mark.parametrize("extra", range(1, 14))
def test_cut_chains_give_the_same_bits_wherever_they_are_cut(extra):
    same_bits((2, 4, 197, 6, 16), extra=extra)  # 4 chains of 13 tiles
    same_bits((1, 4, 150, 3, 16), extra=extra)
    same_bits((2, 5, 1, 33, 16), extra=extra)


@pytest.mark.gpu
@pytest.mark.parametrize("extra", [1, 6, 15, 30])
def test_cut_chains_give_the_same_bits_on_a_gpu(extra):
    shape = (2, 16, 1000, 1152, 16)  # chains of 63 tiles
    inputs = scan_inputs(*shape, device="cuda", dtype=torch.bfloat16)
    whole = scan_forward(*inputs, launch=launch(shape))
    for _ in range(5):
        dealt = scan_forward(*inputs, launch=launch(shape, extra=extra))
        for one, other in zip(whole, dealt, strict=True):
            assert torch.equal(one, other)


@emulated
@pytest.mark.slow
@pytest.mark.parametrize("extra", [1, 2, 5])
def test_cut_chains_of_spans_agree(extra):
    agrees((2, 2, 150, 36, 16), torch.float32, spans=3, extra=extra)
    agrees((1, 1, 151, 3, 16), torch.float32, spans=5, extra=extra)


@emulated
@pytest.mark.slow
def test_spans_agree():
    agrees((2, 2, 150, 36, 16), torch.float32, spans=3)
    agrees((1, 1, 150, 3, 16), torch.float32, spans=5)


def short_memory(d, n, *, k=2, l=131):
    """Inputs of which nothing is left after 16 steps; of 3 spans of 64."""
    inputs = scan_inputs(k, 2, l, d, n, device="cpu")
    inputs[1], inputs[2] = inputs[1].abs() + 1, inputs[2].abs() * -0.1 - 9
    return inputs


@emulated
@pytest.mark.parametrize("slow", [0.0, 1e-3, -1e-9], ids=str)
@pytest.mark.parametrize("k", [1, 2])
def test_looking_back_no_further_than_needed_gives_the_same_bits(slow, k):
    inputs = short_memory(6, 5, k=k)
    out, states = run_forward(inputs, span=64)
    inputs[2] = inputs[2].clone()
    inputs[2][:, 5, 4] = slow  # the last state of the last channel keeps its block looking
    further, again = run_forward(inputs, span=64)
    assert torch.equal(out[..., :5], further[..., :5])
    assert torch.equal(states[..., :5], again[..., :5])
    assert error(further, selective_scan(*(x.double() for x in inputs))) < 1e-6


@emulated
@pytest.mark.parametrize(("d", "n"), [(3, 5), (33, 16), (2, 1)])
def test_what_is_forgotten_is_not_looked_at(d, n):
    # states and channels that are not there keep nobody looking; NaN shows who looked
    inputs = short_memory(d, n)
    inputs[0] = inputs[0].clone()
    inputs[0][0, 0, 40], inputs[0][1, 1, 110] = float("nan"), float("nan")
    out, _ = run_forward(inputs, span=64)
    for reached in (out[0, 40:64], out[1, 64:111]):  # up to the end of the span in either direction
        assert reached.isnan().all()
        reached.zero_()
    assert not out.isnan().any()
    inputs[2] = inputs[2].clone()
    inputs[2][0, -1, -1] = 0.0
    out, _ = run_forward(inputs, span=64)
    assert out[0, 40:, -1].isnan().all()


@emulated
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_nan_reaches_spans_after_its_own_where_it_is_not_forgotten(place):
    inputs = short_memory(4, 16)
    inputs[place] = inputs[place].clone()
    inputs[place][(0, 0, 60) if place != 2 else (0,)] = float("nan")
    out, _ = run_forward(inputs, span=64)
    assert out[0, 60:].isnan().all()
    if place != 2:
        assert not out[0, :60].isnan().any()
        assert not out[1].isnan().any()


@emulated
@pytest.mark.parametrize("shape", [(2, 1, 161, 35, 16), (1, 1, 93, 3, 5)])
def test_memory_of_every_length(shape):
    inputs = with_every_memory(scan_inputs(*shape, device="cpu"), decades=12)
    truth = selective_scan(*(x.double() for x in inputs))
    for spans in (1, 2, 3):
        assert error(run_forward(inputs, spans=spans)[0], truth) < 1e-6


@emulated
@pytest.mark.parametrize(("l", "span"), [(150, None), (193, 176)], ids=["one", "longer"])
def test_states_are_those_before_every_block(l, span):
    k, b, d, n = 2, 2, 4, 16
    inputs = scan_inputs(k, b, l, d, n, device="cpu")
    u, delta, A, B, _, _, _, bias = (x.double() for x in inputs)
    dt = torch.nn.functional.softplus(delta + bias[:, None, None])
    pad = -l % BLOCK
    _, states = run_forward(inputs, span=span)
    for side in range(k):
        steps = [None] * pad + list(range(l))[::-1] if side else list(range(l))
        h = torch.zeros(b, d, n, dtype=torch.double)
        for s, t in enumerate(steps):
            if s % BLOCK == 0:
                assert (states[side, :, s // BLOCK].mT - h).abs().max() < 1e-5
            if t is not None:
                step = dt[side, :, t, :, None]
                h = torch.exp(step * A[side]) * h + step * u[side, :, t, :, None] * B[side, :, t, None]


@emulated
@pytest.mark.parametrize(
    ("shift", "scale"),
    [(12.0, 1.0), (-20.0, 1.0), (0.0, 1e4), (0.0, 1e-7)],
    ids=["forget", "never", "far", "near"],
)
def test_extremes(shift, scale):
    inputs = scan_inputs(2, 1, 30, 4, 16, device="cpu")
    inputs[1], inputs[2] = inputs[1] + shift, inputs[2] * scale
    out, _ = run_forward(inputs)
    assert error(out, selective_scan(*(x.double() for x in inputs))) < 1e-5


@emulated
@pytest.mark.parametrize("place", [0, 1, 3, 4, 6], ids=["u", "delta", "B", "C", "z"])
def test_nan_reaches_all_after_it_and_no_other_sample(place):
    inputs = scan_inputs(1, 2, 11, 4, 16, device="cpu")
    inputs[place] = inputs[place].clone()
    inputs[place][(0,) * (inputs[place].ndim - 2)][5] = float("nan")
    out, _ = run_forward(inputs)
    assert out[0, 5].isnan().all()
    assert not out[0, :5].isnan().any()
    assert not out[1].isnan().any()
    if place in (0, 1, 3):
        assert out[0, 5:].isnan().all()


@emulated
def test_any_alignment():
    # rows of B and C at odd places, channels of z at odd places
    inputs = scan_inputs(2, 1, 37, 6, 16, device="cpu")
    truth = selective_scan(*(x.double() for x in inputs))
    for place in (3, 4, 6):
        wide = torch.empty(*inputs[place].shape[:-1], inputs[place].shape[-1] + 3)
        wide[..., 1:-2] = inputs[place]
        inputs[place] = wide[..., 1:-2]
    out, _ = run_forward(inputs)
    assert error(out, truth) < 1e-6


@emulated
def test_one_gate_for_all_steps():
    inputs = scan_inputs(1, 2, 37, 6, 16, device="cpu")
    inputs[6] = inputs[6][:, :1].expand_as(inputs[6])
    out, _ = run_forward(inputs)
    assert error(out, selective_scan(*(x.double() for x in inputs))) < 1e-6


H100 = {"multiprocessors": 132, "shared": 228 << 10}


@pytest.mark.parametrize("n", [1, 16, 24, 64])
def test_launches_are_whole(n):
    for b in (1, 2, 4, 16, 20, 300):
        for l in (1, 63, 64, 197, 3137, 100353):
            layout = launch_for(b, l, 1152, n, **H100)
            assert layout.span * (layout.spans - 1) < l <= layout.span * layout.spans
            assert layout.span % STEPS == 0
            assert kept(l, n)[0] * BLOCK >= l
            assert kept(l, n)[1] == 4 * layout.held >= n
            dealt, tiles = layout.walk, layout.span // STEPS
            of_all = layout.spans * groups(1152, layout.warps) * b * tiles
            assert dealt.share >= tiles
            assert dealt.share * (dealt.grid - 1) < of_all <= dealt.share * dealt.grid
            # blocks of threads that wait for each other run at the same time
            assert dealt.share == tiles or dealt.grid <= dealt.resident * 132
            assert dealt.resident <= blocks_resident(layout.held, layout.warps)


def test_work_is_dealt_out_where_that_gains():
    assert launch_for(16, 3137, 1152, 16, **H100).walk == Deal(264, 215, 2)  # 288 chains of 197 tiles
    assert launch_for(14, 3137, 1152, 16, **H100).walk == Deal(252, 197, 2)  # 1.9 a multiprocessor
    assert launch_for(20, 3137, 1152, 16, **H100).walk == Deal(264, 269, 2)  # not a second wave for 96
    assert launch_for(14, 197, 1152, 16, **H100).walk == Deal(252, 13, 2)  # soon done


def test_blocks_share_the_memory_of_a_multiprocessor():
    small = {"multiprocessors": 84, "shared": 100 << 10}  # of such as sm_86
    for n, warps, most in ((8, 4, 2), (16, 4, 2), (24, 4, 2), (32, 2, 3), (64, 2, 2)):
        for b in (1, 12, 16):
            layout = launch_for(b, 3137, 1152, n, **small)
            assert layout.warps == warps
            assert layout.walk.resident <= most
            assert layout.walk.resident * (room_of_block(layout.held, warps) + 1024) <= small["shared"]


def test_time_is_split_where_the_device_would_be_idle():
    layouts = [launch_for(b, 50192 // b, 1152, 16, **H100) for b in (16, 8, 4, 2, 1)]
    assert [layout.spans for layout in layouts] == [1, 2, 4, 8, 15]
    assert launch_for(1, 40, 1152, 16, **H100).spans == 1
    assert launch_for(0, 40, 1152, 16, **H100).walk.grid == 0


def test_whole_lines_are_read_where_there_are_channels_enough():
    assert launch_for(2, 3137, 1152, 16, **H100).warps == 4
    assert launch_for(1, 3137, 1152, 16, **H100).warps == 2  # more blocks, of fewer channels each


def test_too_many_states_are_refused():
    inputs = scan_inputs(1, 1, 2, 2, 65, device="cpu")
    with pytest.raises(BackendError, match="at most 64 states, got 65: use 'triton'"):
        scan_forward(*inputs, launch=launch((1, 1, 2, 2, 65)))


def test_too_long_sequences_are_refused():
    u = torch.empty(1, 1, 600_000_000, 2, device="meta")
    with pytest.raises(
        BackendError, match=r"2 GiB of a sequence, and 600000000 tokens of 2 channels take 4\.5"
    ):
        scan_forward(
            u, *[u] * 5, torch.empty(1, 600_000_000, 2, device="meta"), u, launch=launch((1, 1, 9, 2, 2))
        )


def variants():
    """Sources and macros of every kind of kernel that is compiled for a model."""
    common = {"DIRECTIONS": 2, "STATES": 16, "HELD": 4, "STEPS": STEPS, "WARPS": 2}
    common |= {"PAIRS": 1, "QUADS": 1, "BLOCKS": 5}
    walk = {"SAVE": 1, "CARRY": 0, "KEPT": BLOCK}
    for dtype in (0, 1, 2):
        for kind in ({}, {"SAVE": 0}, {"CARRY": 1}, {"BLOCKS": 4}, {"WARPS": 4, "BLOCKS": 2}):
            yield "cuda_forward.cu", {"DTYPE": dtype, **common, **walk, **kind}
        for kind in ({}, {"WARPS": 4, "BLOCKS": 2}):
            yield "cuda_ends.cu", {"DTYPE": dtype, **common, **kind}
    yield "cuda_forward.cu", {"DTYPE": 2, **common, **walk, "PAIRS": 0, "QUADS": 0}
    yield "cuda_forward.cu", {"DTYPE": 2, **common, **walk, "DIRECTIONS": 1, "BLOCKS": 10}
    yield "cuda_forward.cu", {"DTYPE": 0, **common, **walk, "STATES": 64, "HELD": 16, "BLOCKS": 2}
    yield "cuda_ends.cu", {"DTYPE": 0, **common, "STATES": 64, "HELD": 16, "BLOCKS": 2}


@pytest.mark.slow
@with_nvrtc
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_compiles(architecture, tmp_path, monkeypatch):
    monkeypatch.setattr(nvrtc, "_folder", lambda: tmp_path)
    for source, defines in variants():
        assert nvrtc.compiled(source, tuple(defines.items()), architecture)
    assert nvrtc.compiled("cuda_chain.cu", (("STATES", 16), ("PADDED", 16)), architecture)
    assert len(list(tmp_path.iterdir())) == len(list(variants())) + 1
