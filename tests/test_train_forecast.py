"""What a step takes of the memory, known before it is taken; and what is refused before any data is read."""

import os
from dataclasses import replace

import pytest
import torch
from training import CONFIG, PLAIN, POLICY, run, toy_model

import flexvideo as fv
from flexvideo.data.sampler import StepSampler, clip_tokens
from flexvideo.train.footprint import _kept, step_memory
from flexvideo.train.setup import sampling_of

pytestmark = pytest.mark.usefixtures("few_clips")
BASE = sampling_of(toy_model(), None)[0]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("flexible", [True, False])
def test_what_is_kept_is_what_was_forecast(flexible: bool, bf16: bool):
    """By the count of the whole of the largest batch, to which the clips themselves come."""
    model = toy_model(img_size=64, embed_dim=32, num_frames=4)
    if flexible:
        fv.make_flexible(model, policy=fv.StaticTokens(frames=(2, 4), sizes=(64, 96)))
    else:
        fv.restore(model)
    base, policy = sampling_of(model, None)
    config = replace(PLAIN, tokens=512, bf16=bf16)
    tokens, size = step_memory(model, policy, base, config=config, clips=999, world=1)
    assert tokens == 512
    fv.make_flexible(model, policy=policy)
    spec = max(policy.specs(base), key=lambda spec: spec.frames * spec.height)
    pixels = 12 * 2 * spec.frames * spec.height * spec.width
    kept = _kept(model, spec, bf16=bf16) + pixels
    assert 0.9 * kept < size < 1.02 * kept


@pytest.mark.parametrize(
    "changes",
    [{}, {"clips": 6}, {"specs": 2}, {"accumulate": 2}, {"steps": 3}, {"tokens": 4000}, {"augment": "x"}],
)
def test_the_largest_batch_is_the_samplers(changes: dict):
    changes = {"augment": replace(CONFIG.augment, repeats=2)} if "augment" in changes else changes
    config = replace(PLAIN, **changes)
    tokens = step_memory(toy_model(), POLICY, BASE, config=config, clips=20, world=1)[0]
    sampler = StepSampler(
        [0] * 20,
        policy=POLICY,
        base=BASE,
        tokens=config.tokens // config.specs,
        clips=None if config.clips is None else config.clips // config.specs,
        cells=config.accumulate,
        steps=config.steps,
        repeats=config.augment.repeats,
    )
    plans = [sampler.plan(epoch, step) for epoch in range(20) for step in range(sampler.steps_in(epoch))]
    assert tokens == max(len(plan.cells[0]) * clip_tokens(POLICY, BASE, plan.spec) for plan in plans)


def test_counting_draws_nothing():
    model = toy_model().train()
    before = torch.get_rng_state()
    step_memory(model, POLICY, BASE, config=CONFIG, clips=20, world=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_step_larger_than_the_memory(tmp_path, capsys, monkeypatch):
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 500}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    assert run(tmp_path / "a") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("flexvideo train: On the CPU a step of up to 192 tokens takes 0.0 GiB of memory")
    assert "take it in parts by --accumulate" in said
    assert not (tmp_path / "a").exists()
    pages["SC_PHYS_PAGES"] = 1100
    assert run(tmp_path / "b") == 0
    assert "note: a step of up to 192 tokens takes" in capsys.readouterr().err
    pages["SC_PHYS_PAGES"] = 10**6
    assert run(tmp_path / "c") == 0
    assert "of memory or more" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--workers", "-1"), "--workers must be at least 0, got -1."),
        (("--evaluate-at", "8by32"), "--evaluate-at takes frames x pixels, such as 16x224, and got '8by32'."),
        (("--evaluate-at", "2x16"), "--evaluate-at says at which sizes to measure"),
        (("--out", "/proc/1/x/y"), "/proc/1/x/y cannot be made a folder: No such file or directory."),
    ],
)
def test_before_any_data_is_read(more, message, tmp_path, capsys):
    assert run(tmp_path, "--data", "ucf101:/nowhere", *more) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_run_that_is_refused_leaves_no_folder(tmp_path, capsys):
    assert run(tmp_path / "a" / "b", "--data", "ucf101:/nowhere") == 2
    assert "/nowhere" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
