"""Motion capture: BVH files read and converted, both file layouts loaded, sets written out as videos."""

import json
import math
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from flexvideo.data.actions import rest_pose
from flexvideo.data.bvh import bvh_positions, convert_bvh, read_bvh, resample
from flexvideo.data.mocap import MocapSet
from flexvideo.data.motion import MotionSet
from flexvideo.data.skeleton import INDEX, JOINTS, PARENTS, Body, pose_joints, rest_offsets
from flexvideo.data.ucf import camel, write_ucf101
from flexvideo.errors import MotionError

ARM = """HIERARCHY
ROOT Base
{
  OFFSET 9 9 9
  CHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation
  JOINT Upper
  {
    OFFSET 0 10 0
    CHANNELS 3 Zrotation Xrotation Yrotation
    JOINT Lower
    {
      OFFSET 0 5 0
      CHANNELS 3 Zrotation Xrotation Yrotation
      End Site
      {
        OFFSET 0 1 0
      }
    }
  }
  JOINT Side
  {
    OFFSET 2 0 0
    CHANNELS 0
  }
}
MOTION
Frames: 2
Frame Time: 0.1
1 2 3 0 0 0 90 0 0 0 0 0
1 2 3 90 0 0 0 90 0 0 0 0
"""
X, Y, Z = (torch.tensor(axis, dtype=torch.float64) for axis in ([1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]))


def bvh_of(frames: list[tuple[float, float]], *, seconds: float = 1 / 30) -> str:
    """A 21-joint file in centimetres: the hips move to (x, z), everything else stands."""
    offsets = 100 * rest_offsets(Body())

    def block(joint: int, depth: int) -> list[str]:
        pad, kind = "  " * depth, "JOINT" if joint else "ROOT"
        x, y, z = offsets[joint].tolist()
        lines = [f"{pad}{kind} {JOINTS[joint]}", f"{pad}{{", f"{pad}  OFFSET {x} {y} {z}"]
        moves = "6 Xposition Yposition Zposition" if not joint else "3"
        lines.append(f"{pad}  CHANNELS {moves} Zrotation Xrotation Yrotation")
        children = [child for child, parent in enumerate(PARENTS) if parent == joint]
        for child in children:
            lines += block(child, depth + 1)
        if not children:
            lines += [f"{pad}  End Site", f"{pad}  {{", f"{pad}    OFFSET 0 0 0", f"{pad}  }}"]
        return [*lines, f"{pad}}}"]

    height = float(offsets[0, 1])
    rows = [" ".join(map(str, (x, height, z, *[0.0] * 63))) for x, z in frames]
    head = ["HIERARCHY", *block(0, 0), "MOTION", f"Frames: {len(frames)}", f"Frame Time: {seconds}"]
    return "\n".join([*head, *rows]) + "\n"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A miniature of the data set's folders: two actions, two styles."""
    root = tmp_path / "clone" / "dataset" / "data"
    root.mkdir(parents=True)
    for action, speed in (("walk", 4.0), ("walk-back", -4.0)):
        for style in ("normal", "old"):
            frames = [(0.0, speed * t) for t in range(31)]
            (root / f"dataset-1_{action}_{style}_001.bvh").write_text(bvh_of(frames))
    return tmp_path / "clone"


# ------------------------------------------------------------------------------------------------- BVH


def test_forward_kinematics_of_a_known_arm(tmp_path):
    """Positions replace offsets; turns apply in the order of the channels, parents before children."""
    (tmp_path / "arm.bvh").write_text(ARM)
    bvh = read_bvh(tmp_path / "arm.bvh")
    assert bvh.names == ("Base", "Upper", "Lower", "Side")
    assert bvh.parents == (-1, 0, 1, 0)
    base, upper, lower, side = bvh_positions(bvh).unbind(1)
    torch.testing.assert_close(base, torch.tensor([[1.0, 2.0, 3.0]] * 2, dtype=torch.float64))
    # frame 0: the upper joint turns by 90 degrees about z, so its child points to -x
    torch.testing.assert_close(upper[0] - base[0], 10 * Y)
    torch.testing.assert_close(lower[0] - upper[0], -5 * X)
    # frame 1: the base turns about z; within it the upper joint turns about x: its child points to z
    torch.testing.assert_close(upper[1] - base[1], -10 * X)
    torch.testing.assert_close(lower[1] - upper[1], 5 * Z)
    torch.testing.assert_close(side - base, torch.stack([2 * X, 2 * Y]))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("hello", "is not a BVH file: it must hold HIERARCHY and MOTION"),
        (ARM.rsplit("\n", 2)[0], "2 frames of 12 channels need 24 numbers, found 12"),
        (ARM.replace("Frames: 2", "Frames: many"), "is damaged or cut off: invalid literal"),
        (ARM.replace("OFFSET 2 0 0", "OFSET 2 0 0"), "unexpected word 'OFSET'"),
        (ARM[: ARM.index("Frames")], "is damaged or cut off: list index out of range"),
    ],
)
def test_damaged_files_are_named(tmp_path, text, match):
    (tmp_path / "bad.bvh").write_text(text)
    with pytest.raises(MotionError, match=match) as caught:
        read_bvh(tmp_path / "bad.bvh")
    assert "bad.bvh" in str(caught.value)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.sampled_from([1 / 30, 1 / 60, 0.1]), st.sampled_from([15.0, 30.0, 24.0]))
def test_resampling_keeps_straight_motion_straight(frames, seconds, fps):
    positions = torch.arange(frames, dtype=torch.float64)[:, None, None] * torch.ones(1, 2, 3)
    out = resample(positions, seconds, fps)
    wanted = torch.arange(len(out), dtype=torch.float64) / (fps * seconds)
    torch.testing.assert_close(out[:, 0, 0], wanted)
    assert len(out) == math.floor((frames - 1) * seconds * fps + 1e-3) + 1


def test_a_clone_is_converted_and_drawn(clone, tmp_path):
    out = tmp_path / "mocap.safetensors"
    assert convert_bvh(clone, out) == 4
    clips = MocapSet(out)
    assert clips.classes == ("walk", "walk-back")
    assert clips.labels == (1, 1, 0, 0)
    assert clips.duration(0) == pytest.approx(1.0)
    frames = clips.sample(2, frames=4, size=(48, 64))
    assert frames.shape == (4, 48, 64, 3)
    assert torch.equal(frames, MocapSet(out).sample(2, frames=4, size=(48, 64)))
    assert not torch.equal(frames, MocapSet(out, seed=1).sample(2, frames=4, size=(48, 64)))


def test_the_converted_motion_is_the_recorded_one(clone, tmp_path):
    """Bones, the distance walked, feet on the floor, and a heading within 60 degrees of the camera."""
    convert_bvh(clone, tmp_path / "m.safetensors")
    for seed in range(5):
        clips = MocapSet(tmp_path / "m.safetensors", seed=seed, actions=("walk",))
        times = torch.linspace(0, 1, 16, dtype=torch.float64)
        joints = clips.joints(0, times)
        relative = joints - joints[:, :1]
        bones = (joints[:, 1:] - joints[:, list(PARENTS[1:])]).norm(dim=-1)
        torch.testing.assert_close(bones[0], rest_offsets(Body())[1:].norm(dim=-1), atol=1e-4, rtol=0)
        torch.testing.assert_close(relative, relative[:1].expand_as(relative), atol=1e-4, rtol=0)
        way = joints[-1, 0] - joints[0, 0]
        assert way.norm() == pytest.approx(1.2, abs=1e-3)
        assert abs(math.degrees(math.atan2(way[0], way[2]))) < 60
        assert joints[..., 1].min() == pytest.approx(0.025, abs=2e-3)


def test_the_camera_follows_a_walk_without_lag(clone, tmp_path):
    convert_bvh(clone, tmp_path / "m.safetensors")
    clips = MocapSet(tmp_path / "m.safetensors", actions=("walk",))
    times = torch.linspace(0, 1, 9, dtype=torch.float64)
    scene = clips.scene(0, times)
    gap = scene.eye[:, [0, 2]] - clips.joints(0, times)[:, INDEX["Hips"]][:, [0, 2]]
    assert (gap - gap.mean(0)).norm(dim=1).max() < 0.35


def test_filters_keep_what_was_asked_for(clone, tmp_path):
    out = tmp_path / "m.safetensors"
    convert_bvh(clone, out)
    clips = MocapSet(out, actions=("walk-back", "walk"), styles=("old",))
    assert clips.classes == ("walk-back", "walk")
    assert clips.labels == (0, 1)
    assert [take.style for take in clips.takes] == ["old", "old"]
    with pytest.raises(MotionError, match="has no action 'fly'; it has walk, walk-back"):
        MocapSet(out, actions=("fly",))
    with pytest.raises(MotionError, match="has no style 'young'; it has normal, old"):
        MocapSet(out, styles=("young",))


def test_converter_errors_name_the_remedy(tmp_path):
    with pytest.raises(MotionError, match=r"No \.bvh file lies below .*; pass the folder of a clone"):
        convert_bvh(tmp_path, tmp_path / "x.safetensors")
    (tmp_path / "arm.bvh").write_text(ARM)
    with pytest.raises(MotionError, match=r"arm\.bvh does not tell its action"):
        convert_bvh(tmp_path, tmp_path / "x.safetensors")
    (tmp_path / "arm.bvh").rename(tmp_path / "d_arm_normal_001.bvh")
    with pytest.raises(
        MotionError, match=r"has no joint 'Hips'; it has Base, Upper, Lower, Side\. Pass joints="
    ):
        convert_bvh(tmp_path, tmp_path / "x.safetensors")


# ---------------------------------------------------------------------------------------- stored files


def test_the_npz_layout_is_read(tmp_path):
    """Millimetre steps: the hips' own, the others' relative to the hips; every clip starts from nothing."""
    standing = pose_joints(rest_pose()[None], Body())[0]
    recorded = torch.stack([standing + torch.tensor([0.0, 0.0, 0.05 * t]).double() for t in range(12)])
    relative = (1000 * recorded).round()
    relative[:, 1:] -= relative[:, :1].clone()
    steps = torch.cat([relative[:1], relative.diff(dim=0)])
    two = torch.cat([steps, steps[:5]]).permute(1, 2, 0).to(torch.int16)
    numpy.savez(
        tmp_path / "m.npz",
        delta_mm=two.numpy(),
        length=numpy.array([12, 5]),
        content=numpy.array(["walk", "stand"]),
        style=numpy.array(["normal", "old"]),
    )
    clips = MocapSet(tmp_path / "m.npz")
    assert clips.classes == ("stand", "walk")
    assert clips.duration(0) == pytest.approx(11 / 15)
    torch.testing.assert_close(clips.takes[0].joints, recorded.float(), atol=1.1e-3, rtol=0)
    torch.testing.assert_close(clips.takes[1].joints, recorded[:5].float(), atol=1.1e-3, rtol=0)
    assert clips.sample(1, frames=2, size=24).shape == (2, 24, 24, 3)


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(
        MotionError, match=r"There is no motion capture file .*none\.npz; `convert_bvh` makes one"
    ):
        MocapSet(tmp_path / "none.npz")
    numpy.savez(tmp_path / "other.npz", x=numpy.zeros(3))
    with pytest.raises(MotionError, match="has no array 'delta_mm'; it has x"):
        MocapSet(tmp_path / "other.npz")
    (tmp_path / "text.safetensors").write_text("not tensors at all")
    with pytest.raises(MotionError, match="is not a file of `convert_bvh`"):
        MocapSet(tmp_path / "text.safetensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(MotionError, match="is not a file of `convert_bvh`"):
        MocapSet(tmp_path / "model.safetensors")


def test_one_still_frame_is_a_clip(tmp_path):
    joints = pose_joints(rest_pose()[None], Body()).float()
    about = json.dumps([{"source": "s", "action": "stand", "style": "n", "take": "1"}])
    tensors = {"joints": joints, "lengths": torch.tensor([1])}
    save_file(tensors, tmp_path / "m.safetensors", metadata={"fps": "15.0", "clips": about})
    clips = MocapSet(tmp_path / "m.safetensors")
    frames = clips.sample(0, frames=3, size=16)
    assert frames.shape == (3, 16, 16, 3)
    with pytest.raises(IndexError, match="There is no clip 1: the set holds 1 clips"):
        clips.sample(1, frames=1, size=16)


# ----------------------------------------------------------------------------------- written as videos


def test_a_set_is_written_in_the_layout_of_ucf101(tmp_path):
    import av

    actions = ("sit_down", "stand_up")
    train, test = (
        MotionSet(split, actions=actions, per_class=n) for split, n in (("train", 19), ("test", 1))
    )
    assert write_ucf101(tmp_path / "ucf", train=train, test=test, size=(32, 48), fps=5.0) == 40
    lists = tmp_path / "ucf" / "ucfTrainTestlist"
    assert (lists / "classInd.txt").read_text() == "1 SitDown\n2 StandUp\n"
    trained = (lists / "trainlist01.txt").read_text().splitlines()
    assert len(trained) == 38
    assert trained[0] == "SitDown/v_SitDown_g08_c01.mp4 1"
    assert "StandUp/v_StandUp_g08_c02.mp4 2" in trained
    tested = (lists / "testlist01.txt").read_text().splitlines()
    assert tested == ["SitDown/v_SitDown_g01_c01.mp4", "StandUp/v_StandUp_g01_c01.mp4"]
    for line in (*trained, *tested):
        assert (tmp_path / "ucf" / "UCF-101" / line.split()[0]).is_file()
    with av.open(str(tmp_path / "ucf" / "UCF-101" / tested[0])) as container:
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    wanted = test.sample(0, frames=round(test.duration(0) * 5), size=(32, 48))
    assert len(frames) == len(wanted)
    assert (torch.stack(frames).float() - wanted.float()).abs().mean() < 12


def test_writing_refuses_what_would_mix_sets(tmp_path):
    bow, jump = (MotionSet(actions=(name,), per_class=1) for name in ("bow", "jump"))
    with pytest.raises(MotionError, match=r"The sets differ in their classes: \('bow',\) for training"):
        write_ucf101(tmp_path / "new", train=bow, test=jump, size=16)
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(MotionError, match="is not empty; name a new folder"):
        write_ucf101(tmp_path, train=bow, test=bow, size=16)


@pytest.mark.parametrize(
    ("name", "written"), [("walk_forward", "WalkForward"), ("raise-up-left-hand", "RaiseUpLeftHand")]
)
def test_class_names_are_written_as_in_ucf101(name, written):
    assert camel(name) == written
