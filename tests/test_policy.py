import doctest
import itertools
import json
import random
import subprocess
import sys
from collections import Counter
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flexvideo import (
    Base,
    ClipSpec,
    FlexAll,
    FlexiViT,
    Geometry,
    Policy,
    StaticPatch,
    StaticTokens,
    Temporal,
    VideoMamba,
    make_flexible,
    plan_for,
    policy,
    policy_of,
)
from flexvideo.errors import ConfigError, GeometryError

PAPER = Base(frames=16, height=224, width=224, patch=(16, 16))
BASES = {7: Base(8, 224, 224, (32, 32)), 14: PAPER, 24: Base(16, 384, 384, (16, 16))}
POLICIES = [Temporal(), StaticPatch(), StaticTokens(), FlexiViT(), FlexAll()]
NAMES = ["temporal", "static-patch", "static-tokens", "flexivit", "flex-all"]

any_policy = pytest.mark.parametrize("which", POLICIES, ids=NAMES)
policies = st.sampled_from(POLICIES)
sides = st.integers(24, 1024)
patches = st.integers(1, 64)


@st.composite
def bases(draw: st.DrawFn) -> Base:
    """Bases of any aspect ratio, among them sides that their patch does not divide."""
    patch = (draw(patches), draw(patches))
    height, width = draw(st.integers(patch[0], 500)), draw(st.integers(patch[1], 500))
    tubelet = draw(st.integers(1, 3))
    frames = draw(st.none() | st.integers(1, 16))
    return Base(frames and frames * tubelet, height, width, patch, tubelet)


def test_docstring_examples_run() -> None:
    results = doctest.testmod(policy)
    assert results.attempted > 0
    assert results.failed == 0


# The worked examples of the paper, section 4.2 (L is the side of the grid)


@any_policy
def test_paper_default_model_sees_its_own_size_as_it_is(which: Policy) -> None:
    assert which.geometry(PAPER, 16, 224, 224) == Geometry(16, 224, 224, (16, 16))
    assert PAPER.grid == (14, 14)


def test_paper_example_1_temporal() -> None:
    run = Temporal().geometry(PAPER, 32, 224, 224)
    assert run == Geometry(32, 224, 224, (16, 16))
    assert (run.steps, run.grid) == (32, (14, 14))


def test_paper_example_2_static_patch() -> None:
    run = StaticPatch().geometry(PAPER, 32, 128, 128)
    assert run == Geometry(32, 128, 128, (16, 16))
    assert run.grid == (8, 8)


def test_paper_example_3_static_tokens() -> None:
    run = StaticTokens().geometry(PAPER, 32, 128, 128)
    assert run == Geometry(
        32, 128, 128, (9, 9)
    )  # the convolution drops the last two pixels: floor in the paper
    assert run.grid == (14, 14)


def test_paper_example_4_flexivit() -> None:
    run = FlexiViT().geometry(PAPER, 32, 240, 240, patch=12)
    assert run == Geometry(32, 240, 240, (12, 12))
    assert run.grid == (20, 20)
    drawn = {spec.patch[0] for spec in FlexiViT().specs(PAPER)}
    assert drawn == {8, 10, 12, 15, 16, 20, 24, 30, 40, 48}
    assert {(spec.height, spec.width) for spec in FlexiViT().specs(PAPER)} == {(240, 240)}


def test_paper_example_5_flex_all() -> None:
    run = FlexAll().geometry(PAPER, 32, 128, 128, patch=32)
    assert run == Geometry(32, 128, 128, (32, 32))
    assert run.grid == (4, 4)
    assert {spec.patch for spec in FlexAll(sizes=(128,)).specs(PAPER)} == {(16, 16), (32, 32)}


@any_policy
def test_paper_sampling_sets_are_the_defaults(which: Policy) -> None:
    specs = which.specs(PAPER)
    assert {spec.frames for spec in specs} == {8, 16, 32, 64}
    sizes = {Temporal: {224}, FlexiViT: {240}}.get(type(which), {96, 128, 224, 384})
    assert {spec.height for spec in specs} == {spec.width for spec in specs} == sizes


def test_paper_flex_policies_run_at_the_base_patch_unless_given() -> None:
    for which in (FlexiViT(), FlexAll()):
        for side in (96, 112, 128, 192, 224, 288, 384, 448):
            assert which.geometry(PAPER, 16, side, side) == Geometry(16, side, side, (16, 16))


# Tables


@pytest.mark.parametrize(
    ("side", "patch", "seen"),
    [
        (96, 7, 98),
        (112, 8, 112),
        (128, 9, 128),
        (192, 13, 192),
        (224, 16, 224),
        (240, 17, 240),
        (288, 20, 288),
        (384, 27, 384),
        (448, 32, 448),
    ],
)
def test_table_of_static_tokens(side: int, patch: int, seen: int) -> None:
    run = StaticTokens().geometry(PAPER, 8, side, side)
    assert run == Geometry(8, seen, seen, (patch, patch))
    assert run.grid == (14, 14)


@pytest.mark.parametrize(
    ("side", "patches"),
    [
        (96, {12, 16, 24, 32, 48}),
        (112, {14, 16, 28}),
        (128, {16, 32}),
        (192, {12, 16, 24, 32, 48}),
        (224, {14, 16, 28, 32}),
        (288, {12, 16, 18, 24, 32, 36, 48}),
        (384, {12, 16, 24, 32, 48}),
        (448, {14, 16, 28, 32}),
    ],
)
def test_table_of_flex_all_patches(side: int, patches: set[int]) -> None:
    drawn = [spec.patch for spec in FlexAll(frames=(8,), sizes=(side,)).specs(PAPER)]
    assert drawn == [(patch, patch) for patch in sorted(patches)]


@pytest.mark.parametrize(
    ("frames", "static_tokens", "static_patch", "flex_all", "flexivit"),
    [
        (8, 1569, 4609, 8193, 7201),
        (16, 3137, 9217, 16385, 14401),
        (32, 6273, 18433, 32769, 28801),
        (64, 12545, 36865, 65537, 57601),
    ],
)
def test_table_of_sequence_lengths(
    frames: int, static_tokens: int, static_patch: int, flex_all: int, flexivit: int
) -> None:
    for side in (96, 128, 224, 384):
        assert 1 + StaticTokens().geometry(PAPER, frames, side, side).tokens == static_tokens
    assert 1 + StaticPatch().geometry(PAPER, frames, 384, 384).tokens == static_patch
    assert 1 + FlexAll().geometry(PAPER, frames, 384, 384, patch=12).tokens == flex_all
    assert 1 + FlexiViT().geometry(PAPER, frames, 240, 240, patch=8).tokens == flexivit


# Static tokens


@pytest.mark.parametrize("grid", [7, 14, 24])
def test_static_tokens_keep_the_grid_at_every_size(grid: int) -> None:
    for side in range(grid, 1025):
        other = grid + (7 * side) % (1025 - grid)
        for height, width in ((side, side), (side, other), (other, side)):
            run = StaticTokens().geometry(BASES[grid], 8, height, width)
            assert run.grid == (grid, grid)
            assert run.tokens == 8 * grid * grid


def test_static_tokens_resize_only_where_the_floor_of_the_paper_fails() -> None:
    resized = [r for r in range(90, 1025) if StaticTokens().geometry(PAPER, 8, r, r).height != r]
    spans = [(90, 97), (105, 111), (120, 125), (135, 139), (150, 153), (165, 167), (180, 181), (195, 195)]
    assert resized == [r for first, last in spans for r in range(first, last + 1)]
    for r in resized:
        run = StaticTokens().geometry(PAPER, 8, r, r)
        assert run.height == 14 * run.patch[0]
        assert r < run.height < r + 14


@given(base=bases(), more=st.tuples(st.integers(0, 600), st.integers(0, 600)), patch=st.none() | patches)
@settings(deadline=None, max_examples=100)
def test_static_tokens_never_give_another_grid(base: Base, more: tuple[int, int], patch: int | None) -> None:
    height, width = base.grid[0] + more[0], base.grid[1] + more[1]
    run = StaticTokens().geometry(base, 2 * base.tubelet, height, width, patch)
    assert run.grid == base.grid
    assert run.steps == 2
    if patch is not None:
        assert run.patch == (patch, patch)


def test_static_tokens_at_a_given_patch() -> None:
    given_patch = StaticTokens().geometry(PAPER, 8, 224, 224, patch=32)
    assert given_patch == Geometry(8, 448, 448, (32, 32))
    assert StaticTokens().geometry(PAPER, 8, 128, 96, patch=(9, 7)) == Geometry(8, 128, 98, (9, 7))
    assert StaticTokens().geometry(PAPER, 8, 96, 96, patch=[7, 7]) == Geometry(8, 98, 98, (7, 7))


@pytest.mark.parametrize(("height", "width", "side"), [(13, 224, 13), (224, 1, 1)])
def test_static_tokens_refuse_a_frame_smaller_than_the_grid(height: int, width: int, side: int) -> None:
    text = f"^A side of {side} px is smaller than the model's grid of 14 tokens"
    with pytest.raises(GeometryError, match=text):
        StaticTokens().geometry(PAPER, 8, height, width)


# The others at inference


@given(side=st.integers(1, 1100), other=st.integers(1, 1100), patch=st.none() | patches)
@settings(deadline=None, max_examples=100)
def test_a_side_goes_to_the_nearest_multiple_ties_up(side: int, other: int, patch: int | None) -> None:
    p = patch or 16
    multiples = range(p, 1200 + p, p)
    nearest = [min(multiples, key=lambda m: (abs(m - r), -m)) for r in (side, other)]
    for which in (StaticPatch(), FlexiViT(), FlexAll()):
        assert which.geometry(PAPER, 8, side, other, patch) == Geometry(8, nearest[0], nearest[1], (p, p))


def test_ties_go_up_and_nothing_goes_to_zero() -> None:
    seen = {side: StaticPatch().geometry(PAPER, 8, side, side).height for side in (1, 7, 23, 24, 25, 40, 250)}
    assert seen == {1: 16, 7: 16, 23: 16, 24: 32, 25: 32, 40: 48, 250: 256}


def test_temporal_resizes_any_clip_to_the_base_size() -> None:
    base = Base(16, 224, 160, (16, 16))
    for height, width in ((96, 96), (768, 1024), (1, 1)):
        assert Temporal().geometry(base, 8, height, width) == Geometry(8, 224, 160, (16, 16))
    assert Temporal().geometry(base, 8, 96, 96, patch=32) == Geometry(8, 224, 160, (32, 32))
    assert Temporal().geometry(base, 8, 96, 96, patch=(20, 32)) == Geometry(8, 220, 160, (20, 32))


@any_policy
def test_every_policy_takes_any_clip(which: Policy) -> None:
    for frames, side in itertools.product((1, 7, 110, 300), (96, 112, 128, 192, 224, 288, 384, 448, 768)):
        run = which.geometry(PAPER, frames, side, side)
        assert run.steps == frames
        assert run.height % run.patch[0] == 0 or run.grid == PAPER.grid


@any_policy
def test_longer_and_larger_than_any_training_110_frames_of_768_px(which: Policy) -> None:
    grid = {"temporal": 14, "static-tokens": 14}.get(which.name, 48)
    assert which.geometry(PAPER, 110, 768, 768).tokens == 110 * grid * grid


@given(which=policies, base=bases())
@settings(deadline=None, max_examples=100)
def test_the_base_geometry_is_the_base_itself(which: Policy, base: Base) -> None:
    frames = base.frames or 2 * base.tubelet
    itself = Geometry(frames, base.height, base.width, base.patch, base.tubelet)
    assert which.geometry(base, frames, base.height, base.width) == itself
    assert which.geometry(base, frames, base.height, base.width, base.patch) == itself


def transpose_base(base: Base) -> Base:
    return Base(base.frames, base.width, base.height, base.patch[::-1], base.tubelet)


@given(which=policies, base=bases(), height=sides, width=sides, patch=st.none() | st.tuples(patches, patches))
@settings(deadline=None, max_examples=100)
def test_swapping_the_axes_swaps_the_geometry(
    which: Policy, base: Base, height: int, width: int, patch: tuple[int, int] | None
) -> None:
    height, width = max(height, base.grid[0]), max(width, base.grid[1])
    run = which.geometry(base, base.tubelet, height, width, patch)
    swapped = which.geometry(transpose_base(base), base.tubelet, width, height, patch and patch[::-1])
    assert (swapped.height, swapped.width, swapped.patch) == (run.width, run.height, run.patch[::-1])
    assert (swapped.grid, swapped.tokens) == (run.grid[::-1], run.tokens)


@any_policy
def test_a_model_without_a_temporal_table_passes_frames_through(which: Policy) -> None:
    image = Base(None, 224, 224, (16, 16))
    assert which.geometry(image, 110, 224, 224).steps == 110
    assert {spec.frames for spec in which.specs(image)} == {8, 16, 32, 64}


@any_policy
def test_tubelets(which: Policy) -> None:
    base = Base(16, 224, 224, (16, 16), tubelet=2)
    assert which.geometry(base, 32, 224, 224).tokens == 16 * 196
    with pytest.raises(
        GeometryError, match=r"^17 frames cannot be cut into tubelets of 2.*use 16 or 18 frames"
    ):
        which.geometry(base, 17, 224, 224)


@any_policy
@pytest.mark.parametrize(("frames", "height", "width"), [(0, 224, 224), (8, 0, 224), (8, 224, 0)])
def test_an_empty_clip_is_refused(which: Policy, frames: int, height: int, width: int) -> None:
    text = f"^A clip needs at least one frame of 1 x 1 px, got {frames} frames of {height} x {width} px.$"
    with pytest.raises(GeometryError, match=text):
        which.geometry(PAPER, frames, height, width)


@any_policy
@pytest.mark.parametrize("patch", [0, -16, (16, 0)])
def test_an_impossible_patch_is_refused(which: Policy, patch: int | tuple[int, int]) -> None:
    with pytest.raises(GeometryError, match=r"`patch` must be a positive whole number .* got "):
        which.geometry(PAPER, 8, 224, 224, patch)


# Sampling


def test_draws_are_these_on_every_machine_and_version() -> None:
    steps = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (2**40, 3, 12345), (-1, 0, 7)]
    drawn = {
        which.name: [which.sample(PAPER, seed=seed, epoch=epoch, step=step) for seed, epoch, step in steps]
        for which in POLICIES
    }
    frames, sides = [32, 64, 8, 64, 16, 8], [96, 128, 96, 384, 224, 384]
    expected = {
        "temporal": ([224] * 6, [16] * 6),
        "static-patch": (sides, [16] * 6),
        "static-tokens": (sides, [7, 9, 7, 27, 16, 27]),
        "flexivit": ([240] * 6, [40, 24, 12, 40, 10, 16]),
        "flex-all": (sides, [48, 32, 16, 48, 14, 24]),
    }
    for name, (heights, sampled) in expected.items():
        assert drawn[name] == [
            ClipSpec(t, r, r, (p, p)) for t, r, p in zip(frames, heights, sampled, strict=True)
        ]


def test_draws_agree_with_another_process() -> None:
    code = (
        "from flexvideo import Base, FlexAll; base = Base(16, 224, 224, (16, 16));"
        "print([FlexAll().sample(base, seed=5, epoch=2, step=step) for step in range(50)])"
    )
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "77"}
    ).stdout.strip()
    assert there == str([FlexAll().sample(PAPER, seed=5, epoch=2, step=step) for step in range(50)])


@pytest.mark.unchecked  # beartype draws from `random`
@given(which=policies, seed=st.integers(), epoch=st.integers(), step=st.integers())
@settings(deadline=None, max_examples=100)
def test_a_draw_is_pure(which: Policy, seed: int, epoch: int, step: int) -> None:
    before = random.getstate(), torch.get_rng_state()
    first = which.sample(PAPER, seed=seed, epoch=epoch, step=step)
    assert (random.getstate(), torch.get_rng_state().tolist()) == (before[0], before[1].tolist())
    random.random()
    torch.rand(1)
    assert which.sample(PAPER, seed=seed, epoch=epoch, step=step) == first
    assert first in which.specs(PAPER)


def chi_square(counts: Counter[object], cells: int) -> float:
    expected = counts.total() / cells
    return (
        sum((counts[cell] - expected) ** 2 for cell in counts) / expected + (cells - len(counts)) * expected
    )


@pytest.mark.unchecked
def test_draws_are_uniform_and_independent() -> None:
    # thresholds are the chi-square quantiles at 0.999 for cells - 1 degrees of freedom
    specs = [FlexiViT().sample(PAPER, seed=0, epoch=e, step=s) for e in range(4) for s in range(1000)]
    assert chi_square(Counter(spec.frames for spec in specs), 4) < 16.3
    assert chi_square(Counter(spec.patch for spec in specs), 10) < 27.9
    assert chi_square(Counter((spec.frames, spec.patch) for spec in specs), 40) < 72.1
    specs = [FlexAll().sample(PAPER, seed=0, epoch=e, step=s) for e in range(4) for s in range(1000)]
    assert chi_square(Counter((spec.frames, spec.height) for spec in specs), 16) < 37.7
    for side, patches in ((96, 5), (128, 2), (224, 4), (384, 5)):
        at_side = [spec for spec in specs if spec.height == side]
        assert chi_square(Counter((spec.frames, spec.patch) for spec in at_side), 4 * patches) < 43.9
    successive = Counter((a.height, b.height) for a, b in zip(specs[::2], specs[1::2], strict=True))
    assert chi_square(successive, 16) < 37.7


@given(
    base=bases(),
    sizes=st.lists(st.integers(500, 900) | st.tuples(sides, sides).map(lambda s: (s[0] + 500, s[1] + 500))),
)
@settings(deadline=None, max_examples=30)
def test_what_training_draws_is_what_the_model_runs(base: Base, sizes: list[int | tuple[int, int]]) -> None:
    frames = (base.tubelet, 3 * base.tubelet)
    pool = (
        Temporal(frames=frames),
        StaticPatch(frames=frames, sizes=(*sizes, 512)),
        StaticTokens(frames=frames, sizes=(*sizes, 512)),
        FlexiViT(frames=frames),
        FlexAll(frames=frames),
    )
    for which in pool:
        for spec in which.specs(base):
            run = which.geometry(base, spec.frames, spec.height, spec.width, spec.patch)
            assert run.patch == spec.patch
            if not isinstance(which, FlexiViT | FlexAll):
                assert run == which.geometry(base, spec.frames, spec.height, spec.width)


def test_sampled_sizes_may_be_pairs() -> None:
    specs = FlexAll(frames=(8,), sizes=((96, 128), 224)).specs(PAPER)
    assert {(spec.height, spec.width) for spec in specs} == {(96, 128), (224, 224)}
    assert {spec.patch for spec in specs if spec.height == 96} == {(16, 16), (32, 32)}
    (spec,) = StaticTokens(frames=(8,), sizes=((96, 128),)).specs(PAPER)
    assert spec == ClipSpec(8, 96, 128, (7, 9))


def test_specs_refuse_what_the_model_cannot_run() -> None:
    with pytest.raises(GeometryError, match=r"^A side of 8 px is smaller than the model's grid of 14 tokens"):
        StaticTokens(sizes=(8, 224)).specs(PAPER)
    two = Base(16, 224, 224, (16, 16), tubelet=2)
    message = (
        r"^The policy 'static-patch' draws clips of 9, 11 frames, which cannot be cut into this model's "
        r"tubelets of 2 frames: give it others, such as StaticPatch\(frames=\(8, 10, 12\)\)\.$"
    )
    for draw in (StaticPatch.specs, partial(StaticPatch.sample, seed=0, epoch=0, step=0)):
        with pytest.raises(GeometryError, match=message):
            draw(StaticPatch(frames=(8, 9, 11)), two)
        draw(StaticPatch(frames=(8, 10, 12)), two)


def test_make_flexible_refuses_frames_that_the_tubelets_do_not_divide() -> None:
    model = VideoMamba(img_size=32, patch_size=8, depth=1, embed_dim=16, num_frames=3, kernel_size=3)
    with pytest.raises(GeometryError, match=r"'temporal' draws .* such as Temporal\(frames=\(6, 9\)\)"):
        make_flexible(model, policy=Temporal(frames=(4, 8, 9)))
    assert type(model) is VideoMamba
    make_flexible(model)  # of which nothing is drawn yet
    with pytest.raises(GeometryError, match=r"'static-tokens' draws clips of 8, 16, 32, 64 frames"):
        StaticTokens().sample(plan_for(model).base, seed=0, epoch=0, step=0)
    with pytest.raises(GeometryError, match=r"such as FlexAll\(frames=\(6,\)\)"):
        make_flexible(model, policy=FlexAll(frames=(4,)))
    make_flexible(model, policy=FlexAll(frames=(6,)))


@any_policy
def test_a_set_of_nothing_or_of_zero_is_refused(which: Policy) -> None:
    for frames in ((), (8, 0), (8, -16)):
        text = (
            f"^{type(which).__name__}: `frames` must be a list of positive whole numbers, at least one; got "
        )
        with pytest.raises(ConfigError, match=text):
            type(which)(frames=frames)


@pytest.mark.unchecked
@pytest.mark.parametrize("frames", [8, None, "8", [8.0], [True], [[8, 8]], {"8": 8}])
def test_a_set_of_something_else_is_refused(frames: object) -> None:
    with pytest.raises(ConfigError, match=r"^Temporal: `frames` must be a list of positive whole numbers"):
        policy_of({"name": "temporal", "frames": frames})


@pytest.mark.unchecked
@pytest.mark.parametrize("size", [0, (96,), (96, 0), (96, 96, 96), ((96, 96), 96), 96.0, "96", None])
def test_sizes_are_numbers_or_pairs(size: object) -> None:
    text = r"^StaticTokens: `sizes` must be a list of positive whole numbers or \(height, width\) pairs"
    with pytest.raises(ConfigError, match=text):
        StaticTokens(sizes=(96, size))


def test_a_size_with_no_admissible_patch_is_refused() -> None:
    text = (
        "^FlexAll: no patch from 12 to 48 px divides a frame of 97 x 97 px; change `sizes` or `patch_range`.$"
    )
    with pytest.raises(ConfigError, match=text):
        FlexAll(sizes=(96, 97))
    text = r"^FlexiViT: patches \[10, 12, 15, 20, 24, 30, 40, 48\] do not divide a frame of 224 x 240 px"
    with pytest.raises(ConfigError, match=text):
        FlexiViT(sizes=((224, 240),))


@pytest.mark.parametrize("patch_range", [(48, 12), (12,), (12, 24, 48)])
def test_a_patch_range_is_smallest_and_largest(patch_range: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"^FlexAll: `patch_range` must be \(smallest, largest\)"):
        policy_of({"name": "flex-all", "patch_range": list(patch_range)})


# Names and configurations


def test_names() -> None:
    assert [which.name for which in POLICIES] == NAMES
    assert [policy_of(name) for name in NAMES] == POLICIES


@any_policy
def test_a_policy_is_itself_and_its_own_repr(which: Policy) -> None:
    assert policy_of(which) is which
    assert eval(repr(which)) == which
    assert hash(which) == hash(policy_of(which.to_config()))


def test_config_is_plain_data() -> None:
    assert StaticTokens(frames=(8,), sizes=(96, (128, 160))).to_config() == {
        "name": "static-tokens",
        "frames": [8],
        "sizes": [96, [128, 160]],
    }
    assert repr(Temporal()) == "Temporal(frames=(8, 16, 32, 64))"
    assert policy_of({"name": "flex-all"}) == FlexAll()


numbers = st.lists(st.integers(1, 2000), min_size=1, max_size=5).map(tuple)
mixed = st.lists(
    st.integers(1, 2000) | st.tuples(st.integers(1, 2000), st.integers(1, 2000)), min_size=1, max_size=5
).map(tuple)
anything = st.one_of(
    st.builds(Temporal, frames=numbers),
    st.builds(StaticPatch, frames=numbers, sizes=mixed),
    st.builds(StaticTokens, frames=numbers, sizes=mixed),
    st.builds(FlexiViT, frames=numbers, patches=st.just((8, 10))),
    st.builds(FlexAll, frames=numbers, sizes=mixed, patch_range=st.just((1, 48))),
)


@pytest.mark.unchecked  # beartype draws from `random`, which hypothesis forbids in strategies
@given(which=anything)
@settings(deadline=None, max_examples=100)
def test_config_round_trips_through_json(which: Policy) -> None:
    config = which.to_config()
    there = json.loads(json.dumps(config))
    assert there == config
    assert policy_of(there) == which
    assert type(policy_of(there)) is type(which)
    assert policy_of(there).to_config() == config
    assert config["name"] == which.name


def test_lists_are_taken_as_tuples() -> None:
    which = StaticTokens(frames=[8, 16], sizes=[96, [96, 128]])
    assert which == StaticTokens(frames=(8, 16), sizes=(96, (96, 128)))
    assert hash(which) == hash(StaticTokens(frames=(8, 16), sizes=(96, (96, 128))))


@pytest.mark.parametrize("unknown", ["static_tokens", "", {}, {"name": "x"}, {"name": ["temporal"]}])
def test_an_unknown_policy_lists_the_five_names(unknown: str | dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"^Unknown policy ") as error:
        policy_of(unknown)
    assert repr(unknown) in str(error.value)
    assert all(repr(name) in str(error.value) for name in NAMES)


@pytest.mark.unchecked
@pytest.mark.parametrize("unknown", [None, 3])
def test_what_is_no_policy_lists_the_five_names(unknown: object) -> None:
    with pytest.raises(ConfigError, match="the names are 'temporal', 'static-patch', 'static-tokens'"):
        policy_of(unknown)


@pytest.mark.unchecked
def test_the_class_of_a_policy_is_no_policy() -> None:
    text = r"^StaticTokens is the class of a policy: give a policy, `StaticTokens\(\)`.$"
    with pytest.raises(ConfigError, match=text):
        policy_of(StaticTokens)


def test_unknown_fields_are_named_with_the_known_ones() -> None:
    text = r"^Unknown fields \['frame', 'sizes'\] of policy 'temporal': its fields are 'frames'.$"
    with pytest.raises(ConfigError, match=text):
        policy_of({"name": "temporal", "frame": [8], "sizes": [96]})


class _Counts(nn.Module):
    """Builds its geometry inside forward, as a flexible model does."""

    def __init__(self, which: Policy) -> None:
        super().__init__()
        self.which = which

    def forward(self, clip: Tensor, patch: int | None = None) -> Tensor:
        run = self.which.geometry(PAPER, clip.shape[2], clip.shape[3], clip.shape[4], patch)
        return clip.mean() * run.tokens + run.grid[0] * run.patch[1]


@pytest.mark.unchecked
@any_policy
def test_geometry_compiles_into_one_graph(which: Policy) -> None:
    torch._dynamo.reset()
    model = _Counts(which)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for frames, height, width in ((8, 224, 224), (4, 96, 128), (6, 100, 131)):
        clip = torch.ones(1, 1, frames, height, width)
        assert torch.equal(compiled(clip), model(clip))
        assert torch.equal(compiled(clip, patch=9), model(clip, patch=9))


@pytest.mark.unchecked
@any_policy
@pytest.mark.parametrize("strict", [False, True])
def test_geometry_exports(which: Policy, strict: bool) -> None:
    model = _Counts(which)
    clip = torch.ones(2, 1, 4, 96, 128)
    exported = torch.export.export(
        model, (clip,), dynamic_shapes=({2: torch.export.Dim("frames", min=2)},), strict=strict
    )
    longer = torch.ones(2, 1, 12, 96, 128)
    assert torch.equal(exported.module()(longer), model(longer))
