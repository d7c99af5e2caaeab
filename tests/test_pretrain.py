"""The shared start: joints are where they are drawn, runs go on to the bit, and it learns."""

from dataclasses import replace

import pytest
import torch
from small import build

import flexvideo as fv
from flexvideo.data.motion import MotionSet, frame_times
from flexvideo.data.posed import PosedClips, joint_tracks, posed_clips, track_clips
from flexvideo.data.render import _project
from flexvideo.data.scene import _PARTS
from flexvideo.data.skeleton import INDEX
from flexvideo.data.view import view_of
from flexvideo.errors import CheckpointError, CheckpointWarning, ConfigError, TrainingError
from flexvideo.train.checkpoint import checkpoints
from flexvideo.train.pretrain import PoseLearner, Pretraining, draw, pretrain

CONFIG = Pretraining(steps=4, batch=2, warmup=1, log_every=1, checkpoint_every=2)


@pytest.fixture(scope="module")
def clips() -> PosedClips:
    return posed_clips([MotionSet(actions=("jump", "wave_left"), per_class=2)], frames=8, size=32)


def small_model() -> fv.VideoMamba:
    torch.manual_seed(3)
    return build(img_size=32, patch_size=8, depth=1, embed_dim=16, num_frames=4, num_classes=0)


def test_joints_are_where_they_are_drawn():
    motion = MotionSet(actions=("wave_left",), per_class=1)
    times = frame_times(motion.duration(0), 5)
    scene = motion.scene(0, times).to("cpu")
    drawn = _project(scene, view_of(scene, (100, 100)))
    tracks = joint_tracks(motion, 0, times)
    part = [each[:2] for each in _PARTS].index(("UpperLeg_L", "LowerLeg_L"))
    for joint, ends in (("UpperLeg_L", drawn.a), ("LowerLeg_L", drawn.b)):
        torch.testing.assert_close(50 * tracks[:, INDEX[joint], :2], ends[:, part], atol=1e-2, rtol=1e-3)
    assert tracks[:, INDEX["Hips"], 2].abs().max() == 0


def test_clips_and_tracks_are_those_of_the_sets(clips):
    motion = MotionSet(actions=("jump", "wave_left"), per_class=2)
    assert torch.equal(clips.videos[3], motion.sample(3, frames=8, size=32))
    assert torch.equal(clips.tracks, track_clips(motion, frames=8))
    assert len(clips) == 4


def test_a_crop_moves_joints_with_the_pixels():
    """A white square where a joint is stays under it, whatever the crop."""
    videos = torch.zeros(1, 4, 64, 64, 3, dtype=torch.uint8)
    videos[:, :, 38:42, 22:26] = 255
    x, y = 24 / 32 - 1, 40 / 32 - 1
    tracks = torch.tensor([x, y, 0.0]).expand(1, 4, 21, 3)
    model = small_model()
    for step in range(5):
        pixels, poses = draw(PosedClips(videos, tracks), model, replace(CONFIG, crop=0.6), step)
        bright = pixels[0, 0, 0] > 0
        row, column = bright.nonzero().float().mean(0).tolist()
        found = poses[0, 0, :2] * 0.25
        assert (column + 0.5) / 16 - 1 == pytest.approx(float(found[0]), abs=0.05)
        assert (row + 0.5) / 16 - 1 == pytest.approx(float(found[1]), abs=0.05)


def test_a_stopped_run_goes_on_to_the_bit(clips, tmp_path):
    whole, parts = small_model(), small_model()
    assert pretrain(whole, clips, config=CONFIG, out=tmp_path / "whole")
    asked = iter([False, False, True])
    stopped = pretrain(parts, clips, config=CONFIG, out=tmp_path / "parts", stop=lambda: next(asked))
    assert not stopped
    again = small_model()
    records = []
    assert pretrain(again, clips, config=CONFIG, out=tmp_path / "parts", report=records.append)
    assert [record["step"] for record in records] == [4]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    with pytest.warns(CheckpointWarning, match="no head"):
        loaded = fv.load(tmp_path / "whole")
    assert torch.equal(loaded.norm_f.weight, whole.norm_f.weight)


def test_the_heads_do_not_depend_on_the_state_of_the_process(clips, tmp_path):
    one, other = small_model(), small_model()
    pretrain(one, clips, config=CONFIG, out=tmp_path / "one")
    torch.manual_seed(99)
    pretrain(other, clips, config=CONFIG, out=tmp_path / "other")
    assert torch.equal(one.norm_f.weight, other.norm_f.weight)


def test_it_learns_where_joints_are(clips, tmp_path):
    model, records = small_model(), []
    config = Pretraining(steps=60, batch=4, crop=1.0, lr=1e-2, warmup=5, log_every=5)
    pretrain(model, clips, config=config, out=tmp_path, report=records.append)
    assert records[-1]["where"] < 0.7 * records[0]["where"]
    assert records[-1]["clip"] < 0.7 * records[0]["clip"]


def test_a_learner_keeps_what_its_model_does_not_decay():
    names = PoseLearner(small_model()).no_weight_decay()
    assert names == {"model.pos_embed", "model.cls_token", "model.temporal_pos_embedding"}


def test_a_checkpoint_of_another_run_is_refused(clips, tmp_path):
    pretrain(small_model(), clips, config=CONFIG, out=tmp_path)
    assert len(checkpoints(tmp_path)) == 1
    with pytest.raises(CheckpointError, match=r"config\.lr was 0\.006 and is 0\.1"):
        pretrain(small_model(), clips, config=replace(CONFIG, lr=0.1), out=tmp_path)


def test_a_loss_that_is_no_number_ends_it(clips, tmp_path):
    model = small_model()
    with torch.no_grad():
        model.norm_f.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="at step 1: the pretraining has diverged"):
        pretrain(model, clips, config=CONFIG, out=tmp_path)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="`crop` must be above 0 and at most 1, got 0"):
        Pretraining(crop=0.0)
    with pytest.raises(ConfigError, match="must be at least 1"):
        Pretraining(steps=0)
