"""The loader: the same batches for any number of workers, any split into ranks, and from any step on."""

import multiprocessing
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from videos import encode, pictures, truncated_mp4

from flexvideo import Base, ClipSpec, StaticTokens
from flexvideo.data.alter import centre_crop
from flexvideo.data.augment import AUGMENTS, Augment
from flexvideo.data.clips import IMAGENET_MEAN, IMAGENET_STD, Size, normalize, resize
from flexvideo.data.loader import Batch, FlexLoader
from flexvideo.data.motion import MotionSet
from flexvideo.data.reader import Cell, Reader
from flexvideo.data.records import VideoRecord, VideoSet
from flexvideo.data.room import room
from flexvideo.data.sampler import clip_tokens
from flexvideo.data.source import Choose, ClipSource, RenderedSource, VideoSource
from flexvideo.errors import ConfigError, VideoError, VideoWarning

BASE = Base(frames=8, height=32, width=32, patch=(16, 16))
POLICY = StaticTokens(frames=(2, 4), sizes=(16, 24, (16, 32)))
BUDGET = 8 * 4 * 4  # eight clips of the longest spec
FULL = AUGMENTS["videomamba"]
FILM = pictures(20, 24, 32)


class Toys(ClipSource):
    """Films whose pixels tell their number and the frame."""

    name, classes, flip_ok = "toys", ("a", "b", "c"), True

    def __init__(self, count: int = 24):
        super().__init__()
        self.count = count

    @property
    def labels(self) -> tuple[int, ...]:
        return tuple(index % 3 for index in range(self.count))

    def identify(self, index: int) -> str:
        return f"toy {index}"

    def take(self, index: int, choose: Choose, size: Size) -> Tensor:
        return FILM[choose(20)] + index * 5


class Deadly(Toys):
    """Reading one of its films ends the process."""

    def take(self, index: int, choose: Choose, size: Size) -> Tensor:
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().take(index, choose, size)


class Stopped(Toys):
    """Films that are read while somebody ends the whole group of processes."""

    def take(self, index: int, choose: Choose, size: Size) -> Tensor:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        return super().take(index, choose, size)


def loader(source: ClipSource | None = None, **options) -> FlexLoader:
    options = {"tokens": BUDGET, "augment": FULL, **options}
    return FlexLoader(source or Toys(), policy=POLICY, base=BASE, **options)


def same(a: Batch, b: Batch) -> bool:
    both = None not in (a.targets, b.targets)
    return (
        (a.indices, a.places, a.spec) == (b.indices, b.places, b.spec)
        and torch.equal(a.clips, b.clips)
        and torch.equal(a.labels, b.labels)
        and torch.equal(a.weights, b.weights)
        and (torch.equal(a.targets, b.targets) if both else a.targets is b.targets)
    )


def all_same(a: Sequence[Batch], b: Sequence[Batch]) -> bool:
    return len(a) == len(b) and all(map(same, a, b))


@pytest.mark.parametrize("augment", [None, AUGMENTS["light"], FULL], ids=["none", "light", "videomamba"])
def test_the_number_of_workers_changes_nothing(augment: Augment | None) -> None:
    here = list(loader(augment=augment, accumulate=2).epoch(0))
    there = list(loader(augment=augment, accumulate=2, workers=2).epoch(0))
    assert len(here) > 1
    assert all(map(all_same, here, there))


@settings(deadline=None, max_examples=6)
@given(split=st.sampled_from([(1, 4), (2, 2), (4, 1)]), seed=st.integers(0, 99), epoch=st.integers(0, 9))
def test_ranks_and_accumulation_see_the_same_global_batch(
    split: tuple[int, int], seed: int, epoch: int
) -> None:
    world, accumulate = split
    alone = next(loader(seed=seed, accumulate=4).epoch(epoch))
    parts = [
        next(loader(seed=seed, rank=rank, world=world, accumulate=accumulate).epoch(epoch))
        for rank in range(world)
    ]
    together = [parts[rank][micro] for micro in range(accumulate) for rank in range(world)]
    assert all_same(together, alone)


@settings(deadline=None, max_examples=6)
@given(start=st.integers(0, 2), epoch=st.integers(0, 9))
def test_an_epoch_goes_on_from_any_step(start: int, epoch: int) -> None:
    whole, later = loader(), loader()
    list(zip(range(1), later.epoch(epoch + 1), strict=False))
    assert all(map(all_same, list(whole.epoch(epoch))[start:], later.epoch(epoch, start=start)))


def test_an_epoch_holds_what_its_plans_say() -> None:
    batches = loader(world=2, rank=1, accumulate=2, augment=None)
    for epoch in range(2):
        steps = list(batches.epoch(epoch))
        assert len(steps) == batches.steps_in(epoch)
        for step, micro in enumerate(steps):
            (plan,) = batches.plans(epoch, step)
            assert tuple(batch.indices for batch in micro) == (plan.cells[1], plan.cells[3])
            assert plan.clips * clip_tokens(POLICY, BASE, plan.spec) <= BUDGET
            for batch in micro:
                size = (plan.spec.frames, plan.spec.height, plan.spec.width)
                assert batch.clips.shape == (len(batch), 3, *size)
                assert batch.labels.tolist() == [index % 3 for index in batch.indices]
                assert (batch.spec, batch.targets) == (plan.spec, None)
                assert batch.weights.tolist() == [1] * len(batch)
    assert batches.total_steps(2) == batches.steps_in(0) + batches.steps_in(1)
    assert batches.summary(2).total() == 48


def test_clips_without_augmentation_are_read_and_normalised_and_no_more() -> None:
    source = Toys()
    batch = next(loader(source, augment=None, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)).epoch(0))[0]
    for clip, index in zip(batch.clips, batch.indices, strict=True):
        height, width = batch.spec.height, batch.spec.width
        kept = source.read(index, frames=batch.spec.frames, size=None)
        wide = min(32, 24 * width // height)
        high = min(24, 32 * height // width)
        kept = kept[:, (24 - high) // 2 :][:, :high, (32 - wide) // 2 :][:, :, :wide]
        expected = normalize(resize(kept, (height, width)), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
        assert torch.equal(clip, expected[0])


def test_clips_are_altered_otherwise_in_every_epoch_and_for_every_seed() -> None:
    def clips(seed: int, epoch: int) -> dict[int, Tensor]:
        augment = Augment(scale=(0.5, 1.0), flip=None, operations=4)
        steps = loader(seed=seed, augment=augment, tokens=999).epoch(epoch)
        return {i: clip for batch in next(steps) for i, clip in zip(batch.indices, batch.clips, strict=True)}

    first, other_epoch, other_seed = clips(0, 0), clips(0, 1), clips(1, 0)
    assert set(first) == set(other_epoch) == set(other_seed) == set(range(24))
    for other in (other_epoch, other_seed):
        assert not any(torch.equal(first[index], other[index]) for index in first)


def test_a_clip_that_comes_again_in_an_epoch_is_altered_anew() -> None:
    steps = list(loader(Toys(4), steps=12, tokens=BUDGET // 2).epoch(0))
    seen = [(b.spec, index, clip) for (b,) in steps for index, clip in zip(b.indices, b.clips, strict=True)]
    pairs = [
        (one, other)
        for place, (spec, index, one) in enumerate(seen)
        for other_spec, other_index, other in seen[place + 1 :]
        if (spec, index) == (other_spec, other_index)
    ]
    assert pairs
    assert not any(torch.equal(one, other) for one, other in pairs)


@pytest.mark.unchecked  # beartype itself draws from `random`
@pytest.mark.parametrize("workers", [0, 2])
def test_the_random_state_of_the_process_is_neither_read_nor_changed(workers: int) -> None:
    torch.manual_seed(3)
    random.seed(3)
    before = torch.get_rng_state(), random.getstate()
    first = next(loader(workers=workers).epoch(0))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    torch.manual_seed(4)
    random.seed(4)
    assert all_same(first, next(loader(workers=workers).epoch(0)))


def test_clips_that_come_again_have_a_place_of_their_own() -> None:
    """Repeats, rare classes and further passes over the clips: places of an epoch are never the same."""
    for options in ({"augment": Augment(repeats=2)}, {"balanced": True}, {"steps": 9, "specs": 2}):
        options = {"tokens": 4 * BUDGET, "augment": None, "world": 2, "accumulate": 2, **options}
        ranks = [loader(rank=rank, **options).epoch(0) for rank in range(2)]
        steps = list(zip(*ranks, strict=True))
        places = [place for parts in steps for part in parts for batch in part for place in batch.places]
        assert sorted(places) == list(range(len(places)))
    assert len(places) > 3 * len(Toys())


def test_repeated_clips_are_altered_otherwise_each_time() -> None:
    augment = Augment(repeats=2, scale=(0.1, 0.9), sampling="random")
    batches = loader(augment=augment)
    for (batch,) in batches.epoch(0):
        assert batch.indices[::2] == batch.indices[1::2]
        assert not any(map(torch.equal, batch.clips[::2], batch.clips[1::2]))
    assert batches.summary(1).total() == 48


def test_balanced_steps_draw_rare_classes_as_often() -> None:
    class Uneven(Toys):
        @property
        def labels(self) -> tuple[int, ...]:
            return tuple(min(index, 2) for index in range(self.count))

    batches = loader(Uneven(), balanced=True, augment=None)
    seen = torch.cat([batch.labels for (batch,) in batches.epoch(0)])
    assert seen.bincount().tolist() == [8, 8, 8]


# --- mirrored clips


def test_classes_that_tell_left_from_right_are_never_mirrored() -> None:
    source = Toys()
    source.flip_ok = False
    assert loader(source, augment=Augment(flip=None)).augment.flip is False
    message = (
        "Clips of toys must not be mirrored, as its classes tell left from right: augment with flip=False, "
        "or with flip=None, which mirrors where a data set allows it."
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        loader(source, augment=Augment(flip=True))


def test_half_of_the_clips_are_mirrored_where_that_is_allowed() -> None:
    assert loader(augment=FULL).augment.flip is True
    plain = loader(Toys(120), augment=None, tokens=9999).epoch(0)
    flipped = loader(Toys(120), augment=Augment(flip=True), tokens=9999).epoch(0)
    pairs = [
        (one, other)
        for (a,), (b,) in zip(plain, flipped, strict=True)
        for one, other in zip(a.clips, b.clips, strict=True)
    ]
    mirrored = [torch.equal(one.flip(-1), other) for one, other in pairs]
    assert 40 < sum(mirrored) < 80
    assert all(m or torch.equal(one, other) for m, (one, other) in zip(mirrored, pairs, strict=True))


# --- what cannot be read


@pytest.fixture
def damaged(tmp_path: Path) -> VideoSet:
    """Seven videos; the sixth is a text, and the seventh is cut off."""
    paths = [encode(tmp_path / f"{number}.mp4", pictures(12)) for number in range(6)]
    paths[5].write_text("no video")
    paths.append(truncated_mp4(tmp_path))
    records = tuple(VideoRecord(str(path), i % 2, path.name) for i, path in enumerate(paths))
    return VideoSet("toys", "train", records, ("jump", "run"))


@pytest.mark.filterwarnings("ignore::flexvideo.errors.VideoWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_video_that_cannot_be_read_stops_training(damaged: VideoSet, workers: int) -> None:
    message = f"{damaged[5].path} cannot be read as a video: Invalid data found when processing input."
    batches = loader(VideoSource(damaged), augment=None, workers=workers)
    with pytest.raises(VideoError, match=f"^{re.escape(message)}$"):
        list(batches.epoch(0))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("augment", [None, FULL], ids=["plain", "mixed"])
def test_a_video_that_is_skipped_is_reported_once_and_counts_for_nothing(
    damaged: VideoSet, workers: int, augment: Augment | None
) -> None:
    source = VideoSource(damaged, on_error="skip")
    batches = loader(source, augment=augment, workers=workers, tokens=999)
    with pytest.warns(VideoWarning) as caught:
        steps = [next(batches.epoch(epoch))[0] for epoch in range(2)]
    messages = [str(warning.message) for warning in caught]
    assert sum("5.mp4: cannot be read as a video" in message for message in messages) == 1
    assert any("cut.mp4 is damaged" in message for message in messages)
    assert list(source.skipped) == [5]
    for batch in steps:
        assert len(batch) == 7 * batches.augment.repeats
        place = batch.indices.index(5)
        assert batch.weights.tolist() == [float(index != 5) for index in batch.indices]
        assert batch.targets is None or batch.targets[place].max() > 0.9
        if augment is None:
            black = -torch.tensor(IMAGENET_MEAN) / torch.tensor(IMAGENET_STD)
            torch.testing.assert_close(batch.clips[place].mean((1, 2, 3)), black)


def test_a_set_of_which_nothing_can_be_read_stops_training(tmp_path: Path) -> None:
    records = tuple(VideoRecord(str(tmp_path / name), 0, name) for name in "ab")
    source = VideoSource(VideoSet("toys", "train", records, ("jump",)), on_error="skip")
    message = r"Not one clip of toys train could be read in epoch 2; one of them: .*/[ab]: does not exist; a"
    steps = loader(source, augment=None, tokens=999).epoch(2)
    with pytest.warns(VideoWarning):
        assert not next(steps)[0].weights.any()
    with pytest.raises(VideoError, match=f"^{message}"):
        next(steps)


def test_what_is_left_of_an_epoch_may_be_unreadable(tmp_path: Path) -> None:
    records = (VideoRecord(str(tmp_path / "a"), 0, "a"),)
    source = VideoSource(VideoSet("toys", "train", records, ("jump",)), on_error="skip")
    with pytest.warns(VideoWarning):
        (rest,) = loader(source, augment=None, tokens=999, steps=3).epoch(0, start=2)
    assert not rest[0].weights.any()


def test_batches_larger_than_a_page_are_as_any() -> None:
    large = room((3, 1 << 19), torch.device("cpu"))
    assert large.is_contiguous()
    assert large.fill_(2).sum() == 3 << 20
    kept = large[1]
    del large
    assert kept.sum() == 1 << 20
    batch = next(loader(augment=None, tokens=4000, steps=1).epoch(0))[0]
    assert batch.clips.nbytes > 1 << 21
    source = Toys()
    for index, clip in zip(batch.indices, batch.clips, strict=True):
        size = (batch.spec.height, batch.spec.width)
        read = source.read(index, frames=batch.spec.frames, size=size, crop=centre_crop(size))
        assert torch.equal(clip, normalize(read)[0])


def test_readers_travel_to_processes_that_share_nothing(damaged: VideoSet) -> None:
    cell = Cell(ClipSpec(2, 16, 16, (8, 8)), (3, 1), 0, 0, 0, 0)
    for source in (VideoSource(damaged), RenderedSource(MotionSet(per_class=1))):
        reader = Reader(source, FULL, 1, alters=True)
        assert torch.equal(pickle.loads(pickle.dumps(reader))[cell].frames, reader[cell].frames)


def test_a_worker_that_dies_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(loader(Deadly(), workers=2).epoch(0))


def test_workers_outlive_the_signals_that_a_terminal_or_a_scheduler_sends_to_the_whole_group() -> None:
    read, plain = (loader(source, workers=2).epoch(0) for source in (Stopped(), Toys()))
    assert all(map(all_same, read, plain))


class Slow(Toys):
    """Films of which all but those of the first step take longer than anybody waits."""

    quick: frozenset[int] = frozenset()

    def take(self, index: int, choose: Choose, size: Size) -> Tensor:
        if index not in self.quick:
            time.sleep(1000)
        return super().take(index, choose, size)


def slow_epoch() -> Iterator[list[Batch]]:
    source = Slow()
    batches = loader(source, augment=None, workers=2)
    source.quick = frozenset(chain(*batches.plans(0, 0)[0].cells))
    return batches.epoch(0)


def test_busy_workers_end_with_the_training() -> None:
    before, epoch = multiprocessing.active_children(), slow_epoch()
    next(epoch)
    workers = [child for child in multiprocessing.active_children() if child not in before]
    assert [worker.is_alive() for worker in workers] == [True, True]
    begun = time.monotonic()
    del epoch
    assert time.monotonic() - begun < 4
    assert [worker.exitcode for worker in workers] == [0, 0]


def test_busy_workers_end_with_a_program_that_keeps_its_error() -> None:
    program = "from test_loader import slow_epoch\nfor batches in slow_epoch():\n    raise ValueError('stop')"
    found = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[:2]))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (found.returncode, found.stderr.splitlines()[-1]) == (1, "ValueError: stop")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "`steps` must be at least 1, got 0."),
        ({"specs": 0}, "`specs` must be at least 1, got 0."),
        ({"accumulate": 0}, "`accumulate` must be at least 1, got 0."),
        ({"rank": 2, "world": 2}, "There is no rank 2 among 2: ranks are numbered from 0 to 1."),
        ({"workers": -1}, "`workers` must be at least 0, got -1."),
        ({"std": (1.0, 1.0)}, "`mean` and `std` need a finite number for each of 3 colours"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        loader(**options)


def test_clips_held_on_a_gpu_are_not_read_by_other_processes() -> None:
    source = Toys()
    source.device = torch.device("cuda:1")
    message = (
        "The clips of toys are held on cuda:1, where other processes do not reach them: use workers=0, not 2."
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        loader(source, workers=2)


def test_a_step_of_several_draws_of_sizes() -> None:
    """Each has its part of the budget and of the clips; the draws are those of steps of such parts."""
    several = loader(tokens=4 * BUDGET, clips=12, specs=4, accumulate=2, augment=None)
    parts = loader(tokens=BUDGET, clips=3, accumulate=2, augment=None)
    for epoch in range(2):
        draws, steps = list(parts.epoch(epoch)), list(several.epoch(epoch))
        assert len(steps) == several.steps_in(epoch) == -(-len(draws) // 4) > 1
        for step, batches in enumerate(steps):
            assert all_same(batches, [batch for draw in draws[4 * step : 4 * step + 4] for batch in draw])
            held = [plan.clips for plan in several.plans(epoch, step)]
            assert sum(held) == sum(map(len, batches))
            assert len({batch.spec for batch in batches}) <= len(held) == len(batches) / 2
        assert all_same(next(several.epoch(epoch, start=1)), steps[1])
    assert several.summary(2) == parts.summary(2)
    assert several.total_steps(2) == several.steps_in(0) + several.steps_in(1)
    assert loader(tokens=4 * BUDGET, specs=4, steps=3).steps_in(0) == 3
