"""Augmentation: its laws, and Pillow's pictures where Pillow has the operation."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from flexvideo.data import randaugment as ra
from flexvideo.data.alter import centre_crop, erase, mirror, random_crop
from flexvideo.data.augment import AUGMENTS, Augment, augment_of
from flexvideo.data.mix import Mixing, draw_mixing, mix, soft_targets
from flexvideo.data.source import Box
from flexvideo.errors import ConfigError

laws = settings(deadline=None, max_examples=50)
sides = st.integers(8, 400)


def clip(frames: int = 3, height: int = 24, width: int = 20, *, seed: int = 0) -> Tensor:
    """Frames with soft slopes and noise, of a narrow range in one colour."""
    noise = torch.randint(0, 60, (frames, height, width, 3), generator=torch.Generator().manual_seed(seed))
    slope = torch.linspace(0, 180, height)[None, :, None, None] * torch.tensor([1.0, 0.8, 0.3])
    return (slope + noise).to(torch.uint8)


# --- RandAugment


PILLOW: dict[str, tuple[Callable[[Image.Image], Image.Image], float, int]] = {
    "auto_contrast": (ImageOps.autocontrast, 1.0, 1),
    "equalize": (ImageOps.equalize, 1.0, 1),
    "invert": (ImageOps.invert, 1.0, 1),
    "posterize": (lambda image: ImageOps.posterize(image, 4 - int(0.7 * 4)), 0.7, 1),
    "solarize": (lambda image: ImageOps.solarize(image, 256 - int(0.7 * 256)), 0.7, 1),
    "colour": (lambda image: ImageEnhance.Color(image).enhance(1 + 0.9 * 0.7), 0.7, 1),
    "contrast": (lambda image: ImageEnhance.Contrast(image).enhance(1 - 0.9 * 0.7), 0.7, -1),
    "brightness": (lambda image: ImageEnhance.Brightness(image).enhance(1 + 0.9 * 0.7), 0.7, 1),
    "sharpness": (lambda image: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * 0.7), 0.7, 1),
}


@pytest.mark.parametrize("name", PILLOW)
@pytest.mark.parametrize("seed", [0, 1])
def test_operations_agree_with_pillow(name: str, seed: int) -> None:
    frames, (pillow, strength, sign) = clip(seed=seed), PILLOW[name]
    expected = torch.stack(
        [
            torch.frombuffer(bytearray(pillow(Image.fromarray(frame.numpy())).tobytes()), dtype=torch.uint8)
            for frame in frames
        ]
    ).view_as(frames)
    got = getattr(ra, name)(frames, strength, sign)
    # The weights of luminance are rounded elsewhere, which the enhancement then stretches.
    assert (got.int() - expected.int()).abs().max() <= (2 if name in ("colour", "sharpness") else 1)
    assert (got != expected).float().mean() < 0.05


@pytest.mark.parametrize("operation", ra.OPERATIONS, ids=lambda op: op.__name__)
@pytest.mark.parametrize("sign", [-1, 1])
def test_frames_that_are_alike_stay_alike(operation: ra.Operation, sign: int) -> None:
    frames = clip(1).expand(4, -1, -1, -1)
    altered = operation(frames, 0.7, sign)
    assert altered.shape == frames.shape
    assert altered.dtype == torch.uint8
    assert all(torch.equal(frame, altered[0]) for frame in altered)


ALWAYS = (ra.auto_contrast, ra.equalize, ra.invert, ra.posterize)  # whose strength does not go down to none


@pytest.mark.parametrize(
    "operation",
    [operation for operation in ra.OPERATIONS if operation not in ALWAYS],
    ids=lambda op: op.__name__,
)
def test_no_strength_changes_nothing(operation: ra.Operation) -> None:
    assert torch.equal(operation(clip(), 0.0, 1), clip())


def test_invert_and_mirror_are_their_own_inverses() -> None:
    assert torch.equal(ra.invert(ra.invert(clip())), clip())
    assert torch.equal(mirror(mirror(clip())), clip())
    assert torch.equal(mirror(clip())[:, :, 0], clip()[:, :, -1])


def test_a_shift_moves_pixels_and_fills_with_the_mean_colour() -> None:
    frames = clip(2, 20, 20)
    left, down = ra.translate_x(frames, 1.0, 1), ra.translate_y(frames, 1.0, -1)
    assert torch.equal(left[:, :, :11], frames[:, :, 9:])
    assert torch.equal(down[:, 9:], frames[:, :11])
    assert left[0, 0, -1].tolist() == down[0, 0, 0].tolist() == [124, 116, 104]


def test_a_turn_by_30_degrees_carries_a_point_round_the_middle() -> None:
    frames = torch.zeros(1, 41, 41, 3, dtype=torch.uint8)
    frames[0, 19:22, 34:37] = 255  # 15 right of the middle
    places = (ra.rotate(frames, 1.0, 1)[0, ..., 0] > 100).nonzero().float().mean(0)
    angle = math.atan2(float(places[0]) - 20, float(places[1]) - 20)
    assert abs(abs(math.degrees(angle)) - 30) < 1


def test_flat_frames_survive_stretching() -> None:
    frames = torch.full((2, 8, 8, 3), 77, dtype=torch.uint8)
    assert torch.equal(ra.auto_contrast(frames), frames)
    assert torch.equal(ra.equalize(frames), frames)


def test_frames_of_one_pixel_are_altered_too() -> None:
    for operation in ra.OPERATIONS:
        assert operation(clip(2, 1, 1), 0.7, 1).shape == (2, 1, 1, 3)


@laws
@given(seed=st.integers(0, 10**6), operations=st.integers(0, 5))
def test_the_same_draw_gives_the_same_clip(seed: int, operations: int) -> None:
    first, second = (
        ra.rand_augment(clip(), operations=operations, magnitude=7.0, magnitude_std=0.5, draw=Random(seed))
        for _ in range(2)
    )
    assert torch.equal(first, second)
    assert operations or torch.equal(first, clip())


def test_half_of_the_operations_are_done() -> None:
    changed = [
        not torch.equal(
            ra.rand_augment(clip(), operations=1, magnitude=7.0, magnitude_std=0.5, draw=Random(seed)), clip()
        )
        for seed in range(300)
    ]
    assert 120 < sum(changed) < 180


# --- where a clip is cut


@laws
@given(rows=sides, columns=sides, height=sides, width=sides)
def test_the_centre_has_the_aspect_that_is_wanted(rows: int, columns: int, height: int, width: int) -> None:
    top, left, kept, wide = centre_crop((height, width))(rows, columns)
    assert kept == rows or wide == columns
    assert abs(2 * top + kept - rows) <= 1
    assert abs(2 * left + wide - columns) <= 1
    # The side that is cut is rounded down; one pixel stays.
    assert wide == columns or wide == max(1, rows * width // height)
    assert kept == rows or kept == max(1, columns * height // width)


@laws
@given(rows=sides, columns=sides, seed=st.integers(0, 10**6), low=st.floats(0.05, 1.0))
def test_a_random_crop_is_inside_and_has_the_area_that_is_wanted(
    rows: int, columns: int, seed: int, low: float
) -> None:
    crop = random_crop((112, 112), scale=(low, 1.0), ratio=(0.75, 4 / 3), draw=Random(seed))
    box = crop(rows, columns)
    assert 0 <= box.top <= rows - box.height < rows
    assert 0 <= box.left <= columns - box.width < columns
    if box != centre_crop((112, 112))(rows, columns):
        margin = (box.height + 0.5) * (box.width + 0.5)
        assert margin >= low * rows * columns
        assert (box.width - 0.5) / (box.height + 0.5) <= 4 / 3
        assert (box.width + 0.5) / (box.height - 0.5) >= 0.75


def test_random_crops_differ_and_follow_the_clip_s_aspect() -> None:
    boxes = {
        random_crop((100, 200), scale=(0.3, 0.3), ratio=(1.0, 1.0), draw=Random(seed))(240, 480)
        for seed in range(9)
    }
    assert len(boxes) == 9
    assert {(box.height, box.width) for box in boxes} == {(131, 263)}


def test_where_no_crop_fits_the_centre_is_kept() -> None:
    crop = random_crop((100, 100), scale=(1.0, 1.0), ratio=(1.0, 1.0), draw=Random(0))
    assert crop(100, 300) == Box(0, 100, 100, 100)


# --- erasing


@laws
@given(seed=st.integers(0, 10**6))
def test_a_rectangle_of_all_frames_becomes_noise(seed: int) -> None:
    before = torch.full((3, 2, 30, 40), 9.0)
    after = erase(before.clone(), probability=1.0, draw=Random(seed))
    changed = (after != before).all(0)
    assert torch.equal(changed[0], changed[1])
    rows, columns = changed[0].any(1).sum(), changed[0].any(0).sum()
    assert changed[0].sum() == rows * columns
    assert 0.01 < float(rows * columns) / 1200 < 0.36
    assert not torch.equal(after[:, 0], after[:, 1])
    assert torch.equal(after, erase(before.clone(), probability=1.0, draw=Random(seed)))


def test_nothing_is_erased_with_probability_zero() -> None:
    before = torch.ones(3, 2, 8, 8)
    assert torch.equal(erase(before.clone(), probability=0.0, draw=Random(0)), before)


# --- mixing


mixings = st.builds(
    lambda seed, mixup, cutmix: draw_mixing(Augment(mixup=mixup, cutmix=cutmix), (24, 20), Random(seed)),
    st.integers(0, 10**6),
    st.sampled_from([0.0, 0.8]),
    st.sampled_from([0.0, 1.0]),
)
presences = st.lists(st.booleans(), min_size=1, max_size=6)


@laws
@given(mixing=mixings, present=presences, smoothing=st.sampled_from([0.0, 0.1, 0.5]))
def test_soft_targets_sum_to_one(mixing: Mixing, present: list[bool], smoothing: float) -> None:
    labels = torch.arange(len(present)) % 4
    targets = soft_targets(labels, 4, mixing, present, smoothing=smoothing)
    torch.testing.assert_close(targets.sum(1), torch.ones(len(present)))
    assert targets.min() >= 0
    torch.testing.assert_close(
        targets.sum(0), soft_targets(labels, 4, Mixing(1.0), present, smoothing=smoothing).sum(0)
    )


@laws
@given(mixing=mixings, present=presences)
def test_clips_are_mixed_as_their_labels_are(mixing: Mixing, present: list[bool]) -> None:
    count = len(present)
    # A clip whose every pixel is one-hot in its own number: what is seen of whom can be counted.
    clips = torch.eye(count)[:, :, None, None, None].expand(-1, -1, 2, 24, 20).contiguous()
    targets = soft_targets(torch.arange(count), count, mixing, present, smoothing=0.0)
    torch.testing.assert_close(mix(clips, mixing, present).mean((2, 3, 4)), targets)
    for place, there in enumerate(present):
        if not (there and present[-1 - place]):
            assert targets[place, place] == 1


def test_both_ways_of_mixing_are_drawn_and_each_alone() -> None:
    both = [draw_mixing(AUGMENTS["videomamba"], (32, 32), Random(seed)) for seed in range(200)]
    assert 70 < sum(mixing.box is None for mixing in both) < 130
    assert {draw_mixing(Augment(mixup=0.8), (32, 32), Random(seed)).box for seed in range(9)} == {None}
    assert None not in {draw_mixing(Augment(cutmix=1.0), (32, 32), Random(seed)).box for seed in range(9)}
    assert draw_mixing(Augment(smoothing=0.1), (32, 32), Random(0)) == Mixing(1.0)


def test_smoothing_is_spread_over_all_classes() -> None:
    targets = soft_targets(torch.tensor([1]), 4, Mixing(1.0), [True], smoothing=0.1)
    torch.testing.assert_close(targets, torch.tensor([[0.025, 0.925, 0.025, 0.025]]))


# --- the settings


def test_the_recipe_is_the_official_one() -> None:
    recipe = AUGMENTS["videomamba"]
    assert (recipe.operations, recipe.magnitude, recipe.magnitude_std) == (4, 7.0, 0.5)
    assert (recipe.scale, recipe.ratio, recipe.flip) == ((0.08, 1.0), (0.75, 4 / 3), None)
    assert (recipe.erase, recipe.mixup, recipe.cutmix, recipe.smoothing) == (0.25, 0.8, 1.0, 0.1)
    assert (recipe.repeats, recipe.sampling) == (2, "videomamba-random")
    assert recipe.soft
    assert not AUGMENTS["light"].soft
    assert AUGMENTS["none"] == Augment()


@pytest.mark.parametrize("name", AUGMENTS)
def test_settings_survive_json(name: str) -> None:
    augment = augment_of(name)
    assert augment_of(json.loads(json.dumps(asdict(augment)))) == augment
    assert augment_of(augment) is augment


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ("heavy", "Unknown augmentation 'heavy'; known: none, light, videomamba."),
        (
            {"zoom": 1},
            "Unknown fields ['zoom'] of an augmentation; known: repeats, sampling, scale, ratio, flip, "
            "operations, magnitude, magnitude_std, erase, mixup, cutmix, smoothing.",
        ),
        (
            {"scale": [0.5, 1.5]},
            "Augment: `scale` must be None, or two shares above 0 and up to 1 that ascend, got (0.5, 1.5).",
        ),
        ({"ratio": [2.0, 1.0]}, "Augment: `ratio` must be two positive numbers that ascend, got (2.0, 1.0)."),
        ({"magnitude": 11.0}, "Augment: `magnitude` must be from 0 to 10, got 11.0."),
        ({"smoothing": 1.0}, "Augment: `smoothing` must be from 0 to below 1, got 1.0."),
        ({"erase": -0.1}, "Augment: `erase` must be from 0 to 1, got -0.1."),
        ({"repeats": 0}, "Augment: `repeats` must be 1 or more, got 0."),
        ({"operations": -1}, "Augment: `operations` must be 0 or more, got -1."),
    ],
)
def test_settings_that_cannot_be_are_refused(settings_, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        augment_of(settings_)
