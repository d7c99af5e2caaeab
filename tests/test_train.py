"""The loop: it learns, says what does not fit, and leaves what the log and the model folder promise."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from training import CONFIG, PLAIN, POLICY, ToySource, toy_model, toy_train

import flexvideo as fv
from flexvideo.data import Batch, ClipSource
from flexvideo.errors import (
    CheckpointError,
    ConfigError,
    MemoryLimitError,
    TrainingError,
    VideoError,
    VideoWarning,
)
from flexvideo.train import TrainConfig, Validation, read_log, replace_head
from flexvideo.train.step import Stepper, loss_sum


def test_it_learns_and_what_is_saved_is_what_was_measured(tmp_path: Path):
    validation = Validation(ToySource("held out", clips=9), ((2, 16), (3, 24)))
    result = toy_train(tmp_path, config=replace(PLAIN, epochs=16), evaluate=validation)
    assert result.loss < 0.6 < math.log(3)
    assert result.metrics["top1/2x16"] > 0.8
    loaded = fv.load(tmp_path)
    assert validation(loaded) == result.metrics
    assert loaded.labels == ToySource().classes
    assert fv.flex_config(loaded)["policy"] == POLICY.to_config()


def test_the_average_is_measured_and_saved(tmp_path: Path):
    measured = []
    model = toy_model()

    def evaluate(model):
        measured.append(model.head.weight.detach().clone())
        return {"weight": 1.0}

    toy_train(tmp_path, model=model, evaluate=evaluate)
    assert torch.equal(fv.load(tmp_path).head.weight, measured[-1])
    assert not torch.equal(model.head.weight, measured[-1])


def test_a_plain_model_trains_at_its_own_size(tmp_path: Path):
    model = fv.restore(toy_model())
    result = toy_train(tmp_path, model=model, config=PLAIN)
    assert set(result.clips) == {fv.ClipSpec(2, 16, 16, (8, 8))}
    assert type(fv.load(tmp_path)) is fv.VideoMamba
    with pytest.raises(ConfigError, match="VideoMamba is not flexible, and trains at its own"):
        toy_train(tmp_path / "b", model=model, policy=POLICY)


def test_another_policy_is_drawn_from_and_the_models_own_stays(tmp_path: Path):
    drawn = fv.FlexAll(frames=(3,), sizes=(24,), patch_range=(6, 12))
    result = toy_train(tmp_path, policy=drawn, config=replace(PLAIN, epochs=1))
    assert {spec.patch for spec, clips in result.clips.items() if clips} <= {(6, 6), (8, 8), (12, 12)}
    assert fv.flex_config(fv.load(tmp_path))["policy"] == POLICY.to_config()


class Other(nn.Module):
    """A model of somebody else, without any of our methods."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv3d(3, 8, (1, 8, 8), stride=(1, 8, 8))
        self.pos_embed = nn.Parameter(torch.zeros(1, 4, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        tokens = self.stem(x).flatten(3).mean(2).transpose(1, 2) + self.pos_embed
        return self.head(tokens.mean(1))


def test_a_model_of_somebody_else(tmp_path: Path):
    torch.manual_seed(0)
    base = fv.Base(frames=None, height=16, width=16, patch=(8, 8))
    plan = fv.Plan(base=base, patch_embeds=("stem",), tables=(fv.Table("pos_embed", axes="space"),))
    model = fv.make_flexible(Other(), plan=plan, policy=POLICY)
    with pytest.raises(ConfigError, match=r"Drop path of a .*Other is its own matter"):
        toy_train(tmp_path, model=model)
    result = toy_train(tmp_path, model=model, config=replace(PLAIN, drop_path=None, epochs=20))
    assert result.loss < 0.9
    assert (tmp_path / "model.safetensors").exists()


def test_bfloat16_accumulation_and_the_rate(tmp_path: Path):
    config = replace(PLAIN, bf16=True, accumulate=2, warmup_lr=0.0, lr=1.0, epochs=2)
    result = toy_train(tmp_path, config=config)
    records = [record for record in read_log(tmp_path) if "lr" in record]
    mean = sum(result.clips.values()) / result.steps
    first = next(step for step, record in enumerate(records) if record["epoch"] == 1)
    assert records[0]["lr"] == 0
    assert records[first]["lr"] == pytest.approx(mean / 256)
    assert all(0 <= record["waiting_for_data"] <= 1 for record in records)


def test_a_wrong_head(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"gives \(\d+, 5\) for a batch, and the data has 3 classes"):
        toy_train(tmp_path, model=toy_model(classes=5))
    assert replace_head(toy_model(classes=5), ToySource().classes).head.out_features == 3


def test_a_diverging_run_stops_and_saves_nothing_of_it(tmp_path: Path):
    config = replace(PLAIN, lr=1e30, warmup_epochs=0, clip_norm=None, epochs=5)
    with pytest.raises(TrainingError, match=r"The loss is nan .* the training has diverged, and nothing"):
        toy_train(tmp_path, config=config)
    saved = [value for path in tmp_path.rglob("*.safetensors") for value in load_file(path).values()]
    assert all(value.isfinite().all() for value in saved)


def batch(clips: int) -> Batch:
    spec = fv.ClipSpec(3, 24, 24, (12, 12))
    labels = torch.arange(clips) % 3
    return Batch(
        torch.zeros(clips, 3, 3, 24, 24),
        labels,
        tuple(range(clips)),
        tuple(range(clips)),
        spec,
        torch.ones(clips),
    )


def test_the_loss_leaves_out_what_could_not_be_read():
    scores, full = torch.randn(4, 3), batch(4)
    part = replace(full, weights=torch.tensor([1.0, 0.0, 1.0, 1.0]))
    kept = F.cross_entropy(scores[[0, 2, 3]], full.labels[[0, 2, 3]], reduction="sum")
    torch.testing.assert_close(loss_sum(scores, part), kept)
    soft = replace(full, targets=torch.full((4, 3), 1 / 3))
    torch.testing.assert_close(loss_sum(scores, soft), -scores.log_softmax(1).mean(1).sum())


@pytest.mark.parametrize(
    ("room", "message"),
    [
        (
            3,
            "do not fit into the memory of cpu; 2 of them do, so accumulate 2 times as many batches, or",
        ),
        (1, "1 of them do, so accumulate 4 times as many"),
        (0, "and not even one does: leave that size out of the policy"),
    ],
)
def test_a_size_too_big_for_memory(room: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Batches of more than so many clips of 24 px run out of memory."""
    loss = Stepper._loss

    def limited(self, forward, batch, **settings):
        if batch.spec.height == 24 and len(batch) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return loss(self, forward, batch, **settings)

    monkeypatch.setattr(Stepper, "_loss", limited)
    config = replace(CONFIG, tokens=4 * 2 * 4)
    with pytest.raises(MemoryLimitError, match=message) as caught:
        toy_train(tmp_path, config=config, policy=fv.StaticTokens(frames=(2,), sizes=(24,)))
    assert str(caught.value).startswith("4 clips of 2 frames of 24 x 24 px, patch 12 x 12, ")


def test_a_size_too_big_to_be_measured_at():
    class Full(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    message = "4 clips of 2 frames of 16 px do not fit into the memory of cpu while the model is measured: "
    with pytest.raises(MemoryLimitError, match=message):
        Validation(ToySource(), ((2, 16),), batch=4)(Full())


def test_other_errors_of_a_forward_come_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(self, forward, batch, **settings):
        raise RuntimeError("something else")

    monkeypatch.setattr(Stepper, "_loss", broken)
    with pytest.raises(RuntimeError, match="something else"):
        toy_train(tmp_path)


class Damaged(ToySource):
    def take(self, index, choose, size):
        if index == 1:
            raise VideoError("toys 1 is damaged")
        return super().take(index, choose, size)


def test_clips_that_cannot_be_read(tmp_path: Path):
    source: ClipSource = Damaged()
    with pytest.raises(VideoError, match="toys 1 is damaged"):
        toy_train(tmp_path / "a", source=source, config=PLAIN)
    source.on_error = "skip"
    with pytest.warns(VideoWarning, match="toys: skipped toys 1"):
        toy_train(tmp_path / "b", source=source, config=PLAIN)
    accuracy = Validation(source, ((2, 16),))(fv.load(tmp_path / "b"))["top1/2x16"]
    assert (accuracy * 19) == pytest.approx(round(accuracy * 19), abs=1e-4)


def test_a_set_of_which_nothing_can_be_measured(tmp_path: Path):
    class Ruined(ToySource):
        on_error = "skip"

        def take(self, index, choose, size):
            raise VideoError(f"toys {index} is damaged")

    with (
        pytest.warns(VideoWarning, match="toys: skipped toys"),
        pytest.raises(VideoError, match=r"^Not one of the 20 clips of toys can be read, so nothing can be"),
    ):
        Validation(Ruined(), ((2, 16),))(toy_model())


NO_ROOM = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 300000000 bytes."


@pytest.mark.parametrize("workers", [0, 2])
def test_clips_too_big_to_be_read(workers: int, tmp_path: Path):
    class Large(ToySource):
        def take(self, index, choose, size):
            raise RuntimeError(NO_ROOM)

    config = replace(PLAIN, tokens=4 * 2 * 4)
    policy = fv.StaticTokens(frames=(2,), sizes=(24,))
    with pytest.raises(MemoryLimitError) as caught:
        toy_train(tmp_path, source=Large(), config=config, policy=policy, workers=workers)
    assert str(caught.value) == (
        "4 clips of 2 frames of 24 x 24 px, patch 12 x 12, do not fit into the memory of cpu, 0.0 GiB of "
        "pixels alone: accumulate more batches, make the budget of tokens smaller, or leave that size out of "
        "the policy."
    )
    with pytest.raises(MemoryLimitError, match=r"^16 clips of 2 frames of 16 px do not fit into the memory"):
        Validation(Large(), ((2, 16),))(toy_model())


def test_batches_too_big_for_the_device_of_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(shape, device):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("flexvideo.data.loader.room", full)
    with pytest.raises(
        MemoryLimitError, match=r"clips of \d frames of .* do not fit into the memory of cpu, "
    ):
        toy_train(tmp_path, config=PLAIN)


def test_a_disk_that_is_full_when_the_log_is_written(tmp_path: Path):
    def fill(record):
        (tmp_path / "log.jsonl").unlink()
        (tmp_path / "log.jsonl").symlink_to("/dev/full")

    with pytest.raises(CheckpointError, match=r"log.jsonl cannot be written: No space left on device\.$"):
        toy_train(tmp_path, config=PLAIN, report=fill)


def test_tensorboard_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import sys

    from flexvideo.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r'pip install "flexvideo\[tensorboard\]"'):
        toy_train(tmp_path, tensorboard=True)


def test_what_tensorboard_reads(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def kill(record):
        if record["step"] == 3:
            raise KeyboardInterrupt

    settings = {"tensorboard": True, "evaluate": lambda model: {"top1/2x16": 0.25}, "config": PLAIN}
    with pytest.raises(KeyboardInterrupt):
        toy_train(tmp_path, report=kill, **settings)
    toy_train(tmp_path, resume=True, **settings)
    events = EventAccumulator(str(tmp_path)).Reload()
    for name in ("loss", "lr", "top1/2x16"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        logged = [(record["step"], record[name]) for record in read_log(tmp_path) if name in record]
        assert found == [(step, pytest.approx(value)) for step, value in logged]


def test_evaluation_comes_as_often_as_asked_and_at_the_end(tmp_path: Path):
    config = replace(PLAIN, epochs=5, evaluate_every=2)
    toy_train(tmp_path, config=config, evaluate=lambda model: {"training": float(model.training)})
    assert [(r["epoch"], r["training"]) for r in read_log(tmp_path) if "training" in r] == [
        (1, 0),
        (3, 0),
        (4, 0),
    ]


def test_presets_run(tmp_path: Path):
    config = replace(TrainConfig.of("paper"), epochs=1, warmup_epochs=0, steps=1, tokens=64)
    assert toy_train(tmp_path, config=config).finished


def test_a_criterion_of_ones_own(tmp_path: Path):
    """It is given model and batch, and what it returns is made small."""
    weighed, config = [], replace(PLAIN, bf16=True, accumulate=2)

    def half(model: nn.Module, batch: Batch) -> torch.Tensor:
        scores = model(batch.clips, patch=batch.spec.patch)
        weighed.append((scores.dtype, float(batch.weights.sum())))
        return loss_sum(scores, batch) / 2

    whole = toy_train(tmp_path / "whole", config=config, model=toy_model())
    found = toy_train(tmp_path / "half", config=config, model=toy_model(), criterion=half)
    assert {dtype for dtype, _ in weighed} == {torch.bfloat16}
    assert sum(count for _, count in weighed) == sum(found.clips.values())
    assert 0.4 < found.loss / whole.loss < 0.6
    loss_of = [[record["loss"] for record in read_log(tmp_path / name)] for name in ("half", "whole")]
    assert loss_of[0][0] == pytest.approx(loss_of[1][0] / 2)


def test_a_step_of_several_sizes_gives_each_the_same_share(tmp_path: Path):
    """Its loss is the mean over sizes of the mean over their clips."""
    config = replace(PLAIN, specs=3, tokens=3 * PLAIN.tokens, epochs=1, warmup_lr=0.0, steps=2)
    seen: list[tuple[fv.ClipSpec, float]] = []

    def noted(model: nn.Module, batch: Batch) -> torch.Tensor:
        loss = loss_sum(model(batch.clips, patch=batch.spec.patch), batch)
        seen.append((batch.spec, loss.item() / len(batch)))
        return loss

    found = toy_train(tmp_path, config=config, criterion=noted)
    first, second = (record for record in read_log(tmp_path) if "loss" in record)
    assert (found.steps, len(seen)) == (2, 6)
    assert first["loss"] == pytest.approx(sum(loss for _, loss in seen[:3]) / 3)
    assert second["loss"] == pytest.approx(sum(loss for _, loss in seen[3:]) / 3)
    named = [f"{spec.frames}x{spec.height}x{spec.width}/{spec.patch[0]}x{spec.patch[1]}" for spec, _ in seen]
    assert first["spec"] == ", ".join(dict.fromkeys(named[:3]))
    assert len({clips for clips in found.clips.values() if clips}) > 1  # of a longer size fewer
