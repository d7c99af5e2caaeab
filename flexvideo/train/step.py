"""One optimiser step: forward and backward of its batches, then the update."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flexvideo.active import flex_within
from flexvideo.data.loader import Batch
from flexvideo.data.room import lacks_memory, too_much
from flexvideo.errors import ConfigError, MemoryLimitError
from flexvideo.train.checkpoint import Run
from flexvideo.train.config import TrainConfig
from flexvideo.train.distributed import rank_and_world
from flexvideo.train.keyed import keyed

_SHOWN = 5  # parameters in a message

Criterion = Callable[[nn.Module, Batch], Tensor]


class Stepper:
    """Takes the steps of a run.

    Args:
        run: what is trained, on its device.
        config: of the training.
        classes: that the model must tell apart.
        criterion: what is made small; cross-entropy when None. See `train`.
    """

    def __init__(
        self, run: Run, config: TrainConfig, *, classes: int, criterion: Criterion | None = None
    ) -> None:
        self._run, self._config, self._classes = run, config, classes
        self._criterion = criterion or self._cross_entropy
        self._flexible = flex_within(run.model) is not None
        self._world = rank_and_world()[1]
        self._forward: nn.Module = run.model
        if self._world > 1 and run.sharding is None:
            self._forward = DistributedDataParallel(run.model)

    def take(
        self, batches: Sequence[Batch], *, rate: float, planned: Sequence[int], epoch: int, done: int
    ) -> Float[Tensor, " 2"]:
        """Take one step.

        Returns this process's share of the loss of the step, and the norm of its gradient, on the device.

        Args:
            batches: of this process.
            rate: learning rate.
            planned: what the loss of each batch is divided by: clips of its size in the step, over all
                processes, times the sizes of the step. Each size has the same share, as in steps of its own.
            epoch: of the run.
            done: steps taken before.

        Raises:
            MemoryLimitError: a batch does not fit into memory.
            ConfigError: the model does not give a score for each class, or does not use all of its parameters
                where several processes wait for their gradients.
        """
        optimizer = self._run.optimizer
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        losses = []
        for number, (batch, clips) in enumerate(zip(batches, planned, strict=True)):
            with self._synchronising(number == len(batches) - 1):
                losses.append(
                    fitting(
                        lambda part, clips=clips: self._backward(part, planned=clips, epoch=epoch),
                        None if self._run.sharding else lambda part: self._probe(part, epoch=epoch),
                        batch,
                        batches=len(batches) * self._world,
                    )
                )
        if isinstance(self._forward, DistributedDataParallel):
            self._require_gradients()
        norm = self._clip(self._config.clip_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if self._run.ema is not None:
            self._run.ema.update(step=done)
        return torch.stack((torch.stack(losses).sum(), norm / self._world))

    def _synchronising(self, last: bool) -> AbstractContextManager[None]:
        """Gradients are averaged over the processes once a step."""
        if self._run.sharding is not None:
            self._run.sharding.synchronise(last)
        if isinstance(self._forward, DistributedDataParallel) and not last:
            return self._forward.no_sync()
        return nullcontext()

    def _require_gradients(self) -> None:
        """Those that are averaged with the last one missing are not averaged, and the next forward fails."""
        parameters = self._run.model.named_parameters()
        unused = [name for name, value in parameters if value.requires_grad and value.grad is None]
        if unused:
            shown = ", ".join(unused[:_SHOWN]) + (", ..." if len(unused) > _SHOWN else "")
            raise ConfigError(
                f"{len(unused)} parameters of {type(self._run.model).__name__} have no gradient ({shown}), "
                "and several processes wait for one of each: freeze what the forward does not use "
                "(`requires_grad_(False)`), or train in one process."
            )

    def _clip(self, limit: float) -> Float[Tensor, ""]:
        if self._run.sharding is not None:
            return self._run.sharding.clip(limit)
        return nn.utils.clip_grad_norm_(self._run.model.parameters(), limit)

    def _backward(self, batch: Batch, *, planned: int, epoch: int) -> Float[Tensor, ""]:
        loss = self._loss(self._forward, batch, epoch=epoch) / planned
        (loss * self._world).backward()  # which are averaged over the processes, not added up
        return loss.detach()

    def _probe(self, batch: Batch, *, epoch: int) -> None:
        """Forward and backward of this process alone: these gradients are not waited for by the others."""
        parameters = [value for value in self._run.model.parameters() if value.requires_grad]
        torch.autograd.grad(self._loss(self._run.model, batch, epoch=epoch), parameters, allow_unused=True)

    def _loss(self, forward: nn.Module, batch: Batch, *, epoch: int) -> Float[Tensor, ""]:
        device = batch.clips.device.type
        with (
            keyed(self._run.model, batch.places, seed=self._config.seed, epoch=epoch),
            torch.autocast(device, torch.bfloat16, enabled=self._config.bf16),
        ):
            return self._criterion(forward, batch)

    def _cross_entropy(self, forward: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        patch = {"patch": batch.spec.patch} if self._flexible else {}
        scores = forward(batch.clips, **patch)
        self._check(scores)
        return loss_sum(scores, batch)

    def _check(self, scores: Tensor) -> None:
        if scores.ndim != 2 or scores.shape[1] != self._classes:
            raise ConfigError(
                f"{type(self._run.model).__name__} gives {tuple(scores.shape)} for a batch, and the data has "
                f"{self._classes} classes: give it a new head with flexvideo.train.replace_head."
            )


def loss_sum(scores: Float[Tensor, "b k"], batch: Batch) -> Float[Tensor, ""]:
    """Add up the cross-entropy of the clips of a batch, those without weight left out.

    Args:
        scores: of the classes.
        batch: holds labels, or shares of the classes.

    Example:
        >>> from flexvideo.geometry import ClipSpec
        >>> clips, spec = torch.zeros(2, 3, 4, 8, 8), ClipSpec(4, 8, 8, (4, 4))
        >>> batch = Batch(clips, torch.tensor([0, 1]), (5, 7), (0, 1), spec, torch.tensor([1.0, 0.0]))
        >>> loss_sum(torch.zeros(2, 3), batch)  # log 3 of the first clip; the other could not be read
        tensor(1.0986)
    """
    targets = batch.labels if batch.targets is None else batch.targets
    return (F.cross_entropy(scores.float(), targets, reduction="none") * batch.weights).sum()


def fitting(
    run: Callable[[Batch], Tensor], probe: Callable[[Batch], object] | None, batch: Batch, *, batches: int
) -> Tensor:
    """Run a batch; where it does not fit into memory, find out what does, and say so.

    Args:
        run: forward and backward of a batch.
        probe: the same without other processes, which do not take part in finding out; None where it takes
            them to run anything.
        batch: to run.
        batches: that make up a step, over all processes.

    Raises:
        MemoryLimitError: the batch does not fit.
    """
    try:
        return run(batch)
    except RuntimeError as error:
        if not lacks_memory(error):
            raise
    # Past the handler, whose traceback holds the tensors of the forward that failed.
    if probe is None:
        raise MemoryLimitError(
            f"{_too_much(batch)}: accumulate more batches, or make the budget of tokens smaller."
        )
    fits = len(batch) // 2
    while fits and not _fits(probe, _first(batch, fits)):
        fits //= 2
    raise MemoryLimitError(_advice(batch, fits, batches))


def _fits(probe: Callable[[Batch], object], batch: Batch) -> bool:
    if batch.clips.is_cuda:
        torch.cuda.empty_cache()
    try:
        probe(batch)
    except RuntimeError as error:
        if not lacks_memory(error):
            raise
        return False
    return True


def _first(batch: Batch, clips: int) -> Batch:
    targets = None if batch.targets is None else batch.targets[:clips]
    return replace(
        batch,
        clips=batch.clips[:clips],
        labels=batch.labels[:clips],
        indices=batch.indices[:clips],
        places=batch.places[:clips],
        weights=batch.weights[:clips],
        targets=targets,
    )


def _too_much(batch: Batch) -> str:
    return too_much(len(batch), batch.spec, batch.clips.device)


def _advice(batch: Batch, fits: int, batches: int) -> str:
    if not fits:
        return (
            f"{_too_much(batch)}, and not even one does: leave that size out of the policy, or build the "
            "model with use_checkpoint=True."
        )
    factor = -(-len(batch) // fits)
    return (
        f"{_too_much(batch)}; {fits} of them do, so accumulate {factor} times as many batches, or divide the "
        f"budget of tokens by {factor} ({fits * batches} such clips a step)."
    )
