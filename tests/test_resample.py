"""Kernels, tables and clips against interpolate, a dense pseudo-inverse, and the laws of a linear map."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flexvideo.errors import ConfigError, GeometryError
from flexvideo.resample import RULES, Rule, axis_matrix, resample_kernel, resample_table, resize_clip

laws = settings(deadline=None, max_examples=40)
side = st.integers(1, 12)
wide = st.integers(
    2, 12
)  # torch's antialiased interpolate is wrong on the CPU where the output is one column wide
rules = st.sampled_from(sorted(RULES)).map(RULES.__getitem__)
ndims = st.sampled_from([2, 3])


def sizes(n: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*[side] * n)


kernel_sizes = ndims.flatmap(lambda n: st.tuples(sizes(n), sizes(n)))


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def grid_table(table: Tensor, old: tuple[int, ...], new: tuple[int, ...], *kinds: str) -> Tensor:
    return resample_table(table, dim=1, old=old, new=new, kinds=kinds)


def dense_resize(old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """The whole 2-D antialiased resize as one (new pixels, old pixels) matrix, from basis images."""
    basis = torch.eye(math.prod(old), dtype=torch.float64).view(-1, 1, *old)
    return F.interpolate(basis, size=new, mode="bicubic", antialias=True).flatten(1).T


# Agreement with independent implementations ---------------------------------------------------------------


@given(wide, wide, wide, wide, st.booleans())
@laws
def test_paper_and_area_equal_interpolate(h: int, w: int, new_h: int, new_w: int, antialias: bool) -> None:
    weight = random(3, 2, h, w)
    expected = F.interpolate(weight, size=(new_h, new_w), mode="bicubic", antialias=antialias)
    close(resample_kernel(weight, (new_h, new_w), Rule("paper", antialias=antialias)), expected)
    area = resample_kernel(weight, (new_h, new_w), Rule("area", antialias=antialias))
    close(area, expected * (h * w) / (new_h * new_w))


@given(wide, wide, wide, wide)
@laws
def test_pi_and_adjoint_equal_dense_matrices(h: int, w: int, new_h: int, new_w: int) -> None:
    weight = random(3, 2, h, w)
    dense = {
        "pi": torch.linalg.pinv(dense_resize((h, w), (new_h, new_w)).T),
        "adjoint": dense_resize((new_h, new_w), (h, w)).T,
    }
    for rule, matrix in dense.items():
        expected = (weight.flatten(2) @ matrix.T).unflatten(2, (new_h, new_w))
        close(resample_kernel(weight, (new_h, new_w), RULES[rule]), expected)


@given(kernel_sizes, rules)
@laws
def test_kernel_is_the_kronecker_product_of_its_axes(
    old_new: tuple[tuple[int, ...], tuple[int, ...]], rule: Rule
) -> None:
    old, new = old_new
    weight = random(2, 2, *old)
    dense = torch.ones(1, 1, dtype=torch.float64)
    for o, n in zip(old, new, strict=True):
        dense = torch.kron(dense, axis_matrix(rule.kernel_kind, o, n))
    close(resample_kernel(weight, new, rule), (weight.flatten(2) @ dense.T).unflatten(2, new))


@given(st.tuples(side, wide), st.tuples(side, wide), st.booleans())
@laws
def test_spatial_table_equals_interpolate(
    old: tuple[int, int], new: tuple[int, int], antialias: bool
) -> None:
    table = random(1, math.prod(old), 5)
    images = table.mT.unflatten(2, old)
    expected = F.interpolate(images, size=new, mode="bicubic", antialias=antialias).flatten(2).mT
    kind = "bicubic-aa" if antialias else "bicubic"
    close(grid_table(table, old, new, kind, kind), expected)


@given(side, side)
@laws
def test_temporal_table_equals_interpolate(old: int, new: int) -> None:
    table = random(1, old, 5)
    close(grid_table(table, (old,), (new,), "linear"), F.interpolate(table.mT, size=new, mode="linear").mT)


@given(sizes(3), sizes(3))
@laws
def test_joint_table_equals_trilinear_interpolate(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    table = random(1, math.prod(old), 3)
    volumes = table.mT.unflatten(2, old)
    expected = F.interpolate(volumes, size=new, mode="trilinear").flatten(2).mT
    close(grid_table(table, old, new, "linear", "linear", "linear"), expected)


@given(wide, wide, wide, wide)
@laws
def test_clip_equals_interpolate_per_frame(h: int, w: int, new_h: int, new_w: int) -> None:
    clip = random(2, 3, 2, h, w)
    frames = clip.transpose(1, 2).flatten(0, 1)
    expected = F.interpolate(frames, size=(new_h, new_w), mode="bicubic", antialias=True)
    close(resize_clip(clip, (new_h, new_w)), expected.unflatten(0, (2, 2)).transpose(1, 2))


# What the rules promise -----------------------------------------------------------------------------------


@given(kernel_sizes)
@laws
def test_pi_preserves_inner_products_when_growing(old_new: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    a, b = old_new
    old, new = tuple(map(min, a, b)), tuple(map(max, a, b))
    weight, patch = random(2, 2, *old), random(1, 2, *old, seed=1)
    # A patch resizes by the matrices of "paper-aa", so that rule serves to resize it here.
    resized = resample_kernel(patch, new, Rule("paper", antialias=True))
    close((resized * resample_kernel(weight, new, RULES["pi"])).sum(), (patch * weight).sum(), 1e-10)


@given(kernel_sizes)
@laws
def test_adjoint_equals_resizing_each_patch_to_the_base(
    old_new: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    old, new = old_new
    weight, patch = random(2, 2, *old), random(1, 2, *new, seed=1)
    resized = resample_kernel(patch, old, Rule("paper", antialias=True))
    close((patch * resample_kernel(weight, new, RULES["adjoint"])).sum(), (resized * weight).sum(), 1e-11)


@given(kernel_sizes, rules)
@laws
def test_sum_of_a_constant_kernel(old_new: tuple[tuple[int, ...], tuple[int, ...]], rule: Rule) -> None:
    old, new = old_new
    total = resample_kernel(torch.ones(1, 1, *old, dtype=torch.float64), new, rule).sum().item()
    if rule.kernel == "paper":
        assert total == pytest.approx(
            math.prod(new)
        )  # tokens of a constant patch grow by prod(new) / prod(old)
    elif rule.kernel in ("area", "adjoint"):
        assert total == pytest.approx(math.prod(old))


@given(kernel_sizes)
@laws
def test_sum_of_any_kernel(old_new: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    old, new = old_new
    weight = random(2, 2, *old)
    close(resample_kernel(weight, new, RULES["adjoint"]).flatten(2).sum(2), weight.flatten(2).sum(2), 1e-11)
    if all(n >= o for o, n in zip(old, new, strict=True)):
        close(resample_kernel(weight, new, RULES["pi"]).flatten(2).sum(2), weight.flatten(2).sum(2), 1e-11)


@given(sizes(3), sizes(3), st.booleans())
@laws
def test_constant_table_stays_constant(old: tuple[int, ...], new: tuple[int, ...], antialias: bool) -> None:
    rule = RULES["auto" if antialias else "paper"]
    kinds = (rule.temporal_kind, rule.spatial_kind, rule.spatial_kind)
    table = torch.full((1, math.prod(old), 2), 0.3, dtype=torch.float64)
    close(grid_table(table, old, new, *kinds), torch.full((1, math.prod(new), 2), 0.3, dtype=torch.float64))


def test_auto_chooses_per_axis() -> None:
    weight = random(2, 2, 1, 16, 16)
    mixed = resample_kernel(weight, (1, 9, 24), RULES["auto"])
    expected = resample_kernel(resample_kernel(weight, (1, 9, 16), RULES["pi"]), (1, 9, 24), RULES["adjoint"])
    close(mixed, expected)


# Laws of a linear map -------------------------------------------------------------------------------------


@given(kernel_sizes, rules)
@laws
def test_linearity(old_new: tuple[tuple[int, ...], tuple[int, ...]], rule: Rule) -> None:
    old, new = old_new
    a, b = random(2, 2, *old), random(2, 2, *old, seed=1)
    combined = resample_kernel(2.0 * a - 3.0 * b, new, rule)
    close(combined, 2.0 * resample_kernel(a, new, rule) - 3.0 * resample_kernel(b, new, rule), 1e-11)


@given(kernel_sizes, rules, st.integers(2, 4))
@laws
def test_flips_commute(old_new: tuple[tuple[int, ...], tuple[int, ...]], rule: Rule, axis: int) -> None:
    old, new = old_new
    weight = random(2, 2, *old)
    axis = min(axis, weight.ndim - 1)
    close(resample_kernel(weight.flip(axis), new, rule), resample_kernel(weight, new, rule).flip(axis), 1e-11)


@given(kernel_sizes, rules)
@laws
def test_transposes_commute(old_new: tuple[tuple[int, ...], tuple[int, ...]], rule: Rule) -> None:
    old, new = old_new
    weight = random(2, 2, *old)
    turned = resample_kernel(weight.transpose(-1, -2), (*new[:-2], new[-1], new[-2]), rule)
    close(turned, resample_kernel(weight, new, rule).transpose(-1, -2), 1e-11)


@given(kernel_sizes, rules)
@laws
def test_commutes_with_channel_mixing(old_new: tuple[tuple[int, ...], tuple[int, ...]], rule: Rule) -> None:
    old, new = old_new
    weight, mix = random(2, 3, *old), random(4, 2, seed=1)
    mixed = torch.einsum("ab,bc...->ac...", mix, weight)
    expected = torch.einsum("ab,bc...->ac...", mix, resample_kernel(weight, new, rule))
    close(resample_kernel(mixed, new, rule), expected, 1e-11)


@given(kernel_sizes, rules)
@laws
def test_gradient_is_the_adjoint(old_new: tuple[tuple[int, ...], tuple[int, ...]], rule: Rule) -> None:
    old, new = old_new
    weight = random(2, 2, *old).requires_grad_()
    resized = resample_kernel(weight, new, rule)
    cotangent = random(*resized.shape, seed=1)
    (gradient,) = torch.autograd.grad((resized * cotangent).sum(), weight)
    direction = random(*weight.shape, seed=2)
    pushed = resample_kernel(direction, new, rule)
    close((gradient * direction).sum(), (cotangent * pushed).sum(), 1e-10)


@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
@pytest.mark.parametrize(("old", "new"), [((4, 5), (3, 7)), ((2, 4, 3), (3, 2, 5))])
def test_kernel_gradients_twice(rule: Rule, old: tuple[int, ...], new: tuple[int, ...]) -> None:
    weight = random(2, 1, *old).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: resample_kernel(w, new, rule), weight)
    assert torch.autograd.gradgradcheck(lambda w: resample_kernel(w, new, rule), weight)


def test_table_gradients_twice() -> None:
    def resample(table: Tensor) -> Tensor:
        kinds = ("linear-aa", "bicubic", "bicubic-aa")
        return resample_table(
            table, dim=1, old=(2, 3, 2), new=(3, 2, 3), kinds=kinds, extra_old=(0, 7), extra_new=(3, 19)
        )

    table = random(1, 14, 2).requires_grad_()
    assert torch.autograd.gradcheck(resample, table)
    assert torch.autograd.gradgradcheck(resample, table)


# Identity, extra rows, strides ----------------------------------------------------------------------------


@given(kernel_sizes, rules)
@laws
def test_base_size_is_the_very_same_object(
    old_new: tuple[tuple[int, ...], tuple[int, ...]], rule: Rule
) -> None:
    old, _ = old_new
    weight = torch.nn.Parameter(random(2, 2, *old))
    assert resample_kernel(weight, old, rule) is weight
    table = torch.nn.Parameter(random(1, math.prod(old) + 1, 3))
    same = resample_table(
        table, dim=1, old=old, new=old, kinds=("bicubic",) * len(old), extra_old=(0,), extra_new=(0,)
    )
    assert same is table
    clip = random(1, 1, 1, *old[-2:])
    assert resize_clip(clip, (old[-2], old[-1])) is clip


@st.composite
def extra_rows(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    ndim = draw(st.integers(1, 3))
    old, new = draw(sizes(ndim)), draw(sizes(ndim))
    count = draw(st.integers(0, 3))

    def indices(grid: tuple[int, ...]) -> st.SearchStrategy[tuple[int, ...]]:
        index = st.integers(0, math.prod(grid) + count - 1)
        return st.lists(index, min_size=count, max_size=count, unique=True).map(lambda i: tuple(sorted(i)))

    return old, new, draw(indices(old)), draw(indices(new))


@given(extra_rows(), st.sampled_from([1, -2]))
@laws
def test_extra_rows_move_and_the_grid_is_resampled_without_them(
    case: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]], dim: int
) -> None:
    old, new, extra_old, extra_new = case
    kinds = ("linear", "bicubic", "bicubic-aa")[-len(old) :]
    table = random(2, math.prod(old) + len(extra_old), 3)
    result = resample_table(
        table, dim=dim, old=old, new=new, kinds=kinds, extra_old=extra_old, extra_new=extra_new
    )
    grid_old = [i for i in range(table.shape[1]) if i not in extra_old]
    grid_new = [i for i in range(result.shape[1]) if i not in extra_new]
    assert torch.equal(result[:, list(extra_new)], table[:, list(extra_old)])
    assert torch.equal(result[:, grid_new], grid_table(table[:, grid_old], old, new, *kinds))


def test_token_dimension_may_be_the_first_or_the_last() -> None:
    table = random(1, 12, 5)
    expected = grid_table(table, (3, 4), (5, 2), "bicubic", "bicubic")[0]
    arguments = {"old": (3, 4), "new": (5, 2), "kinds": ("bicubic", "bicubic")}
    close(resample_table(table[0], dim=0, **arguments), expected)
    close(resample_table(table[0].T, dim=-1, **arguments), expected.T)


@pytest.mark.parametrize("shape", [(1, 8, 6), (2, 8, 6), (8, 6), (1, 8, 1), (1, 8, 1, 1)])
def test_table_gradient_has_the_strides_of_its_parameter(shape: tuple[int, ...]) -> None:
    table = torch.nn.Parameter(torch.randn(shape))
    dim = shape.index(8)
    resample_table(table, dim=dim, old=(8,), new=(5,), kinds=("linear",)).square().sum().backward()
    assert table.grad.stride() == table.stride()


@pytest.mark.parametrize("size", [(1, 3, 5), (1, 3, 4), (2, 4, 4), (1, 4, 7)])
def test_kernel_and_its_gradient_are_contiguous(size: tuple[int, int, int]) -> None:
    weight = torch.nn.Parameter(torch.randn(6, 3, 1, 4, 4))
    resized = resample_kernel(weight, size, RULES["auto"])
    assert resized.is_contiguous()
    resized.square().sum().backward()
    assert weight.grad.stride() == weight.stride()


def test_channels_last_kernel() -> None:
    weight = torch.randn(6, 3, 1, 4, 4)
    expected = resample_kernel(weight, (1, 6, 3), RULES["auto"])
    close(
        resample_kernel(weight.to(memory_format=torch.channels_last_3d), (1, 6, 3), RULES["auto"]),
        expected,
        1e-6,
    )


def test_every_row_of_a_long_table_gets_a_gradient_only_with_antialiasing() -> None:
    dead = {}
    for kind in ("linear", "linear-aa"):
        table = torch.nn.Parameter(torch.randn(1, 32, 4))
        grid_table(table, (32,), (8,), kind).square().sum().backward()
        dead[kind] = int((table.grad == 0).all(2).sum())
    assert dead == {"linear": 16, "linear-aa": 0}


def test_resampling_does_not_chain() -> None:
    weight = random(4, 3, 16, 16)
    direct = resample_kernel(weight, (32, 32), RULES["pi"])
    chained = resample_kernel(resample_kernel(weight, (24, 24), RULES["pi"]), (32, 32), RULES["pi"])
    assert (direct - chained).norm() / direct.norm() > 0.05
    back = resample_kernel(direct, (16, 16), RULES["pi"])
    assert (back - weight).norm() / weight.norm() > 0.2


# Dtypes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-13), (torch.float32, 2e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)],
)
@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_each_dtype_is_rounded_once(rule: Rule, dtype: torch.dtype, tolerance: float) -> None:
    weight = random(8, 3, 1, 16, 16, dtype=dtype).requires_grad_()
    exact = weight.detach().double().requires_grad_()
    resized, expected = (resample_kernel(w, (1, 9, 20), rule) for w in (weight, exact))
    assert resized.dtype == dtype
    cotangent = random(*resized.shape, seed=1, dtype=dtype)
    resized.backward(cotangent)
    expected.backward(cotangent.double())
    assert weight.grad.dtype == dtype
    for actual, reference in ((resized, expected), (weight.grad, exact.grad)):
        # One rounding errs by half a unit in the last place at most: nothing was worked in `dtype`.
        assert ((actual.double() - reference).abs() <= tolerance / 2 * reference.abs() + 2e-6).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_the_float32_result_rounded(dtype: torch.dtype) -> None:
    table = torch.randn(1, 12, 8, dtype=dtype)
    expected = grid_table(table.float(), (3, 4), (7, 5), "bicubic", "bicubic").to(dtype)
    assert torch.equal(grid_table(table, (3, 4), (7, 5), "bicubic", "bicubic"), expected)


def test_float32_agrees_with_float32_interpolate() -> None:
    table = torch.randn(1, 196, 8)
    images = table.mT.unflatten(2, (14, 14))
    expected = F.interpolate(images, size=(9, 24), mode="bicubic").flatten(2).mT
    close(grid_table(table, (14, 14), (9, 24), "bicubic", "bicubic"), expected, 2e-5)


# Regressions known from other libraries -------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), [((2, 8), (4, 4)), ((7, 28), (14, 14)), ((14, 14), (7, 28))])
def test_equal_token_counts_are_not_equal_grids(old: tuple[int, int], new: tuple[int, int]) -> None:
    ramp = torch.arange(math.prod(old), dtype=torch.float64)[None, :, None]
    resized = grid_table(ramp, old, new, "bicubic", "bicubic")
    assert not torch.equal(resized, ramp)
    expected = F.interpolate(ramp.mT.unflatten(2, old), size=new, mode="bicubic").flatten(2).mT
    close(resized, expected)


def test_one_column_wide_results_are_right() -> None:
    ramp = torch.arange(16, dtype=torch.float64)[None, :, None]
    resized = grid_table(ramp, (16, 1), (24, 1), "bicubic-aa", "bicubic-aa")[0, :, 0]
    close(resized, axis_matrix("bicubic-aa", 16, 24) @ ramp[0, :, 0])
    assert resized.std() > 4.0  # torch's own interpolate repeats one row


@pytest.mark.parametrize("base", [14, 37])
def test_every_grid_size_is_hit_exactly(base: int) -> None:
    table = torch.randn(1, base * base, 1)
    for side in (39, 61, 86, 115, 123, 193):
        assert grid_table(table, (base, base), (side, side), "bicubic", "bicubic").shape == (
            1,
            side * side,
            1,
        )


# Rules ----------------------------------------------------------------------------------------------------


@given(rules)
@laws
def test_rule_round_trips_through_json(rule: Rule) -> None:
    assert Rule.of(json.loads(json.dumps(rule.to_config()))) == rule


def test_rules_by_name() -> None:
    assert {name: (rule.kernel, rule.antialias) for name, rule in RULES.items()} == {
        "paper": ("paper", False),
        "area": ("area", False),
        "pi": ("pi", True),
        "adjoint": ("adjoint", True),
        "auto": ("auto", True),
    }
    assert Rule.of("pi") is RULES["pi"]
    assert Rule.of(RULES["pi"]) is RULES["pi"]


def test_kinds_of_a_rule() -> None:
    def kinds(rule: Rule) -> tuple[str, str, str]:
        return rule.kernel_kind, rule.spatial_kind, rule.temporal_kind

    assert kinds(RULES["paper"]) == ("paper", "bicubic", "linear")
    assert kinds(Rule("area", antialias=True)) == ("area-aa", "bicubic-aa", "linear-aa")
    assert kinds(RULES["auto"]) == ("auto", "bicubic-aa", "linear-aa")
    assert kinds(Rule("pi", antialias=False)) == ("pi", "bicubic", "linear")


# Errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule", ["bilinear", "Paper", {"kernel": "pi"}, {"kernel": "pi", "antialias": True, "x": 1}]
)
def test_unknown_rule_lists_the_known_ones(rule: str | dict[str, object]) -> None:
    with pytest.raises(
        ConfigError, match=r"^Unknown rule .*\. Known rules: paper, area, pi, adjoint, auto; or a"
    ):
        Rule.of(rule)


@pytest.mark.unchecked  # the checks would refuse them first
def test_malformed_rules() -> None:
    with pytest.raises(ConfigError, match=r"Unknown kernel rule 'nearest'\. Known rules: paper, area, pi"):
        Rule.of({"kernel": "nearest", "antialias": True})
    with pytest.raises(ConfigError, match="antialias must be true or false, got 'yes'"):
        Rule.of({"kernel": "pi", "antialias": "yes"})


@pytest.mark.parametrize("size", [(8,), (8, 8), (1, 1, 8, 8), (1, 0, 8)])
def test_kernel_size_that_does_not_fit(size: tuple[int, ...]) -> None:
    with pytest.raises(GeometryError, match=r"patch kernel of size \(1, 4, 4\) to .*: give 3 numbers >= 1\."):
        resample_kernel(torch.randn(2, 3, 1, 4, 4), size, RULES["auto"])


def test_clip_of_no_size() -> None:
    with pytest.raises(GeometryError, match="from 4 to 0 samples"):
        resize_clip(torch.randn(1, 3, 2, 4, 4), (4, 0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"old": (3, 5)}, r"with 12 rows cannot go from grid \(3, 5\) and extra rows \(\) to grid \(2, 2\)"),
        ({"new": (2,)}, r"to grid \(2,\)"),
        ({"kinds": ("linear",)}, "with 1 kinds"),
        ({"extra_new": (0,)}, r"extra rows \(\) to grid \(2, 2\) and extra rows \(0,\)"),
        (
            {"old": (3, 3), "extra_old": (0, 12, 11), "extra_new": (0, 1, 2)},
            "must be increasing indices below 12",
        ),
        (
            {"old": (3, 3), "extra_old": (0, 1, 12), "extra_new": (0, 1, 2)},
            "must be increasing indices below 12",
        ),
    ],
)
def test_table_that_fits_no_grid(changes: dict[str, tuple[int, ...]], message: str) -> None:
    arguments = {"old": (3, 4), "new": (2, 2), "kinds": ("linear", "linear")} | changes
    with pytest.raises(GeometryError, match=message):
        resample_table(torch.randn(1, 12, 3), dim=1, **arguments)
