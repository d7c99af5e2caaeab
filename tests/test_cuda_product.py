"""Step sizes multiplied within the CUDA scan: emulated on the CPU down to the registers of a lane."""

from functools import partial
from itertools import product
from types import SimpleNamespace

import cuda_cpu
import pytest
import torch
from scan_cases import TOLERANCES, emulated, error, scan_inputs
from test_cuda_forward import H100, launch

from flexvideo.scan import cuda, cuda_forward
from flexvideo.scan.cuda_forward import aside, launch_for, multiplies, scan_forward
from flexvideo.scan.ops import projected_scan
from flexvideo.scan.reference import selective_scan

DTYPES = [torch.float16, torch.bfloat16]


def inputs_of(k, b, l, d, n, rank, *, dtype, device="cpu", exact=False):
    """Rows and weights of step sizes, and inputs of a scan as in a model: of one row low, B and C.

    The rank is filled up with zeros. If `exact`, rows and weights are multiples of 1/4 and 1/8 up to 1, so
    that their products are the same in any order.
    """
    inputs = scan_inputs(k, b, l, d, n, dtype=dtype, device="cpu")
    generator = torch.Generator().manual_seed(1)
    low, weights = (
        torch.randn(k, b, l, rank, generator=generator),
        torch.randn(k, d, rank, generator=generator),
    )
    if exact:
        low, weights = (low * 2).round().clamp(-4, 4) / 4, (weights * 3).round().clamp(-8, 8) / 8
    else:
        weights *= rank**-0.5
    low, weights = (torch.nn.functional.pad(x, (0, -rank % 8)).to(dtype) for x in (low, weights))
    rows = torch.cat([low, *inputs[3:5], low.new_zeros(k, b, l, -2 * n % 8)], dim=-1).to(device)
    low, *inputs[3:5] = rows[..., : low.shape[-1] + 2 * n].split([low.shape[-1], n, n], dim=-1)
    inputs[6] = inputs[6] if device == "cpu" else torch.cat([inputs[6]] * 2, -1).to(device)[..., d:]
    return low, weights.to(device), [x.to(device) if i not in (3, 4, 6) else x for i, x in enumerate(inputs)]


def multiplied(low, weights, inputs):
    """The same inputs with step sizes in memory."""
    delta = torch.einsum("kblr, kdr -> kbld", low.double(), weights.double()).to(low.dtype)
    return [inputs[0], delta, *inputs[2:]]


def within(low, weights, inputs, *, keep=True, **sizes):
    """The scan that multiplies, in the emulation, with its threads in both orders."""
    layout = launch((*inputs[0].shape, inputs[2].shape[-1]), **sizes)
    u, _, *rest = inputs
    results = [
        scan_forward(
            u,
            low,
            *rest,
            dt_proj=weights,
            launch=layout,
            keep=keep,
            run=partial(cuda_cpu.run, reversed_order=order),
        )
        for order in (False, True)
    ]
    for one, other in zip(*results, strict=True):
        assert torch.equal(one.nan_to_num(), other.nan_to_num())
    return results[0]


def same_bits(shape, rank, dtype, *, keep=True, **sizes):
    low, weights, inputs = inputs_of(*shape, rank, dtype=dtype, exact=True)
    layout = launch(shape, **sizes)
    expected = scan_forward(*multiplied(low, weights, inputs), launch=layout, keep=keep, run=cuda_cpu.run)
    for one, other in zip(within(low, weights, inputs, keep=keep, **sizes), expected, strict=True):
        assert torch.equal(one, other)
        assert one.isfinite().all()


@emulated
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [12, 24, 36, 40])
def test_gives_the_bits_of_step_sizes_in_memory(rank, dtype):
    same_bits((2, 2, 51, 36, 16), rank, dtype)


@emulated
@pytest.mark.slow
@pytest.mark.parametrize("rank", range(1, 49, 3))
def test_any_rank(rank):
    same_bits((2, 1, 35, 20, 16), rank, torch.bfloat16)


@emulated
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 33, 48])
def test_any_length(length):
    same_bits((2, 3, length, 4, 16), 36, torch.bfloat16)


@emulated
@pytest.mark.parametrize(
    "shape", [(2, 1, 37, 33, 16), (1, 2, 37, 70, 16), (2, 1, 21, 3, 5), (1, 1, 13, 10, 33)], ids=str
)
def test_any_width_and_count_of_states(shape):
    same_bits(shape, 24, torch.bfloat16)


@emulated
def test_states_need_not_be_kept():
    same_bits((2, 2, 51, 36, 16), 36, torch.bfloat16, keep=False)


@emulated
@pytest.mark.parametrize("warps", [2, 4])
def test_time_split_and_chains_cut(warps):
    for spans, extra in product((1, 3), (0, 2)):
        same_bits((2, 1, 99, 20 * warps, 16), 36, torch.bfloat16, warps=warps, spans=spans, extra=extra)


@emulated
@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_the_reference(dtype):
    low, weights, inputs = inputs_of(2, 2, 67, 36, 16, 36, dtype=dtype)
    inputs[1] = torch.einsum("kblr, kdr -> kbld", low.double(), weights.double())
    truth = selective_scan(*(x.double() for x in inputs))
    assert error(within(low, weights, inputs)[0], truth) < TOLERANCES[dtype][0]


@emulated
@pytest.mark.parametrize("spans", [1, 2])
def test_nan_in_a_row_reaches_all_after_it_and_no_other_sample(spans):
    low, weights, inputs = inputs_of(1, 2, 40, 4, 16, 12, dtype=torch.bfloat16)
    low[0, 0, 21, 3] = float("nan")
    out, _ = within(low, weights, inputs, spans=spans)
    assert out[0, 21:].isnan().all()
    assert not out[0, :21].isnan().any()
    assert not out[1].isnan().any()


@emulated
@pytest.mark.parametrize("length", [3, 40])
def test_rows_before_and_after_a_sample_are_not_its_own(length):
    low, weights, inputs = inputs_of(2, 3, length, 4, 16, 12, dtype=torch.bfloat16)
    low[:, 1] = float("nan")
    out, _ = within(low, weights, inputs)
    assert out[1].isnan().all()
    assert not out[::2].isnan().any()


@emulated
def test_nan_in_the_weights_of_a_channel_reaches_no_other():
    low, weights, inputs = inputs_of(2, 1, 40, 6, 16, 12, dtype=torch.bfloat16)
    weights[1, 3, 7] = float("nan")
    out, _ = within(low, weights, inputs)
    assert out[..., 3].isnan().all()
    assert not out[..., [0, 1, 2, 4, 5]].isnan().any()


def takes(shape, rank, dtype=torch.bfloat16, device=H100):
    """Whether the scan multiplies, of rows as in a model."""
    _, b, l, d, n = shape
    rows = torch.empty(2, b, l, rank + 2 * n, dtype=dtype)
    layout = launch_for(b, l, d, n, **device)
    return multiplies(rows[..., rank:], rows[..., :rank], layout, shared=device["shared"])


M = (2, 16, 3137, 1152, 16)


def test_takes_the_ranks_of_all_sizes():
    for width, rank in ((384, 16), (768, 24), (1152, 40), (1536, 48)):  # VideoMamba Ti, S, M and B
        for dtype in DTYPES:
            assert takes((2, 16, 3137, width, 16), rank, dtype)


@pytest.mark.parametrize(
    ("shape", "rank", "dtype"),
    [
        (M, 40, torch.float32),
        (M, 56, torch.bfloat16),
        (M, 36, torch.bfloat16),  # rows of 136 bytes
        ((2, 16, 3137, 1152, 24), 40, torch.bfloat16),  # more shared memory than a block may have
    ],
    ids=["dtype", "rank", "alignment", "room"],
)
def test_leaves_step_sizes_in_memory(shape, rank, dtype):
    assert not takes(shape, rank, dtype)


def test_occupies_a_multiprocessor_as_without():
    small = {"multiprocessors": 84, "shared": 100 << 10}  # of such as sm_86
    layout = launch_for(*M[1:], **small)
    assert layout.walk.resident == 2
    assert takes(M, 40, device=small)
    assert not takes(M, 40, device=small | {"shared": 92 << 10})
    one = (2, 1, 3137, 1152, 16)  # 5 blocks of 2 warps, with weights put aside
    assert aside(launch_for(*one[1:], **H100))
    assert takes(one, 40)
    assert not takes(one, 40, device=H100 | {"shared": 164 << 10})


@pytest.fixture
def emulation(monkeypatch):
    """Ranks that the scan of the backend multiplied, in the emulation of a device of one multiprocessor."""
    device = SimpleNamespace(multi_processor_count=1, shared_memory_per_multiprocessor=H100["shared"])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    ranks = []

    def run(source, *arguments, defines, **keywords):
        if source == "cuda_forward.cu":
            ranks.append(defines["RANK"])
        cuda_cpu.run(source, *arguments, defines=defines, **keywords)

    monkeypatch.setattr(cuda, "scan_forward", partial(scan_forward, run=run))
    return ranks


@emulated
@pytest.mark.parametrize("keep", [False, True])
def test_the_backend_multiplies_where_it_is_asked_for_products(emulation, monkeypatch, keep):
    low, weights, inputs = inputs_of(2, 2, 35, 40, 16, 12, dtype=torch.bfloat16, exact=True)
    u, _, *rest = inputs
    given = (cuda.KERNELS, u, low.flatten(1, 2), weights, *rest)
    out, saved = projected_scan(*given, keep=keep)
    monkeypatch.setattr(cuda_forward, "MOST_RANK", 0)
    again, kept = projected_scan(*given, keep=keep)
    assert emulation == [16, 0]
    assert len(saved) == len(kept) == keep
    for one, other in zip((out, *saved), (again, *kept), strict=True):
        assert torch.equal(one, other)


@emulated
def test_an_empty_batch(emulation):
    low, weights, inputs = inputs_of(2, 1, 35, 40, 16, 12, dtype=torch.bfloat16)
    u, _, A, B, C, D, z, bias = inputs
    u, B, C = (x[:, :0] for x in (u, B, C))
    out, _ = projected_scan(
        cuda.KERNELS, u, low[:, :0].flatten(1, 2), weights, A, B, C, D, z[:0], bias, keep=True
    )
    assert out.shape == (0, 35, 40)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    ("shape", "rank"),
    [
        ((2, 16, 3137, 1152, 16), 36),
        ((2, 3, 1001, 384, 16), 12),
        ((2, 5, 197, 776, 16), 24),
        ((2, 1, 20011, 1536, 16), 48),
        ((1, 2, 15, 33, 5), 8),
    ],
    ids=str,
)
def test_gives_the_bits_of_step_sizes_in_memory_on_a_gpu(shape, rank, dtype, keep):
    low, weights, inputs = inputs_of(*shape, rank, dtype=dtype, device="cuda", exact=True)
    layout, _ = cuda.launch_on(inputs[0], inputs[2])
    u, _, *rest = inputs
    expected = scan_forward(*multiplied(low, weights, inputs), launch=layout, keep=keep)
    for _ in range(3):
        found = scan_forward(u, low, *rest, dt_proj=weights, launch=layout, keep=keep)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2, 8, 3137, 1152, 16), (2, 1, 301, 384, 16)], ids=str)
def test_agrees_with_step_sizes_in_memory_on_a_gpu(shape, monkeypatch):
    low, weights, inputs = inputs_of(*shape, 36, dtype=torch.bfloat16, device="cuda")
    u, _, *rest = inputs
    given = (cuda.KERNELS, u, low.flatten(1, 2), weights, *rest)
    found = projected_scan(*given, keep=True)
    monkeypatch.setattr(cuda_forward, "MOST_RANK", 0)
    expected = projected_scan(*given, keep=True)
    assert error(found[0], expected[0]) < 2e-3
    assert error(found[1][0], expected[1][0]) < 2e-3
