"""Sources: the frames that are wanted, from files and drawn, and what is said of those that are not there."""

import re
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from videos import constant, encode, pictures

from flexvideo.data.actions import rest_pose
from flexvideo.data.clips import fit, resize, sample_frames
from flexvideo.data.decode import read_frames
from flexvideo.data.mocap import MocapSet
from flexvideo.data.motion import MotionSet
from flexvideo.data.opened import UNSEEN_STYLES, open_source
from flexvideo.data.records import Problem, VideoRecord, VideoSet
from flexvideo.data.skeleton import Body, pose_joints
from flexvideo.data.source import Box, ClipSource, RenderedSource, VideoSource, require_learnable
from flexvideo.data.ucf import write_ucf101
from flexvideo.errors import ConfigError, DatasetError, FlexVideoError, VideoError, VideoWarning


def videos(*paths: Path, start: float | None = None, end: float | None = None) -> VideoSet:
    records = tuple(VideoRecord(str(path), i % 2, path.name, start, end) for i, path in enumerate(paths))
    return VideoSet("toys", "train", records, ("jump", "run"))


def drawn(*, native: int | None = None) -> RenderedSource:
    return RenderedSource(MotionSet("train", per_class=2), native=native)


def test_a_file_gives_the_frames_that_are_sampled(tmp_path: Path) -> None:
    path = constant(tmp_path)
    clip = VideoSource(videos(path)).read(0, frames=6, size=32, sampling="random", clip=1, clips=3, seed=5)
    wanted = sample_frames(40, 6, sampling="random", clip=1, clips=3, seed=5)
    assert torch.equal(clip, fit(read_frames(path, wanted), 32))


def test_only_what_lies_between_start_and_end_is_read(tmp_path: Path) -> None:
    path = constant(tmp_path)  # 40 frames at 25 a second
    clip = VideoSource(videos(path, start=0.4, end=0.8)).read(0, frames=5, size=None)
    assert torch.equal(clip, read_frames(path, [11, 13, 15, 17, 19]))


@pytest.mark.parametrize("source", ["file", "drawn"])
def test_a_crop_is_cut_out_before_the_one_resize(source: str, tmp_path: Path) -> None:
    clips = VideoSource(videos(constant(tmp_path))) if source == "file" else drawn(native=48)
    seen = []

    def crop(height: int, width: int) -> Box:
        seen.append((height, width))
        return Box(3, 5, 30, 20)

    whole = clips.read(0, frames=3, size=None)
    assert torch.equal(
        clips.read(0, frames=3, size=(16, 24), crop=crop), resize(whole[:, 3:33, 5:25], (16, 24))
    )
    assert torch.equal(clips.read(0, frames=3, size=None, crop=crop), whole[:, 3:33, 5:25])
    assert seen == [tuple(whole.shape[1:3])] * 2


def test_a_drawn_clip_is_what_the_set_draws() -> None:
    clip = drawn().read(7, frames=8, size=(24, 32))
    assert torch.equal(clip, MotionSet("train", per_class=2).sample(7, frames=8, size=(24, 32)))


def test_a_drawn_clip_of_a_native_size_is_treated_like_a_video_of_that_size() -> None:
    clip = drawn(native=48).read(7, frames=4, size=32)
    assert torch.equal(clip, fit(MotionSet("train", per_class=2).sample(7, frames=4, size=48), 32))


def test_samplings_of_a_drawn_clip_depend_on_their_arguments_alone() -> None:
    clips = drawn()
    one, again, other = (clips.read(7, frames=4, size=24, sampling="random", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    first, second = (clips.read(7, frames=4, size=24, clip=clip, clips=2) for clip in (0, 1))
    assert not torch.equal(first, second)


def test_sources_tell_what_they_hold(tmp_path: Path) -> None:
    files = VideoSource(replace(videos(tmp_path / "a.mp4", tmp_path / "b.mp4"), flip_ok=False))
    assert (len(files), files.labels, files.classes) == (2, (0, 1), ("jump", "run"))
    assert (files.identify(1), files.name, files.flip_ok) == (str(tmp_path / "b.mp4"), "toys train", False)
    clips = drawn()
    assert (len(clips), clips.identify(17), clips.flip_ok) == (36, "motion 17", False)
    assert clips.listed().counts() == (2,) * 18


def test_a_file_that_cannot_be_read_is_raised(tmp_path: Path) -> None:
    source = VideoSource(videos(tmp_path / "none.mp4"))
    message = f"{tmp_path}/none.mp4 does not exist; a video file was expected."
    with pytest.raises(VideoError, match=f"^{re.escape(message)}$") as raised:
        source.read(0, frames=2, size=8)
    with pytest.raises(VideoError) as again:
        source.skip(0, raised.value)
    assert again.value is raised.value
    assert source.skipped == {}


def test_a_file_that_is_skipped_is_reported_once(tmp_path: Path) -> None:
    source = VideoSource(videos(tmp_path / "none.mp4"), on_error="skip")
    with pytest.raises(VideoError) as raised:
        source.read(0, frames=2, size=8)
    message = f"toys train: skipped {tmp_path}/none.mp4: does not exist; a video file was expected."
    with pytest.warns(VideoWarning, match=f"^{re.escape(message)}$"):
        source.skip(0, raised.value)
    source.skip(0, raised.value)
    assert source.skipped == {
        0: Problem(f"{tmp_path}/none.mp4", "does not exist; a video file was expected.")
    }


@pytest.mark.unchecked  # the shape checks would refuse the argument first
def test_other_ways_to_deal_with_errors_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^`on_error` is \"raise\" or \"skip\", got 'retry'\.$"):
        VideoSource(videos(), on_error="retry")


def test_a_drawn_clip_has_no_size_of_its_own() -> None:
    message = "motion is drawn and has no size of its own; give `size` or `native`."
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        drawn().read(0, frames=2, size=None)


def test_classes_that_cannot_be_learnt_are_refused() -> None:
    train = RenderedSource(MotionSet("train", actions=("bow", "jump"), per_class=1), name="train")
    test = RenderedSource(MotionSet("test", actions=("bow", "clap"), per_class=1), name="test")
    require_learnable(train, train)
    with pytest.raises(DatasetError, match="Class 'clap' of test clips is none of the 2 classes of train"):
        require_learnable(train, test)


# --- by name


def open_error(kind: type[FlexVideoError], message: str, spec: str, **options) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}"):
        open_source(spec, **options)


def test_the_procedural_set_opens_by_name() -> None:
    source = open_source("motion:long", split="val")
    assert isinstance(source, RenderedSource)
    assert (len(source.classes), source.name, source.flip_ok) == (12, "motion long val", False)
    assert len(open_source("motion:short:20", split="test")) == 18 * 20


def test_files_open_by_name(tmp_path: Path) -> None:
    train, test = (MotionSet(split, actions=("bow", "jump"), per_class=2) for split in ("train", "test"))
    write_ucf101(tmp_path / "set", train=train, test=test, size=32, fps=4.0)
    source = open_source(f"ucf101:{tmp_path / 'set'}", split="test", on_error="skip")
    assert isinstance(source, VideoSource)
    assert (len(source), source.on_error, source.flip_ok) == (4, "skip", True)
    require_learnable(open_source(f"ucf101:{tmp_path / 'set'}", split="train"), source)


def mocap(folder: Path, *styles: str) -> Path:
    joints = pose_joints(rest_pose().expand(5 * len(styles), -1), Body()).float()
    clips = ", ".join(f'{{"action": "stand", "style": "{style}"}}' for style in styles)
    lengths = torch.full((len(styles),), 5)
    path = folder / "motion.safetensors"
    save_file({"joints": joints, "lengths": lengths}, path, metadata={"clips": f"[{clips}]", "fps": "15"})
    return path


def test_motion_capture_opens_by_name_and_is_divided_by_style(tmp_path: Path) -> None:
    path = mocap(tmp_path, "normal", "old", "proud", "tired")
    kept = {}
    for split in (None, "train", "test"):
        source = open_source(f"mocap:{path}", split=split)
        assert isinstance(source, RenderedSource)
        assert isinstance(source.clips, MocapSet)
        kept[split] = [take.style for take in source.clips.takes]
    assert kept == {
        None: ["normal", "old", "proud", "tired"],
        "train": ["normal", "proud"],
        "test": ["old", "tired"],
    }


def test_motion_capture_without_such_styles_is_refused(tmp_path: Path) -> None:
    path = mocap(tmp_path, "normal")
    unseen = ", ".join(UNSEEN_STYLES)
    message = (
        f"{path} has no clip of split 'test': its styles are normal, and those of split 'test' are {unseen}. "
        "Name no split, and divide it by `MocapSet`."
    )
    open_error(FlexVideoError, message, f"mocap:{path}", split="test")
    message = "Motion capture has no split 'val'; it has: train, test."
    open_error(ConfigError, message, f"mocap:{path}", split="val")


@pytest.mark.parametrize(
    "spec", ["motion:tall", "motion:short:", "motion:short:x", "mocap:", "ucf102:/data", "/data/ucf101"]
)
def test_unknown_sources_are_refused(spec: str) -> None:
    message = (
        f"{spec!r} names no source of clips: write motion:short, motion:long, motion:short:20 for 20 clips a "
        "class, mocap:FILE, or the kind and the folder of a data set, such as ucf101:/data/ucf101. Kinds: "
        "k400, ucf101, "
    )
    open_error(ConfigError, message, spec, split="train")


def test_drawn_sets_have_splits_and_no_folds() -> None:
    message = "Name a split of motion:short: train, val, test."
    open_error(ConfigError, message, "motion:short")
    message = "motion:short is drawn: it has no folds and no annotations; leave these out."
    open_error(ConfigError, message, "motion:short", split="train", fold=1)


def test_reading_does_not_warn_of_whole_files(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", pictures(9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip = VideoSource(videos(path)).read(0, frames=12, size=16)
    assert clip.shape == (12, 16, 16, 3)
    assert isinstance(VideoSource(videos(path)), ClipSource)
