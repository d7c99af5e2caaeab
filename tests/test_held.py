"""Clips in memory: the same as those of the source, on a GPU within the rounding of its resizing."""

import re
from dataclasses import replace

import pytest
import torch

from flexvideo import Base, StaticTokens
from flexvideo.data.augment import Augment
from flexvideo.data.held import HeldSource
from flexvideo.data.loader import FlexLoader
from flexvideo.data.motion import MotionSet
from flexvideo.data.source import ClipSource, RenderedSource
from flexvideo.errors import MemoryLimitError
from flexvideo.evaluate import cells
from flexvideo.evaluate.views import Views, read_views

BASE = Base(frames=8, height=32, width=32, patch=(16, 16))
POLICY = StaticTokens(frames=(2, 4), sizes=(16, 24, (16, 32)))
AUGMENT = Augment(scale=(0.5, 1.0), operations=4, mixup=0.8, cutmix=1.0, smoothing=0.1)


def drawn() -> RenderedSource:
    return RenderedSource(MotionSet("train", actions=("bow", "jump"), per_class=4))


def held(device: str = "cpu") -> HeldSource:
    return HeldSource(drawn(), frames=8, size=32, device=device)


def loader(source: ClipSource, augment: Augment = AUGMENT, tokens: int = 128, **options) -> FlexLoader:
    return FlexLoader(source, policy=POLICY, base=BASE, tokens=tokens, augment=augment, **options)


def test_a_held_clip_is_what_the_source_gives() -> None:
    source = held()
    assert source.device == torch.device("cpu")
    assert (source.labels, source.classes, len(source)) == (drawn().labels, drawn().classes, 8)
    assert torch.equal(source.read(3, frames=8, size=32), drawn().read(3, frames=8, size=32))


def test_what_memory_does_not_hold_is_refused() -> None:
    message = (
        "8 clips of 1000000 frames of 65536 x 65536 px take 96,000,000 GiB, which cpu does not have: hold "
        "fewer or smaller frames, or read the clips as they come."
    )
    with pytest.raises(MemoryLimitError, match=f"^{re.escape(message)}$"):
        HeldSource(drawn(), frames=1_000_000, size=1 << 16)


@pytest.mark.gpu
def test_batches_altered_on_a_gpu_are_those_altered_on_the_cpu() -> None:
    there = loader(held(), device="cuda", pin_memory=True, workers=2)
    assert agreeing(loader(held()), there) > 0.99  # an operation may fall the other way


@pytest.mark.gpu
def test_batches_of_clips_held_on_a_gpu_are_those_of_clips_held_here() -> None:
    # of 255 levels a GPU resizes to the next one at times, which some operations make much of
    plain = replace(AUGMENT, operations=0)
    assert agreeing(loader(held(), plain), loader(held("cuda"), plain, device="cuda")) > 0.99


def agreeing(here: FlexLoader, there: FlexLoader) -> float:
    """The smallest share of values of a batch that are the same but for two levels of 255."""
    shares = []
    for (a,), (b,) in zip(here.epoch(0), there.epoch(0), strict=True):
        assert b.clips.is_cuda
        assert (b.indices, b.spec) == (a.indices, a.spec)
        assert a.targets is not None
        assert b.targets is not None
        torch.testing.assert_close(b.targets.cpu(), a.targets)
        shares.append(float((b.clips.cpu() - a.clips).abs().lt(0.05).float().mean()))
    return min(shares)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
def test_batches_of_clips_held_on_a_gpu_do_not_wait_for_it() -> None:
    plain = replace(AUGMENT, operations=0)
    batches = loader(held("cuda"), plain, tokens=32, device="cuda").epoch(0)
    next(batches)  # four of a clip or two, the first of one size
    before = torch.cuda.get_sync_debug_mode()
    try:
        torch.cuda.set_sync_debug_mode("error")
        assert len(next(batches)) == 1
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.gpu
def test_views_of_a_clip_on_a_gpu_are_those_on_the_cpu() -> None:
    here, there = (
        read_views(held(device), 1, cells((2, 8), (16, 48)), Views()) for device in ("cpu", "cuda")
    )
    for cell, (view,) in here.items():
        assert there[cell][0].is_cuda
        assert (there[cell][0].cpu().int() - view.int()).abs().max() <= 2
