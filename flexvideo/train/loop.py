"""The training loop: steps, log, evaluation, checkpoints, and a model folder at the end."""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flexvideo.data.loader import Batch
from flexvideo.data.source import ClipSource
from flexvideo.errors import TrainingError
from flexvideo.geometry import ClipSpec
from flexvideo.policy import Policy
from flexvideo.train.checkpoint import Progress, save_checkpoint
from flexvideo.train.claim import claimed
from flexvideo.train.config import TrainConfig
from flexvideo.train.distributed import any_of, summed
from flexvideo.train.log import Log, Report, read_log
from flexvideo.train.output import save_model
from flexvideo.train.setup import Training
from flexvideo.train.step import Criterion, Stepper

Evaluate = Callable[[nn.Module], Mapping[str, float]]


@dataclass(frozen=True)
class TrainResult:
    """What came of a training.

    Args:
        folder: with the model, the log and the checkpoints.
        steps: optimiser steps taken.
        finished: False where the training was stopped, after a checkpoint.
        seconds: spent on steps, those before a resume included.
        loss: mean over the last steps that were logged together.
        metrics: of the last evaluation.
        clips: seen at each size.
    """

    folder: Path
    steps: int
    finished: bool
    seconds: float
    loss: float
    metrics: dict[str, float] = field(default_factory=dict)
    clips: dict[ClipSpec, int] = field(default_factory=dict)


def train(
    model: nn.Module,
    source: ClipSource,
    *,
    config: TrainConfig,
    out: str | os.PathLike[str],
    policy: Policy | str | Mapping[str, Any] | None = None,
    evaluate: Evaluate | None = None,
    criterion: Criterion | None = None,
    resume: bool = False,
    workers: int = 0,
    tensorboard: bool = False,
    report: Report | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrainResult:
    """Train a model, at sizes that are drawn for every step, on the device that it is on.

    A run is a function of model, data, policy and config: it can be killed at any moment and, with `resume`,
    goes on from the last checkpoint as if nothing had happened, to the bit on the same device. Under
    `torchrun` all processes call this with the same arguments; they compute what one would with as many
    times the accumulation, within rounding. From the end of every epoch on the folder holds the model as it
    was then, as `flexvideo.load` reads it, with policy, rule and the names of the classes; where weights are
    averaged, the average. With `shard` the model stays spread over the processes; the folder has it whole,
    and so has every process while it is measured.

    Args:
        model: plain (then at its own size only) or flexible, with a score for every class; changed in place.
        source: of the clips.
        config: the recipe.
        out: folder of the run; made where there is none.
        policy: what the sizes are drawn from; the model's own when None.
        evaluate: measures the model, in evaluation mode; every process calls it. See `Validation`.
        criterion: what is made small, cross-entropy when None: called with the model and a batch, as often as
            there are batches, under autocast where `config` says so; returns a loss for every clip, times
            `batch.weights`, added up (`loss_sum` does both). A flexible model is called with
            `model(batch.clips, patch=batch.spec.patch)`. A checkpoint does not know it: resume with the same.
        resume: go on from the last checkpoint in the folder, or begin where there is none.
        workers: processes that read clips, for each process of the training.
        tensorboard: write events for TensorBoard beside the log.
        report: called with every record of the log.
        stop: asked after every step; when it says True, a checkpoint is written and the training ends.

    Raises:
        TrainingError: the folder holds a run and `resume` is not set, or a model without a checkpoint, or
            another run writes to it; or the loss is not a number any more.
        CheckpointError: a checkpoint of another run, or one that cannot be written.
        ConfigError: a model or a policy that does not fit the data, `shard` in one process alone, or a folder
            that cannot be made or written.
        MemoryLimitError: clips of some size do not fit into memory.

    Example:
        >>> import tempfile, flexvideo as fv
        >>> from flexvideo.data.motion import MotionSet
        >>> from flexvideo.data.source import RenderedSource
        >>> from flexvideo.train import TrainConfig, train
        >>> source = RenderedSource(MotionSet(actions=("jump", "bow"), per_class=2))
        >>> model = fv.VideoMamba(img_size=16, depth=1, embed_dim=16, num_frames=2, num_classes=2)
        >>> model = fv.make_flexible(model, policy=fv.StaticTokens(frames=(2, 3), sizes=(16, 24)))
        >>> config, out = TrainConfig(epochs=1, warmup_epochs=0, tokens=24), tempfile.mkdtemp()
        >>> train(model, source, config=config, out=out).finished
        True
        >>> fv.load(out).labels
        ('jump', 'bow')
    """
    training = Training(model, source, config=config, out=Path(out), policy=policy, workers=workers)
    with claimed(training.out), _reproducible(training.device):
        training.place(resume=resume)
        log = None
        if training.rank == 0:
            log = Log(training.out, done=training.progress.done, tensorboard=tensorboard, report=report)
        return _Loop(training, log, evaluate, criterion, stop).run()


class _Loop:
    """Runs a training from where it stands to its end."""

    def __init__(
        self,
        training: Training,
        log: Log | None,
        evaluate: Evaluate | None,
        criterion: Criterion | None,
        stop: Callable[[], bool] | None,
    ) -> None:
        self._training, self._log, self._evaluate, self._stop = training, log, evaluate, stop
        self._stepper = Stepper(
            training.state, training.config, classes=training.classes, criterion=criterion
        )
        self._window = self._unlogged()
        self._resumed = len(self._window)  # steps that another process took the time of
        self._begun = self._logged = time.perf_counter()
        self._before = training.progress.seconds
        self._waited = 0.0
        self._loss, self._metrics, self._measured = _last_logged(training.out)

    def run(self) -> TrainResult:
        training, config = self._training, self._training.config
        training.model.train()
        if training.progress.done and not training.progress.step:
            self._end_epoch()  # which an error or a kill may have come before
        for epoch in range(training.progress.epoch, config.epochs):
            steps, start = training.loader.steps_in(epoch), training.progress.step
            batches = self._waiting(training.loader.epoch(epoch, start=start))
            for step, part in enumerate(batches, start):
                self._step(part, epoch, step)
                ended = step + 1 == steps
                position = (epoch + 1, 0) if ended else (epoch, step + 1)
                training.progress = Progress(*position, training.progress.done + 1, self._seconds())
                stopping = self._stopping()
                self._after_step(part, epoch, ended=ended, stopping=stopping)
                if stopping and training.progress.done < training.steps:
                    return self._result(finished=False)
        training.model.eval()
        any_of(False)  # the folder is whole when any process returns
        return self._result(finished=True)

    def _step(self, batches: Sequence[Batch], epoch: int, step: int) -> None:
        training = self._training
        plans = training.loader.plans(epoch, step)
        planned = [plan.clips * len(plans) for plan in plans for _ in range(training.config.accumulate)]
        self._window.append(
            self._stepper.take(
                batches,
                rate=training.rate(training.progress.done),
                planned=planned,
                epoch=epoch,
                done=training.progress.done,
            )
        )

    def _after_step(self, batches: Sequence[Batch], epoch: int, *, ended: bool, stopping: bool) -> None:
        """Log, save and evaluate, in this order: an error of the last loses nothing of what was learnt."""
        training, config, done = self._training, self._training.config, self._training.progress.done
        specs = ", ".join(dict.fromkeys(_named(batch.spec) for batch in batches))
        saving = ended or stopping or done % config.checkpoint_every == 0
        logging = ended or done == 1 or done % config.log_every == 0
        unlogged: list[list[float]] = []
        if saving or logging:
            steps = self._finite_steps(specs)
            if logging:
                self._write_steps(steps, specs, epoch)
            else:
                unlogged = steps.tolist()
        if saving:
            save_checkpoint(
                training.out,
                training.state,
                replace(training.progress, unlogged=unlogged),
                identity=training.identity,
                keep=config.keep,
            )
        if ended:
            self._end_epoch()
        elif stopping:
            self._save_model()

    def _end_epoch(self) -> None:
        """Leave the model in the folder, and measure it where the log does not tell that it was."""
        training, epochs = self._training, self._training.progress.epoch
        self._save_model()
        due = epochs % training.config.evaluate_every == 0 or epochs == training.config.epochs
        # The others may have read the log before the first one dropped from it what is done anew.
        if any_of(training.rank == 0 and due and self._measured < training.progress.done):
            self._measure(epochs - 1)

    def _finite_steps(self, specs: str) -> Float[Tensor, "n 2"]:
        """Loss and norm of the steps since the last line; here alone does the CPU wait for a GPU."""
        training = self._training
        steps = summed(torch.stack(self._window))
        loss, norm = steps.mean(0).tolist()
        if not math.isfinite(loss + norm):
            raise TrainingError(
                f"The loss is {loss} and the norm of the gradient {norm} at step {training.progress.done} "
                f"({specs}): the training has diverged, and nothing since the last checkpoint was "
                "saved. Start again in another folder, at a lower learning rate, with `clip_norm`, or "
                "without bfloat16."
            )
        return steps

    def _write_steps(self, steps: Float[Tensor, "n 2"], specs: str, epoch: int) -> None:
        training, now = self._training, time.perf_counter()
        self._loss, norm = steps.mean(0).tolist()
        self._write(
            {
                "step": training.progress.done,
                "steps": training.steps,
                "epoch": epoch,
                "loss": self._loss,
                "grad_norm": norm,
                "lr": training.rate(training.progress.done - 1),
                "spec": specs,
                "seconds_per_step": (now - self._logged) / (len(steps) - self._resumed),
                "waiting_for_data": self._waited / (now - self._logged),
            }
        )
        self._window, self._resumed, self._logged, self._waited = [], 0, now, 0.0

    def _unlogged(self) -> list[Tensor]:
        """The steps before a checkpoint that no line tells of yet: sums over processes, so one has them."""
        training = self._training
        steps = torch.tensor(training.progress.unlogged, device=training.device).view(-1, 2)
        return list(steps if training.rank == 0 else torch.zeros_like(steps))

    def _measure(self, epoch: int) -> None:
        if self._evaluate is None:
            return
        training, ema, sharding = self._training, self._training.state.ema, self._training.state.sharding
        training.model.eval()
        with (
            nullcontext() if ema is None else ema.used(),
            nullcontext() if sharding is None else sharding.whole(),
        ):
            self._metrics = dict(self._evaluate(training.model))
        training.model.train()
        self._logged, self._measured = time.perf_counter(), training.progress.done
        self._write({"step": training.progress.done, "epoch": epoch, **self._metrics})

    def _save_model(self) -> None:
        training, ema, sharding = self._training, self._training.state.ema, self._training.state.sharding
        with nullcontext() if ema is None else ema.used():
            model = training.model if sharding is None else sharding.plain()
            if training.rank == 0:
                save_model(model, training.out)

    def _result(self, *, finished: bool) -> TrainResult:
        training, progress = self._training, self._training.progress
        clips = training.loader.summary(progress.epoch)
        for step in range(progress.step):
            for plan in training.loader.plans(progress.epoch, step):
                clips[plan.spec] += plan.clips
        return TrainResult(
            training.out, progress.done, finished, progress.seconds, self._loss, self._metrics, dict(clips)
        )

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._log is not None:
            self._log.write(record)

    def _stopping(self) -> bool:
        return any_of(self._stop is not None and self._stop())

    def _seconds(self) -> float:
        return self._before + time.perf_counter() - self._begun

    def _waiting(self, batches: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        """The same batches, while the time that each takes to come is noted."""
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch


@contextmanager
def _reproducible(device: torch.device) -> Iterator[None]:
    """Kernels that give the same bits every time, and the caller's random state back at the end."""
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
    ):
        yield


def _last_logged(folder: Path) -> tuple[float, dict[str, float], int]:
    """The last loss and measurements of a run that goes on, or was finished before, and the step of these."""
    loss, metrics, measured = float("nan"), {}, 0
    for record in read_log(folder):
        loss = record.get("loss", loss)
        if "loss" not in record:
            metrics = {name: value for name, value in record.items() if name not in ("step", "epoch")}
            measured = record["step"]
    return loss, metrics, measured


def _named(spec: ClipSpec) -> str:
    return f"{spec.frames}x{spec.height}x{spec.width}/{spec.patch[0]}x{spec.patch[1]}"
