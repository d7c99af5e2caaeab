"""The procedural motion set: same bytes again, pairs that only order or side tells apart, sound bodies."""

import hashlib
import itertools
import subprocess
import sys
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flexvideo.data.actions import ACTIONS, MOTIONS, curve, motion_deviation, rest_pose
from flexvideo.data.motion import RECIPES, MotionSet, frame_times
from flexvideo.data.skeleton import CHANNELS, INDEX, PARENTS, TOE, Body, mirror, pose_joints
from flexvideo.data.timeline import mirror_pose
from flexvideo.errors import ConfigError, GeometryError

PINNED_SECONDS = 2.355248813847
PINNED_HIPS = [-0.017092463, 1.013764955, 0.015627777]
PINNED_HAND = [0.255771495, 1.759113419, 0.41011546]
REVERSED = [
    ("sit_down", "stand_up"),
    ("pick_up", "put_down"),
    ("walk_forward", "walk_backward"),
    ("turn_left", "turn_right"),
]
MIRRORED = [(n, n.replace("left", "right")) for n in ACTIONS if n.endswith("left") and n != "turn_left"]
poses = st.lists(st.floats(-80, 80), min_size=len(CHANNELS), max_size=len(CHANNELS))
bodies = st.builds(Body, *[st.floats(0.8, 1.2) for _ in range(6)])
few = settings(deadline=None, max_examples=25)


def digest(frames: torch.Tensor) -> str:
    return hashlib.sha256(bytes(frames.flatten().tolist())).hexdigest()


def one(action: str, *, seed: int = 0, per_class: int = 1) -> MotionSet:
    return MotionSet("train", seed=seed, actions=(action,), per_class=per_class)


def times_of(clips: MotionSet, index: int, frames: int = 24) -> torch.Tensor:
    return frame_times(clips.duration(index), frames)


# ------------------------------------------------------------------------------------ seeds and labels


@pytest.mark.parametrize("kind", ["short", "long"])
def test_same_seed_gives_the_same_bytes(kind):
    first, again = (MotionSet("train", seed=3, kind=kind).sample(5, frames=4, size=24) for _ in range(2))
    assert digest(first) == digest(again)


def test_same_bytes_in_another_process():
    code = (
        "import hashlib, torch; torch.set_num_threads(1)\n"
        "from flexvideo.data.motion import MotionSet\n"
        "x = MotionSet('test', seed=7).sample(2, frames=3, size=32)\n"
        "print(hashlib.sha256(bytes(x.flatten().tolist())).hexdigest())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == digest(MotionSet("test", seed=7).sample(2, frames=3, size=32))


def test_import_needs_no_decoder_and_no_plotting():
    code = "import sys, flexvideo.data.motion, flexvideo.data.mocap, flexvideo.data.ucf\n"
    code += "print([m for m in ('av', 'matplotlib', 'huggingface_hub') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_the_draw_is_pinned():
    """A change here changes every data set made before: then say so in the change log."""
    line = MotionSet("train", seed=0).timeline(0)
    assert line.seconds == pytest.approx(PINNED_SECONDS, abs=1e-9)
    hips, hand = line.joints(torch.tensor([1.0]))[0, [INDEX["Hips"], INDEX["Hand_L"]]]
    torch.testing.assert_close(hips, torch.tensor(PINNED_HIPS, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(hand, torch.tensor(PINNED_HAND, dtype=torch.float64), atol=1e-6, rtol=0)


def test_seeds_splits_and_indices_differ():
    sets = [MotionSet(split, seed=seed) for split in ("train", "val", "test") for seed in (0, 1)]
    digests = {digest(clips.sample(index, frames=2, size=16)) for clips in sets for index in (0, 18, 36)}
    assert len(digests) == 18


@pytest.mark.parametrize(("kind", "classes"), [("short", 18), ("long", 12)])
def test_labels_are_balanced(kind, classes):
    clips = MotionSet("train", kind=kind, per_class=7)
    assert len(clips.classes) == classes
    assert set(Counter(clips.labels).values()) == {7}
    assert len(clips) == 7 * classes


# ------------------------------------------------------------------------ pairs: what tells them apart


@pytest.mark.parametrize(("forward", "backward"), REVERSED)
def test_reversed_pairs_are_exact_time_reversals(forward, backward):
    a, b = one(forward), one(backward)
    times = times_of(a, 0)
    torch.testing.assert_close(a.joints(0, times), b.joints(0, times).flip(0), atol=1e-9, rtol=0)
    x, y = (clips.sample(0, frames=5, size=40).int() for clips in (a, b))
    assert (x - y.flip(0)).abs().max() <= 1
    assert (x - y).abs().max() > 60


@pytest.mark.parametrize(("left", "right"), MIRRORED)
def test_left_and_right_are_exact_mirror_images(left, right):
    a, b = one(left), one(right)
    times = times_of(a, 0)
    torch.testing.assert_close(mirror(a.joints(0, times)), b.joints(0, times), atol=1e-9, rtol=0)
    assert (a.joints(0, times) - b.joints(0, times)).abs().max() > 0.2


@pytest.mark.parametrize(("forward", "backward"), REVERSED)
def test_a_bag_of_joints_cannot_separate_a_reversed_pair_but_order_can(forward, backward):
    """Independent draws: the means and spreads of all joints agree; what changes over time does not."""
    n = 40
    bags, orders = [], []
    for action, seed in ((forward, 0), (backward, 1)):
        clips = one(action, seed=seed, per_class=n)
        joints = torch.stack([clips.joints(i, times_of(clips, i, 8)) for i in range(n)])
        centred = joints - joints[:, :, :1] * torch.tensor([1.0, 0.0, 1.0])
        bags.append(torch.cat([centred.mean(1), centred.std(1)], dim=1).flatten(1))
        orders.append(_order_statistic(forward, joints))
    a, b = bags
    t = (a.mean(0) - b.mean(0)) / ((a.var(0) + b.var(0)) / n).sqrt().clamp(min=1e-4)
    assert t.abs().max() < 4.5  # 252 features: about 1 in 600 when nothing differs
    assert (orders[0] > 0).all()
    assert (orders[1] < 0).all()


def _order_statistic(action: str, joints: torch.Tensor) -> torch.Tensor:
    hips = joints[:, :, INDEX["Hips"]]
    if action == "walk_forward":
        across = (joints[:, :, INDEX["UpperLeg_L"]] - joints[:, :, INDEX["UpperLeg_R"]]).mean(1)
        way = hips[:, -1] - hips[:, 0]
        return way[:, 2] * across[:, 0] - way[:, 0] * across[:, 2]
    if action == "pick_up":
        return (joints[:, -1] - joints[:, 0])[:, INDEX["Hand_L"], 1]
    if action == "turn_left":
        across = joints[:, :, INDEX["UpperLeg_L"]] - joints[:, :, INDEX["UpperLeg_R"]]
        return across[:, 0, 2] - across[:, -1, 2]
    return hips[:, 0, 1] - hips[:, -1, 1]


def test_the_middle_frame_of_a_reversed_pair_is_the_same_frame():
    for forward, backward in REVERSED:
        a, b = (one(name).sample(0, frames=1, size=32).int() for name in (forward, backward))
        assert (a - b).abs().max() <= 1


@pytest.mark.parametrize("group", "abc")
def test_recipes_of_a_group_differ_only_in_order(group):
    steps = {name: line for name, line in RECIPES.items() if name.startswith(f"recipe_{group}")}
    assert len({tuple(sorted(line)) for line in steps.values()}) == 1
    lines = list(steps.values())
    for i, a in enumerate(lines):
        for b in lines[:i]:
            assert sum(a[k] != b[k] for k in (0, 2, 4)) == 2


def test_a_recipe_is_performed_in_its_order():
    clips = MotionSet("train", kind="long", seed=2, per_class=2)
    for index in range(len(clips)):
        line = clips.timeline(index)
        done = [(step.motion, step.mirrored) for step in line.steps]
        wanted = [ACTIONS[name] for name in RECIPES[clips.classes[clips.labels[index]]]]
        assert done == [(action.motion, action.mirrored) for action in wanted]
        ends = [step.start + step.seconds for step in line.steps]
        assert all(end < step.start for end, step in zip(ends, line.steps[1:], strict=False))
        assert 20 < line.seconds < 42


# ------------------------------------------------------------------------------------------ the figure


@few
@given(poses, bodies)
def test_bones_keep_their_length_and_soles_stay_above_the_floor(values, body):
    joints = pose_joints(torch.tensor([values, [0.0] * len(CHANNELS)], dtype=torch.float64), body)
    bones = joints[:, 1:] - joints[:, list(PARENTS[1:])]
    lengths = bones.norm(dim=-1)
    torch.testing.assert_close(lengths[0], lengths[1])
    lift = values[CHANNELS.index("lift")]
    assert joints[0, [INDEX["Toes_L"], INDEX["Toes_R"]], 1].min() >= lift + TOE * body.size - 1e-6


@few
@given(poses, bodies)
def test_a_mirrored_pose_gives_mirrored_joints(values, body):
    pose = torch.tensor([values], dtype=torch.float64)
    torch.testing.assert_close(pose_joints(mirror_pose(pose), body), mirror(pose_joints(pose, body)))


@few
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(-90, 90)), min_size=2, max_size=6))
def test_a_curve_meets_its_keys_and_stays_between_neighbours(pairs):
    at, keys = 0, []
    for step, value in pairs:
        at += step
        keys.append((float(at), float(value)))
    keys = tuple(keys)
    x = torch.linspace(keys[0][0] - 1, keys[-1][0] + 1, 300, dtype=torch.float64)
    y = curve(keys, x)
    for (a, va), (b, vb) in itertools.pairwise(keys):
        inside = y[(x >= a) & (x <= b)]
        assert (inside >= min(va, vb) - 1e-9).all()
        assert (inside <= max(va, vb) + 1e-9).all()
    knots = torch.tensor(keys, dtype=torch.float64)
    torch.testing.assert_close(curve(keys, knots[:, 0].contiguous()), knots[:, 1])
    torch.testing.assert_close(y[[0, -1]], knots[[0, -1], 1])


@pytest.mark.parametrize("name", [n for n in MOTIONS if n not in ("sit", "pick", "turn", "walk")])
def test_motions_that_recipes_use_begin_and_end_at_rest(name):
    ends = motion_deviation(MOTIONS[name], torch.tensor([0.0, 1.0], dtype=torch.float64), cycles=2.7)
    torch.testing.assert_close(ends, torch.zeros_like(ends))


@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_figures_move_like_bodies(action):
    """Heights of a person, nothing faster than a hard kick, on the floor, within 60 degrees of the camera."""
    clips = one(action, seed=4, per_class=6)
    for index in range(6):
        times = torch.arange(0, clips.duration(index), 1 / 120, dtype=torch.float64)
        joints = clips.joints(index, times)
        assert joints.isfinite().all()
        speed = (joints[1:] - joints[:-1]).norm(dim=-1) * 120
        assert speed.max() < 14
        assert 0 < joints[..., 1].min() < 0.05
        assert joints[..., 1].max() < 2.5
        across = (joints[:, INDEX["UpperLeg_L"]] - joints[:, INDEX["UpperLeg_R"]]).mean(0)
        angle = torch.rad2deg(torch.atan2(-across[2], across[0])).abs()
        assert angle < 62


def test_the_standing_foot_does_not_slide_in_a_kick():
    clips = one("kick_left", seed=2, per_class=4)
    for index in range(4):
        foot = clips.joints(index, times_of(clips, index, 60))[:, INDEX["Foot_R"]]
        assert (foot - foot[0]).norm(dim=1).max() < 0.05


def test_walking_feet_keep_their_place_on_the_floor():
    """Over a clip, the foot which bears the body moves far slower than the body does."""
    clips = one("walk_forward", seed=1, per_class=4)
    for index in range(4):
        times = torch.arange(0, clips.duration(index), 1 / 60, dtype=torch.float64)
        joints = clips.joints(index, times)
        feet = joints[:, [INDEX["Foot_L"], INDEX["Foot_R"]]]
        body = (joints[1:, 0] - joints[:-1, 0])[:, [0, 2]].norm(dim=-1).mean()
        step = (feet[1:] - feet[:-1])[..., [0, 2]].norm(dim=-1)
        bearing = step.gather(1, feet[1:, :, 1].argmin(1, keepdim=True)).median()
        assert bearing < 0.2 * body


def test_the_ball_lies_still_then_follows_the_hands_without_a_jump():
    line = one("pick_up", seed=6).timeline(0)
    ball = line.ball(torch.arange(0, line.seconds, 1 / 120, dtype=torch.float64))
    assert ball is not None
    steps = (ball[1:] - ball[:-1]).norm(dim=1)
    assert steps.max() * 120 < 4
    assert steps[:20].max() == 0
    assert ball[0, 1] == pytest.approx(0.13)
    assert ball[-1, 1] > 0.6
    assert one("bow").timeline(0).ball(torch.zeros(1)) is None


def test_the_seat_is_under_the_hips_when_sitting():
    clips = one("sit_down", seed=8)
    line = clips.timeline(0)
    end = torch.tensor([line.seconds])
    seat, hips = line.stool(end)[0, 0], clips.joints(0, end)[0, INDEX["Hips"]]
    assert (seat - hips)[[0, 2]].norm() < 0.1
    assert 0.05 < hips[1] - seat[1] < 0.3


def test_rest_pose_stands_at_its_height():
    joints = pose_joints(rest_pose()[None], Body())[0]
    assert joints[INDEX["Head"], 1] == pytest.approx(1.48, abs=0.03)
    torch.testing.assert_close(rest_pose()[None], mirror_pose(rest_pose()[None]))


# ---------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"split": "training"}, "Unknown split 'training'; known are train, val, test"),
        ({"kind": "medium"}, "Unknown kind 'medium'; known are short, long"),
        ({"actions": ("fly",)}, "Unknown action 'fly'; known are wave_left"),
        ({"actions": ("bow",), "kind": "long"}, "Unknown action 'bow'; known are recipe_a_000"),
        ({"actions": ()}, "No actions were given"),
        ({"per_class": 0}, "per_class is 0"),
    ],
)
@pytest.mark.unchecked
def test_wrong_arguments_are_named(arguments, text):
    with pytest.raises(ConfigError, match=text):
        MotionSet(**arguments)


def test_impossible_clips_are_refused():
    clips = MotionSet(per_class=1)
    with pytest.raises(GeometryError, match="Cannot draw a clip of 0 frames; ask for at least 1"):
        clips.sample(0, frames=0, size=32)
    with pytest.raises(
        GeometryError, match="Cannot draw frames of 64 x 4 pixels; both sides must be at least 8"
    ):
        clips.sample(0, frames=1, size=(64, 4))
    for index in (-1, 18):
        with pytest.raises(IndexError, match=f"There is no clip {index}: the set holds 18 clips"):
            clips.sample(index, frames=1, size=32)
