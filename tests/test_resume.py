"""A run can be killed at any moment: it goes on from its last checkpoint, to the bit, or says why not."""

import json
import multiprocessing
import os
import random
import resource
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from training import CONFIG, POLICY, ToySource, toy_model, toy_train, weights

import flexvideo as fv
from flexvideo.data.augment import AUGMENTS
from flexvideo.data.held import HeldSource
from flexvideo.data.sampler import StepSampler
from flexvideo.errors import CheckpointError, MemoryLimitError, TrainingError
from flexvideo.geometry import Base
from flexvideo.train import TrainConfig, read_log
from flexvideo.train.checkpoint import checkpoints


class Killed(BaseException):
    """What no handler of the library catches."""


class Renamed(ToySource):
    """Of the same classes and labels, and of other files."""

    def listed(self):
        videos = super().listed()
        return replace(videos, records=tuple(replace(each, id=f"b {each.id}") for each in videos))


def in_other_colours() -> nn.Module:
    model = toy_model()
    model.mean = (0.5, 0.5, 0.5)
    return model


MEASURED = {"top1/2x16": 0.5}


def losses(out: Path) -> list[tuple[int, float]]:
    return [(record["step"], record["loss"]) for record in read_log(out) if "loss" in record]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupted."""
    out = tmp_path_factory.mktemp("whole")
    assert toy_train(out, evaluate=lambda model: MEASURED).finished
    return out


def assert_same(out: Path, whole: Path) -> None:
    assert weights(out) == weights(whole)
    assert losses(out) == losses(whole)


def test_a_run_repeats(whole: Path, tmp_path: Path):
    toy_train(tmp_path)
    assert_same(tmp_path, whole)
    assert [step for step, _ in losses(whole)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("after", [1, 3])
def test_killed_after_a_step(after: int, whole: Path, tmp_path: Path):
    def kill(record):
        if record["step"] > after:
            raise Killed

    with pytest.raises(Killed):
        toy_train(tmp_path, report=kill)
    assert toy_train(tmp_path, resume=True).steps == 5
    assert_same(tmp_path, whole)


@pytest.mark.parametrize(
    ("call", "time"),
    [
        *(("replace", time) for time in (2, 7)),
        *(
            pytest.param("replace", time, marks=pytest.mark.slow)
            for time in (1, 3, 4, 5, 6, 8, 9, 10, 11, 12)
        ),
        *(pytest.param("fsync", time, marks=pytest.mark.slow) for time in range(1, 13)),
    ],
)
def test_killed_while_saving(
    call: str, time: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Before the bytes are on the disk, and before they get their name: of the log, checkpoints and model."""
    left, original = [time], getattr(os, call)

    def killing(*arguments):
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, killing)
        with pytest.raises(Killed):
            toy_train(tmp_path)
    assert toy_train(tmp_path, resume=True).finished
    assert_same(tmp_path, whole)


def test_what_a_killed_process_had_begun_to_write_is_removed(tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".step-00000001.safetensors.1a2b3c4d.part").write_bytes(b"half")
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    toy_train(tmp_path, resume=True, config=replace(CONFIG, epochs=1))
    assert not list(tmp_path.rglob("*.part"))
    assert [step for step, _ in losses(tmp_path)] == [1, 2, 3]


LONG = replace(CONFIG, epochs=8)


def _child(out: str) -> None:
    toy_train(Path(out), resume=True, config=LONG)


@pytest.mark.slow
def test_kill_9_at_random_moments(tmp_path: Path):
    toy_train(tmp_path / "whole", config=LONG)
    context, draw, kills = multiprocessing.get_context("spawn"), random.Random(0), 0
    process = None
    while process is None or process.exitcode != 0:
        before = checkpoints(tmp_path / "killed")
        process = context.Process(target=_child, args=(str(tmp_path / "killed"),))
        process.start()
        while process.is_alive() and checkpoints(tmp_path / "killed") == before:
            process.join(0.005)
        process.join(draw.uniform(0.0, 0.1) if kills < 5 else None)
        if process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
        assert process.exitcode in (0, -signal.SIGKILL)
    assert kills == 5
    assert_same(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize("after", [3, 5, 6])
def test_the_log_does_not_tell_when_a_run_was_saved_or_resumed(after: int, tmp_path: Path):
    """A line is about the steps since the line before, whatever was saved between them."""
    config = replace(CONFIG, epochs=2, steps=4, log_every=3, checkpoint_every=100)
    toy_train(tmp_path / "whole", config=config)
    assert [step for step, _ in losses(tmp_path / "whole")] == [1, 3, 4, 6, 8]
    taken = iter(range(1, 9))
    often = replace(config, checkpoint_every=1)
    stopped = toy_train(tmp_path / "b", config=often, stop=lambda: next(taken) == after)
    assert stopped.steps == after
    toy_train(tmp_path / "b", config=often, resume=True)
    assert_same(tmp_path / "b", tmp_path / "whole")


def test_steps_of_several_sizes_go_on_too(tmp_path: Path):
    config = replace(CONFIG, specs=2, steps=3)
    toy_train(tmp_path / "whole", config=config)
    asked = iter([False, True])
    assert toy_train(tmp_path / "b", stop=lambda: next(asked), config=config).steps == 2
    toy_train(tmp_path / "b", resume=True, config=config)
    assert_same(tmp_path / "b", tmp_path / "whole")


def test_stopping_saves_and_goes_on(whole: Path, tmp_path: Path):
    asked = iter([False, True])
    config = replace(CONFIG, checkpoint_every=100)
    result = toy_train(tmp_path, stop=lambda: next(asked), config=config)
    planned = StepSampler(
        ToySource().labels, policy=POLICY, base=Base(2, 16, 16, (8, 8)), tokens=CONFIG.tokens, repeats=2
    )
    seen = Counter()
    for step in range(2):
        seen[planned.plan(0, step).spec] += planned.plan(0, step).clips
    assert (result.finished, result.steps) == (False, 2)
    assert {spec: clips for spec, clips in result.clips.items() if clips} == seen
    assert fv.load(tmp_path).labels == ToySource().classes
    assert toy_train(tmp_path, resume=True, config=config).finished
    assert_same(tmp_path, whole)


def test_stopping_at_the_last_step_is_the_end(whole: Path, tmp_path: Path):
    asked = iter([False] * 4 + [True])
    assert toy_train(tmp_path, stop=lambda: next(asked)).finished
    assert_same(tmp_path, whole)


def test_a_finished_run_has_nothing_to_add(whole: Path):
    before = weights(whole)
    result = toy_train(whole, resume=True)
    assert (result.steps, result.loss, result.metrics) == (5, losses(whole)[-1][1], MEASURED)
    assert weights(whole) == before


def test_the_model_of_the_last_epoch_is_there_after_a_kill(tmp_path: Path):
    def kill(record):
        if record["epoch"] == 1:
            raise Killed

    with pytest.raises(Killed):
        toy_train(tmp_path, report=kill)
    model, (*_, last) = fv.load(tmp_path), checkpoints(tmp_path)
    assert torch.equal(model.head.weight, load_file(last)["ema.head.weight"])
    assert fv.flex_config(model)["policy"] == POLICY.to_config()


@pytest.mark.parametrize("call", [1, 2])
def test_an_error_while_measuring_loses_nothing(call: int, tmp_path: Path):
    """The epoch is saved before, its model too, and is measured when the run goes on; and never twice."""
    calls: list[int] = []

    def failing(model: nn.Module) -> dict[str, float]:
        calls.append(1)
        if len(calls) == call:
            raise MemoryLimitError("too large")
        return measured(model)

    def measured(model: nn.Module) -> dict[str, float]:
        return {"weight": float(model.get_parameter("head.weight").detach().sum())}

    toy_train(tmp_path / "whole", evaluate=measured)
    with pytest.raises(MemoryLimitError, match="too large"):
        toy_train(tmp_path / "b", evaluate=failing)
    saved = load_file(checkpoints(tmp_path / "b")[-1])
    assert torch.equal(fv.load(tmp_path / "b").head.weight, saved["ema.head.weight"])
    for _ in range(2):
        result = toy_train(tmp_path / "b", evaluate=failing, resume=True)
    assert_same(tmp_path / "b", tmp_path / "whole")
    found, expected = (
        [tuple(record.values()) for record in read_log(out) if "weight" in record]
        for out in (tmp_path / "b", tmp_path / "whole")
    )
    assert found == expected
    assert result.metrics == {"weight": expected[-1][-1]}
    assert len(calls) == 3


def test_a_folder_with_a_run_is_not_overwritten(whole: Path):
    with pytest.raises(
        TrainingError, match=r"holds a run already: resume it \(--resume\), or choose another"
    ):
        toy_train(whole)


def test_the_last_checkpoints_are_kept(whole: Path):
    assert [path.stem for path in checkpoints(whole)] == ["step-00000004", "step-00000005"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": replace(CONFIG, lr=0.2)}, "config.lr was 0.1 and is 0.2"),
        ({"config": replace(CONFIG, accumulate=2)}, "processes times accumulation was 1 and is 2"),
        ({"config": TrainConfig(epochs=9, tokens=96)}, r"config.epochs was 2 and is 9; .* and \d+ more"),
        ({"model": toy_model(depth=3)}, "model.depth was 2 and is 3"),
        ({"model": toy_model(), "source": HeldSource(ToySource(), frames=4, size=16)}, r"data.held was None"),
        ({"source": Renamed()}, r"data.clips was '\w+' and is '\w+'"),
        ({"model": in_other_colours()}, r"colours.mean was \[0.485, .* and is \[0.5, 0.5, 0.5\]"),
        ({"source": ToySource("other")}, "data.name was 'toys' and is 'other'"),
        ({"source": ToySource(clips=21)}, "data.labels was"),
        ({"policy": replace(POLICY, frames=(2,))}, r"training policy.frames was \[2, 3\] and is \[2\]"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(changes, message: str, whole: Path):
    with pytest.raises(CheckpointError, match=message):
        toy_train(whole, resume=True, **changes)


def test_a_checkpoint_of_another_policy_or_rule_is_refused(whole: Path):
    model = fv.make_flexible(toy_model(), policy="flex-all", rule="pi")
    with pytest.raises(CheckpointError, match=r"policy.name was 'static-tokens' and is 'flex-all'"):
        toy_train(whole, resume=True, model=model, policy=POLICY)


def test_a_rate_of_drop_path_that_the_model_brought_is_looked_at(tmp_path: Path):
    config = replace(CONFIG, drop_path=None, epochs=1)
    toy_train(tmp_path, model=toy_model(drop_path_rate=0.1), config=config)
    with pytest.raises(CheckpointError, match=r"another run: drop path was 0\.1 and is 0\.3\. Go on"):
        toy_train(tmp_path, model=toy_model(drop_path_rate=0.3), config=config, resume=True)


def test_a_checkpoint_of_an_older_version_lacks_the_newest_fields(whole: Path, tmp_path: Path):
    """Fields that a recipe got later count as being at their defaults."""
    path, (*_, last) = tmp_path / "checkpoints" / "step-00000005.safetensors", checkpoints(whole)
    with safe_open(last, framework="pt") as file:
        header = json.loads(file.metadata()["flexvideo-training"])
    recipe = header["identity"]["config"]
    del recipe["layer_decay"], recipe["augment"]["erase"]
    identity = header["identity"]
    del identity["colours"], identity["drop path"], identity["data"]["clips"], identity["data"]["held"]
    path.parent.mkdir()
    save_file(load_file(last), path, {"flexvideo-training": json.dumps(header)})
    erases = replace(CONFIG, augment=replace(CONFIG.augment, erase=0.0))
    assert toy_train(tmp_path, resume=True, config=erases).finished
    assert toy_train(tmp_path, resume=True, config=erases, source=Renamed()).finished
    with pytest.raises(CheckpointError, match=r"config.augment.erase was 0.0 and is 0.25"):
        toy_train(tmp_path, resume=True)


def test_how_often_to_log_and_save_may_change(whole: Path):
    toy_train(whole, resume=True, config=replace(CONFIG, log_every=7, keep=5, evaluate_every=2))


def test_damaged_checkpoints_are_named(whole: Path, tmp_path: Path):
    path = tmp_path / "checkpoints" / "step-00000004.safetensors"
    path.parent.mkdir()
    path.write_bytes(checkpoints(whole)[-1].read_bytes()[:-100])
    message = (
        r"step-00000004.safetensors .* is truncated or damaged.*\. Delete it, and the run goes on from the"
    )
    with pytest.raises(CheckpointError, match=message):
        toy_train(tmp_path, resume=True)
    path.write_bytes(weights(whole))
    with pytest.raises(CheckpointError, match="holds weights, but is no checkpoint of a run"):
        toy_train(tmp_path, resume=True)


def test_a_full_disk_says_so_and_loses_nothing(whole: Path, tmp_path: Path):
    """Files of more than a few kilobytes fail, as they do on a full disk, from the third step on."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(record):
        if record["step"] == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))

    try:
        with pytest.raises(CheckpointError, match=r"step-00000003\S+ cannot be written: File too large"):
            toy_train(tmp_path, report=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.stem for path in checkpoints(tmp_path)] == ["step-00000001", "step-00000002"]
    assert not list(tmp_path.rglob("*.part"))
    assert toy_train(tmp_path, resume=True).finished
    assert_same(tmp_path, whole)


def test_checkpoints_hold_tensors_and_json(whole: Path):
    with safe_open(checkpoints(whole)[-1], framework="pt") as file:
        header, names = json.loads(file.metadata()["flexvideo-training"]), set(file.keys())
    assert header["progress"]["done"] == 5
    assert header["identity"]["config"] == {
        name: value for name, value in CONFIG.to_config().items() if name in header["identity"]["config"]
    }
    assert {"model.head.weight", "ema.head.weight", "optimizer.head.weight/exp_avg"} <= names


def test_dropout_of_any_model_repeats(tmp_path: Path):
    """What has no keys of its own takes torch's generator, which follows the samples."""

    def model():
        return toy_model(fc_drop_rate=0.5, drop_rate=0.3)

    def kill(record):
        if record["step"] == 4:
            raise Killed

    config = replace(CONFIG, tokens=CONFIG.tokens // 2, augment=AUGMENTS["none"])
    toy_train(tmp_path / "whole", model=model(), config=config)
    with pytest.raises(Killed):
        toy_train(tmp_path / "cut", model=model(), config=config, report=kill)
    torch.manual_seed(7)
    toy_train(tmp_path / "cut", model=model(), config=config, resume=True)
    assert_same(tmp_path / "cut", tmp_path / "whole")


def test_the_random_state_of_the_caller_is_left_alone(tmp_path: Path):
    torch.manual_seed(3)
    expected = torch.rand(2)
    model, source = toy_model(), ToySource()
    torch.manual_seed(3)
    toy_train(tmp_path, model=model, source=source, config=replace(CONFIG, epochs=1))
    assert torch.equal(torch.rand(2), expected)
