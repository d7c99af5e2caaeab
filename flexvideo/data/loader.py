"""Batches for flexible training: each step at its own frame count, frame size and patch."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flexvideo.data.augment import Augment
from flexvideo.data.clips import IMAGENET_MEAN, IMAGENET_STD, normalize
from flexvideo.data.sampler import StepPlan, StepSampler
from flexvideo.data.source import Box, ClipSource, Crop
from flexvideo.errors import VideoError
from flexvideo.geometry import Base, ClipSpec
from flexvideo.policy import Policy


@dataclass(frozen=True, eq=False)
class Batch:
    """The clips of one micro-batch.

    A clip that could not be read, where the source is told to skip such, is black and has no weight: a batch
    has the planned size on every rank. The loss of a step is
    `(weights * loss of each clip).sum() / clips of the step's plan`, or equally its mean over micro-batches.

    Args:
        clips: normalised.
        labels: numbers of classes.
        indices: numbers of the clips in their source.
        spec: sizes of the clips and the patch to run them at.
        weights: 1, or 0 for a clip that could not be read.
        targets: share of every class, where clips are mixed or labels smoothed; else None.
    """

    clips: Float[Tensor, "b 3 t h w"]
    labels: Int[Tensor, " b"]
    indices: tuple[int, ...]
    spec: ClipSpec
    weights: Float[Tensor, " b"]
    targets: Float[Tensor, "b classes"] | None = None

    def __len__(self) -> int:
        return len(self.indices)


class FlexLoader:
    """The batches of a flexible training, step by step, as the policy draws their sizes.

    What a step holds is a pure function of (seed, epoch, step): the same from any step on, for any number of
    workers, and for N ranks as for one that accumulates N micro-batches.

    Args:
        source: the clips.
        policy: what training draws from.
        base: sizes that the model was built for, as its plan tells.
        tokens: budget of an optimiser step, over all ranks and micro-batches.
        steps: optimiser steps of an epoch; None is one pass over the clips, of as many steps as it takes:
            `steps_in` counts those of an epoch, `total_steps` those of a training.
        seed: any whole number.
        rank: which of the processes this is, from 0.
        world: how many processes share a step.
        accumulate: micro-batches of each process in a step.
        workers: processes that read clips; 0 reads them in this one.
        augment: what is done to clips; None is nothing.
        balanced: draw each class equally often, for sets with rare classes.
        mean: per colour, of values in [0, 1].
        std: likewise.
        device: where batches are made.
        pin_memory: whether clips pass through page-locked memory, from which a GPU copies while it works.

    Raises:
        ConfigError: fewer clips than micro-batches.
        GeometryError: a spec of which the budget does not hold a clip for every micro-batch.
    """

    def __init__(
        self,
        source: ClipSource,
        *,
        policy: Policy,
        base: Base,
        tokens: int,
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
        self.source, self.seed = source, seed
        self._rank, self._world, self._accumulate = rank, world, accumulate
        self._augment = augment or Augment()
        self._mean, self._std, self._device = tuple(mean), tuple(std), torch.device(device)
        self._labels = source.labels
        self._sampler = StepSampler(
            self._labels,
            policy=policy,
            base=base,
            tokens=tokens,
            cells=world * accumulate,
            seed=seed,
            steps=steps,
            balanced=balanced,
        )

    def steps_in(self, epoch: int) -> int:
        """Count the optimiser steps of an epoch."""
        return self._sampler.steps_in(epoch)

    def total_steps(self, epochs: int) -> int:
        """Count the optimiser steps of a training of so many epochs."""
        return sum(map(self.steps_in, range(epochs)))

    def plan(self, epoch: int, step: int) -> StepPlan:
        """Give what a step holds, over all ranks.

        Args:
            epoch: from 0.
            step: of the epoch, from 0.
        """
        return self._sampler.plan(epoch, step)

    def summary(self, epochs: int) -> Counter[ClipSpec]:
        """Count the clips that a training of so many epochs sees at each spec."""
        return self._sampler.count_clips(epochs)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[list[Batch]]:
        """Give the micro-batches of this rank, a list for every optimiser step.

        Args:
            epoch: from 0.
            start: the step to begin with.

        Raises:
            VideoError: a clip cannot be read, and the source is not told to skip it.
        """
        for step in range(start, self.steps_in(epoch)):
            plan = self.plan(epoch, step)
            yield [
                self._batch(plan.spec, plan.cells[micro * self._world + self._rank], epoch)
                for micro in range(self._accumulate)
            ]

    def _batch(self, spec: ClipSpec, cell: tuple[int, ...], epoch: int) -> Batch:
        clips, weights = (
            torch.zeros(len(cell), 3, spec.frames, spec.height, spec.width),
            torch.ones(len(cell)),
        )
        for place, index in enumerate(cell):
            try:
                frames = self.source.read(
                    index,
                    frames=spec.frames,
                    size=(spec.height, spec.width),
                    sampling=self._augment.sampling,
                    seed=hash((self.seed, epoch, index)),
                    crop=_centre(spec.height, spec.width),
                )
                clips[place] = normalize(frames, mean=self._mean, std=self._std)[0]
            except VideoError as error:
                self.source.skip(index, error)
                weights[place] = 0
        labels = torch.tensor([self._labels[index] for index in cell])
        return Batch(clips.to(self._device), labels.to(self._device), cell, spec, weights.to(self._device))


def _centre(height: int, width: int) -> Crop:
    def crop(rows: int, columns: int) -> Box:
        kept = min(rows, columns * height // width), min(columns, rows * width // height)
        return Box((rows - kept[0]) // 2, (columns - kept[1]) // 2, *kept)

    return crop
