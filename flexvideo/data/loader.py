"""Batches for flexible training: each step at its own frame count, frame size and patch."""

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader

from flexvideo.data.alter import erase
from flexvideo.data.augment import Augment
from flexvideo.data.clips import IMAGENET_MEAN, IMAGENET_STD, normalize
from flexvideo.data.mix import draw_mixing, mix, soft_targets
from flexvideo.data.reader import Cell, Read, Reader, altered, draw_for, too_many
from flexvideo.data.room import lacks_memory, room
from flexvideo.data.sampler import StepPlan, StepSampler
from flexvideo.data.source import ClipSource
from flexvideo.data.workers import Workers
from flexvideo.errors import ConfigError, MemoryLimitError, VideoError
from flexvideo.geometry import Base, ClipSpec
from flexvideo.policy import Policy


@dataclass(frozen=True, eq=False)
class Batch:
    """The clips of one micro-batch.

    A clip that could not be read, where the source is told to skip such, is black and has no weight, so that
    a batch has its planned size on every rank. The loss of a micro-batch is the mean of `weights * losses`.

    Args:
        clips: normalised.
        labels: numbers of classes.
        indices: numbers of the clips in their source.
        places: of the clips in the order of the epoch, where one may come again; `keyed` draws by them.
        spec: sizes of the clips and the patch to run them at.
        weights: 1, or 0 for a clip that could not be read.
        targets: share of every class, where clips are mixed or labels smoothed; else None.
    """

    clips: Float[Tensor, "b 3 t h w"]
    labels: Int[Tensor, " b"]
    indices: tuple[int, ...]
    places: tuple[int, ...]
    spec: ClipSpec
    weights: Float[Tensor, " b"]
    targets: Float[Tensor, "b classes"] | None = None

    def __len__(self) -> int:
        return len(self.indices)


class FlexLoader:
    """The batches of a flexible training, step by step, as the policy draws their sizes.

    What a step holds is a pure function of (seed, epoch, step): the same from any step on, for any number of
    workers, and for N ranks as for one that accumulates N micro-batches. What is done to a clip is keyed by
    (seed, epoch, its place in the epoch's order), and what is mixed by (seed, epoch, step, micro-batch).

    Args:
        source: the clips.
        policy: what training draws from.
        base: sizes that the model was built for, as its plan tells.
        tokens: budget of an optimiser step, over all ranks and micro-batches.
        clips: the most clips of a step, over all of them; None is as many as the budget holds.
        specs: draws of sizes for a step, each of which has its part of `tokens` and of `clips`; the last step
            of an epoch may have fewer.
        steps: optimiser steps of an epoch; None is one pass over the clips, of as many steps as it takes:
            `steps_in` counts those of an epoch, `total_steps` those of a training.
        seed: any whole number.
        rank: which of the processes this is, from 0.
        world: how many processes share a step.
        accumulate: micro-batches of each process in a step.
        workers: processes that read clips; 0 reads them in this one, as clips that are held on a GPU must be.
        augment: what is done to clips; None is nothing.
        balanced: draw each class equally often, for sets with rare classes.
        mean: per colour, of values in [0, 1].
        std: likewise.
        device: where batches are made: frames travel there as bytes, and are altered there.
        pin_memory: whether they travel through page-locked memory, from which a GPU copies while it works.

    Raises:
        ConfigError: a number that does not fit, fewer clips than micro-batches, mirrored clips of a set whose
            classes tell left from right, or workers for clips that are held on a GPU.
        GeometryError: a spec of which the budget does not hold a clip for every micro-batch.

    Example:
        >>> from flexvideo import StaticTokens
        >>> from flexvideo.data.motion import MotionSet
        >>> from flexvideo.data.source import RenderedSource
        >>> source = RenderedSource(MotionSet("train", per_class=2))
        >>> policy = StaticTokens(frames=(4, 8), sizes=(32, 64))
        >>> base = Base(frames=8, height=64, width=64, patch=(16, 16))
        >>> loader = FlexLoader(source, policy=policy, base=base, tokens=2048, accumulate=2)
        >>> [batch.clips.shape for batch in next(loader.epoch(0))]
        [torch.Size([8, 3, 8, 32, 32]), torch.Size([8, 3, 8, 32, 32])]
    """

    def __init__(
        self,
        source: ClipSource,
        *,
        policy: Policy,
        base: Base,
        tokens: int,
        clips: int | None = None,
        specs: int = 1,
        steps: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        workers: int = 0,
        augment: Augment | None = None,
        balanced: bool = False,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        device: torch.device | str = "cpu",
        pin_memory: bool = False,
    ):
        _check_numbers(steps, specs, rank, world, accumulate, workers)
        if workers and source.device.type != "cpu":
            raise ConfigError(
                f"The clips of {source.name} are held on {source.device}, where other processes do not reach "
                f"them: use workers=0, not {workers}."
            )
        normalize(torch.zeros(1, 1, 1, 3, dtype=torch.uint8), mean=mean, std=std)  # refuses odd ones now
        self.source, self.seed, self.augment = source, seed, _settled(augment or Augment(), source)
        self._rank, self._world, self._accumulate = rank, world, accumulate
        self._specs, self._workers, self._device = specs, workers, torch.device(device)
        self._pin_memory = pin_memory and source.device.type == "cpu"
        self._shift = torch.tensor(tuple(mean), device=device).mul_(255).view(3, 1, 1, 1)
        self._scale = torch.tensor(tuple(std), device=device).mul_(255).view(3, 1, 1, 1)
        self._labels = source.labels
        self._sampler = StepSampler(
            self._labels,
            policy=policy,
            base=base,
            tokens=tokens // specs,
            clips=None if clips is None else clips // specs,
            cells=world * accumulate,
            seed=seed,
            steps=None if steps is None else steps * specs,
            balanced=balanced,
            repeats=self.augment.repeats,
        )

    def steps_in(self, epoch: int) -> int:
        """Count the optimiser steps of an epoch."""
        return -(-self._sampler.steps_in(epoch) // self._specs)

    def total_steps(self, epochs: int) -> int:
        """Count the optimiser steps of a training of so many epochs."""
        return sum(map(self.steps_in, range(epochs)))

    def plans(self, epoch: int, step: int) -> list[StepPlan]:
        """Give what a step holds, over all ranks: a plan for every draw of sizes.

        Args:
            epoch: from 0.
            step: of the epoch, from 0.
        """
        return [self._sampler.plan(epoch, draw) for draw in self._draws(epoch, step)]

    def summary(self, epochs: int) -> Counter[ClipSpec]:
        """Count the clips that a training of so many epochs sees at each spec, repeats included."""
        return self._sampler.count_clips(epochs)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[list[Batch]]:
        """Give the micro-batches of this rank, a list for every optimiser step, draw of sizes after draw.

        Args:
            epoch: from 0.
            start: the step to begin with.

        Raises:
            VideoError: a clip cannot be read, and the source is not told to skip it; or it is, and not one
                clip of the epoch can be read.
            MemoryLimitError: the clips of a micro-batch do not fit into memory.
            RuntimeError: a worker process died.
        """
        # An epoch that is gone on with has had its clips before.
        steps, readable = range(start, self.steps_in(epoch)), start > 0
        workers = Workers()
        reads = iter(
            DataLoader(
                Reader(self.source, self.augment, self.seed, alters=self._device.type == "cpu"),
                batch_size=None,
                sampler=self._cells(epoch, start),
                num_workers=self._workers,
                collate_fn=_as_it_is,
                worker_init_fn=workers.begin,
                pin_memory=self._pin_memory,
                generator=torch.Generator(),  # PyTorch draws from it, and else from the state of the process
            )
        )
        try:
            for step in steps:
                found = [next(reads) for _ in range(len(self._draws(epoch, step)) * self._accumulate)]
                readable = readable or any(len(read.errors) < len(read.cell.indices) for read in found)
                yield [self._batch(read) for read in found]
        finally:
            workers.end()
            del reads  # which an error would keep, as it keeps this frame
        if steps and not readable:
            raise VideoError(
                f"Not one clip of {self.source.name} could be read in epoch {epoch}; one of them: "
                f"{next(iter(self.source.skipped.values()))}"
            )

    def _cells(self, epoch: int, start: int) -> Iterator[Cell]:
        for draw in range(start * self._specs, self._sampler.steps_in(epoch)):
            plan = self._sampler.plan(epoch, draw)
            for micro in range(self._accumulate):
                number = micro * self._world + self._rank
                place = plan.start + number * len(plan.cells[number])
                yield Cell(plan.spec, plan.cells[number], place, epoch, draw, number)

    def _draws(self, epoch: int, step: int) -> range:
        """The draws of sizes of a step, numbered through the epoch; the sampler takes each for a step."""
        return range(step * self._specs, min((step + 1) * self._specs, self._sampler.steps_in(epoch)))

    def _batch(self, read: Read) -> Batch:
        """Report what could not be read, and make the rest of the batch where it is wanted."""
        cell = read.cell
        for message in read.warnings:
            warnings.warn(message, stacklevel=3)
        for place, error in read.errors.items():
            if not isinstance(error, VideoError):
                raise error
            self.source.skip(cell.indices[place], error)
        present = [place not in read.errors for place in range(len(cell.indices))]
        labels = torch.tensor([self._labels[index] for index in cell.indices])
        weights = torch.tensor(present).float()
        clips, targets = self._fitting(read), None
        if self.augment.soft:
            size = (cell.spec.height, cell.spec.width)
            mixing = draw_mixing(self.augment, size, draw_for("mix", self.seed, *cell[3:]))
            mix(clips, mixing, present)
            targets = soft_targets(
                labels, len(self.source.classes), mixing, present, smoothing=self.augment.smoothing
            )
            targets = self._sent(targets)
        places = tuple(range(cell.place, cell.place + len(cell.indices)))
        return Batch(clips, self._sent(labels), cell.indices, places, cell.spec, self._sent(weights), targets)

    def _sent(self, values: Tensor) -> Tensor:
        """On the device, for which a GPU need not have done what it was asked to before."""
        return values.to(self._device, non_blocking=True)

    def _fitting(self, read: Read) -> Float[Tensor, "b 3 t h w"]:
        try:
            return self._clips(read)
        except (RuntimeError, OSError) as error:
            if not lacks_memory(error):
                raise
            raise MemoryLimitError(too_many(read.cell, self._device)) from error

    def _clips(self, read: Read) -> Float[Tensor, "b 3 t h w"]:
        frames = read.frames.to(self._device, non_blocking=True)
        count, length, height, width, colours = frames.shape
        clips = room((count, colours, length, height, width), self._device)
        for place, (clip, shown) in enumerate(zip(clips, frames, strict=True)):
            if self._device.type != "cpu":
                shown = altered(shown, self.augment, self.seed, read.cell, place)
            clip.copy_(shown.permute(3, 0, 1, 2)).sub_(self._shift).div_(self._scale)
            draw = draw_for("erase", self.seed, read.cell.epoch, read.cell.place + place)
            erase(clip, probability=self.augment.erase, draw=draw)
        return clips


def _as_it_is(read: Any) -> Any:
    return read  # a read cell is a batch already


def _settled(augment: Augment, source: ClipSource) -> Augment:
    """Decide whether clips are mirrored."""
    if augment.flip and not source.flip_ok:
        raise ConfigError(
            f"Clips of {source.name} must not be mirrored, as its classes tell left from right: augment with "
            "flip=False, or with flip=None, which mirrors where a data set allows it."
        )
    return replace(augment, flip=source.flip_ok) if augment.flip is None else augment


def _check_numbers(
    steps: int | None, specs: int, rank: int, world: int, accumulate: int, workers: int
) -> None:
    for name, value in (("steps", steps), ("specs", specs), ("world", world), ("accumulate", accumulate)):
        if value is not None and value < 1:
            raise ConfigError(f"`{name}` must be at least 1, got {value}.")
    if not 0 <= rank < world:
        raise ConfigError(f"There is no rank {rank} among {world}: ranks are numbered from 0 to {world - 1}.")
    if workers < 0:
        raise ConfigError(f"`workers` must be at least 0, got {workers}.")
