"""The 1-D matrices against torch's interpolate, an independent pseudo-inverse, and the laws they obey."""

import time

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flexvideo.errors import ConfigError, GeometryError
from flexvideo.matrices import axis_matrix

TABLE_KINDS = ("linear", "linear-aa", "bicubic", "bicubic-aa")
KERNEL_KINDS = ("paper", "paper-aa", "area", "area-aa", "pi", "adjoint", "auto")
KINDS = TABLE_KINDS + KERNEL_KINDS

lengths = st.integers(1, 64)
laws = settings(deadline=None, max_examples=60)


def interpolated(kind: str, old: int, new: int) -> Tensor:
    """The matrix as interpolate sees it; the resized axis is last, where torch's antialiasing is right."""
    mode = "bilinear" if kind.startswith("linear") else "bicubic"
    eye = torch.eye(old, dtype=torch.float64)[None, None]
    return F.interpolate(eye, size=(old, new), mode=mode, antialias=kind.endswith("-aa"))[0, 0].T


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=tolerance)


@given(st.sampled_from(TABLE_KINDS), lengths, lengths)
@laws
def test_closed_form_equals_interpolate(kind: str, old: int, new: int) -> None:
    close(axis_matrix(kind, old, new), interpolated(kind, old, new))


@pytest.mark.parametrize("kind", TABLE_KINDS)
@pytest.mark.parametrize(("old", "new"), [(224, 98), (96, 384), (1080, 224), (1, 5), (5, 1), (2, 3)])
def test_closed_form_equals_interpolate_at_frame_sizes(kind: str, old: int, new: int) -> None:
    close(axis_matrix(kind, old, new), interpolated(kind, old, new))


@pytest.mark.parametrize("kind", ["linear", "linear-aa"])
def test_linear_equals_one_dimensional_interpolate(kind: str) -> None:
    table = torch.randn(1, 3, 8, dtype=torch.float64)
    plain = F.interpolate(
        table, size=13, mode="linear"
    )  # without antialiasing, which does nothing when growing
    close(table @ axis_matrix(kind, 8, 13).T, plain)


@given(st.sampled_from(KINDS), lengths)
@laws
def test_same_length_is_exactly_the_identity(kind: str, length: int) -> None:
    assert torch.equal(axis_matrix(kind, length, length), torch.eye(length, dtype=torch.float64))


@given(st.sampled_from(TABLE_KINDS), lengths, lengths)
@laws
def test_rows_sum_to_one(kind: str, old: int, new: int) -> None:
    close(axis_matrix(kind, old, new).sum(1), torch.ones(new, dtype=torch.float64), 1e-14)


@given(st.sampled_from(KINDS), lengths, lengths)
@laws
def test_flip_commutes(kind: str, old: int, new: int) -> None:
    matrix = axis_matrix(kind, old, new)
    close(matrix.flip(0, 1), matrix)


@given(st.sampled_from(KINDS), lengths, lengths)
@laws
def test_is_a_contiguous_float64_matrix_on_the_cpu(kind: str, old: int, new: int) -> None:
    with torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
        matrix = axis_matrix(kind, old, new)
    assert (matrix.dtype, matrix.device.type, matrix.shape) == (torch.float64, "cpu", (new, old))
    assert matrix.stride() == (old, 1)


@given(lengths, lengths)
@laws
def test_pi_equals_the_svd_pseudo_inverse(old: int, new: int) -> None:
    close(axis_matrix("pi", old, new), torch.linalg.pinv(interpolated("bicubic-aa", old, new).T))


@given(lengths, lengths)
@laws
def test_pi_preserves_inner_products_or_projects_them(old: int, new: int) -> None:
    # <B x, w'> = <x, B^T w'>, and B^T w' is w when the kernel grows, else its orthogonal projection.
    product = axis_matrix("bicubic-aa", old, new).T @ axis_matrix("pi", old, new)
    if new >= old:
        close(product, torch.eye(old, dtype=torch.float64))
    else:
        close(product, product.T)
        close(product @ product, product)
        assert product.trace().item() == pytest.approx(new, abs=1e-9)


@given(lengths, lengths)
@laws
def test_adjoint_is_the_transpose_of_resizing_back(old: int, new: int) -> None:
    close(axis_matrix("adjoint", old, new), interpolated("bicubic-aa", new, old).T)


@given(lengths, lengths)
@laws
def test_auto_is_pi_down_and_adjoint_up(old: int, new: int) -> None:
    assert torch.equal(axis_matrix("auto", old, new), axis_matrix("pi" if new < old else "adjoint", old, new))


@given(lengths, lengths)
@laws
def test_sum_of_a_kernel(old: int, new: int) -> None:
    def column_sums(kind: str) -> Tensor:
        return axis_matrix(kind, old, new).sum(0)

    ones = torch.ones(old, dtype=torch.float64)
    close(column_sums("adjoint"), ones)
    if new >= old:
        close(column_sums("pi"), ones)
    for antialias in ("", "-aa"):
        close(column_sums(f"area{antialias}") * new, column_sums(f"paper{antialias}") * old)
        assert column_sums(f"area{antialias}").mean().item() == pytest.approx(1.0)
        assert column_sums(f"paper{antialias}").mean().item() == pytest.approx(new / old)


def test_pi_does_not_keep_the_sum_when_shrinking() -> None:
    sums = axis_matrix("pi", 16, 6).sum(0)
    assert 0.05 < (sums - 1.0).abs().max() < 0.5


def test_resizing_is_well_conditioned_so_pi_needs_no_svd() -> None:
    pairs = [(old, old + step) for old in range(1, 64) for step in (1, 2, 7) if old + step <= 64]
    both_ways = pairs + [(new, old) for old, new in pairs]
    assert max(torch.linalg.cond(axis_matrix("bicubic-aa", *pair)).item() for pair in both_ways) < 4.0


@given(lengths, lengths)
@laws
def test_gain_and_overshoot_are_bounded(old: int, new: int) -> None:
    for kind, gain, lowest in (
        ("linear", 1, 0),
        ("linear-aa", 1, 0),
        ("bicubic", 1.3751, -0.112),
        ("bicubic-aa", 1.27, -0.125),
    ):
        matrix = axis_matrix(kind, old, new)
        assert matrix.abs().sum(1).max() <= gain + 1e-12
        assert matrix.min() >= lowest


@pytest.mark.parametrize(
    ("kind", "old", "new", "dead"),
    [
        ("linear", 32, 8, 16),
        ("linear", 64, 8, 48),
        ("linear", 16, 4, 8),
        ("bicubic", 14, 2, 12),
        ("linear-aa", 32, 8, 0),
        ("linear-aa", 64, 8, 0),
        ("bicubic-aa", 14, 2, 0),
        ("bicubic-aa", 24, 8, 0),
    ],
)
def test_slots_that_no_output_reads(kind: str, old: int, new: int, dead: int) -> None:
    assert (axis_matrix(kind, old, new) == 0).all(0).sum() == dead


@given(lengths, st.integers(1, 64))
@laws
def test_antialiasing_leaves_no_slot_unread(old: int, new: int) -> None:
    for kind in ("linear-aa", "bicubic-aa"):
        assert (axis_matrix(kind, old, new) != 0).any(0).all()


def test_linear_halving_is_the_mean_of_pairs() -> None:
    close(axis_matrix("linear", 16, 8), torch.eye(8, dtype=torch.float64).repeat_interleave(2, 1) / 2)


def test_linear_tripling_hits_every_original() -> None:
    close(axis_matrix("linear", 8, 24)[1::3], torch.eye(8, dtype=torch.float64))


def test_linear_doubling_hits_no_original() -> None:
    interior = axis_matrix("linear", 8, 16)[1:-1]
    assert set(interior.flatten().tolist()) == {0.0, 0.25, 0.75}


def test_linear_keeps_a_ramp_inside_and_clamps_it_at_the_ends() -> None:
    ramp = axis_matrix("linear", 16, 32) @ ((torch.arange(16, dtype=torch.float64) + 0.5) / 16)
    error = (ramp - (torch.arange(32, dtype=torch.float64) + 0.5) / 32).abs()
    close(error[1:-1], torch.zeros(30, dtype=torch.float64))
    close(error[[0, -1]], torch.full((2,), 1 / 64, dtype=torch.float64))


@pytest.mark.parametrize(
    ("kind", "through", "gap"),
    [
        ("pi", (16, 24, 32), 0.05),
        ("linear", (8, 16, 32), 0.1),
        ("pi", (16, 32, 16), 0.2),
        ("pi", (16, 8, 16), 0.3),
    ],
)
def test_resizes_do_not_compose(kind: str, through: tuple[int, int, int], gap: float) -> None:
    """Why resampling always starts from the base parameter."""
    a, b, c = through
    chained = axis_matrix(kind, b, c) @ axis_matrix(kind, a, b)
    assert (chained - axis_matrix(kind, a, c)).abs().max() > gap


def test_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"Unknown resize kind 'nearest'\. Known kinds: linear, linear-aa, bicubic"
    ):
        axis_matrix("nearest", 4, 2)


@pytest.mark.parametrize(("old", "new"), [(0, 4), (4, 0), (4, -1)])
def test_empty_axis_is_refused(old: int, new: int) -> None:
    with pytest.raises(GeometryError, match=f"from {old} to {new} samples: both must be at least 1"):
        axis_matrix("linear", old, new)


@pytest.mark.unchecked
@pytest.mark.parametrize("kind", KINDS)
def test_built_in_a_fraction_of_a_millisecond(kind: str) -> None:
    def seconds() -> float:
        start = time.perf_counter()
        axis_matrix(kind, 32, 48)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(50)) < 1e-3  # measured: 0.03 to 0.16 ms; a dense pinv takes 850
