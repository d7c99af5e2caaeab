"""Which clips every training step takes, at which sizes: plain numbers, known before anything is read.

A step is cut into equal cells, one for each micro-batch of each rank. Cells do not depend on how many of
them are ranks: 4 ranks, and 1 rank that accumulates 4 micro-batches, take the same clips in the same cells.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice
from random import Random
from typing import NamedTuple, TypeVar

from flexvideo.errors import ConfigError, GeometryError
from flexvideo.geometry import Base, ClipSpec
from flexvideo.policy import Policy

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class StepPlan:
    """One optimiser step.

    Args:
        spec: sizes of its clips.
        cells: numbers of its clips; micro-batch m of rank r of R takes cell m * R + r.
        start: how many clips the epoch has taken before.
    """

    spec: ClipSpec
    cells: tuple[tuple[int, ...], ...]
    start: int

    @property
    def clips(self) -> int:
        """Clips of the step, over all ranks and micro-batches."""
        return sum(map(len, self.cells))


def clip_tokens(policy: Policy, base: Base, spec: ClipSpec) -> int:
    """Count the tokens of one clip of a spec, the class token not counted.

    Args:
        policy: of the model.
        base: sizes that the model was built for.
        spec: of the clip.

    Example:
        >>> from flexvideo.policy import StaticTokens
        >>> base = Base(frames=16, height=224, width=224, patch=(16, 16))
        >>> clip_tokens(StaticTokens(), base, ClipSpec(8, 96, 96, (7, 7)))
        1568
    """
    return policy.geometry(base, spec.frames, spec.height, spec.width, spec.patch).tokens


def epoch_order(
    labels: Sequence[int], *, seed: int, epoch: int, turn: int = 0, balanced: bool = False
) -> list[int]:
    """Put the clips of an epoch into random order: each once, or each class equally often.

    Args:
        labels: of every clip.
        seed: any whole number.
        epoch: any whole number.
        turn: which pass over the clips within the epoch.
        balanced: as many clips as there are, of which each class has the same share, within one clip: of a
            small class clips come again, and of a large one some wait for another epoch.

    Example:
        >>> sorted(epoch_order([0, 0, 0, 1], seed=0, epoch=0))
        [0, 1, 2, 3]
        >>> order = epoch_order([0, 0, 0, 1], seed=0, epoch=0, balanced=True)
        >>> order.count(3)
        2
    """
    draw = Random(f"flexvideo order {seed} {epoch} {turn}")
    if not balanced:
        return _shuffled(range(len(labels)), draw)
    members: dict[int, list[int]] = {}
    for number, label in enumerate(labels):
        members.setdefault(label, []).append(number)
    # Class after class in random order; `cycle` begins a class again when it is through.
    queues = [cycle(_shuffled(members[label], draw)) for label in _shuffled(sorted(members), draw)]
    dealt = chain.from_iterable(zip(*queues, strict=True))
    return _shuffled(list(islice(dealt, len(labels))), draw)


class StepSampler:
    """The plans of all steps of a training: a pure function of (seed, epoch, step).

    Every step draws its sizes from the policy, and holds as many clips of that size as the token budget and
    `clips` allow, rounded down to whole cells. The steps of an epoch walk over one random order of the clips:
    each clip is seen once. The last step takes what is left; clips that do not fill its cells evenly, fewer
    than there are cells, are left out.

    Args:
        labels: of every clip.
        policy: what training draws from.
        base: sizes that the model was built for.
        tokens: budget of a step, over all ranks and micro-batches.
        clips: the most clips of a step, over all of them; None is as many as the budget holds. Where a small
            clip has a hundredth of the tokens of a large one, a budget for large ones makes an epoch of few
            steps.
        cells: ranks times micro-batches.
        seed: any whole number.
        steps: steps of an epoch, which then walks over the clips as often as it takes; None is one pass, of
            as many steps as it takes: epochs differ by a few, for they draw other sizes.
        balanced: see `epoch_order`.
        repeats: how often each clip is there, side by side in its cell; the budget counts every one.

    Raises:
        ConfigError: fewer clips, or fewer clips of a step, than cells.
        GeometryError: a spec of which the budget does not hold a clip for every cell.

    Example:
        >>> from flexvideo.policy import Temporal
        >>> base = Base(frames=16, height=224, width=224, patch=(16, 16))
        >>> sampler = StepSampler([0] * 10, policy=Temporal(frames=(8,)), base=base, tokens=1568 * 4, cells=2)
        >>> [sampler.plan(0, step).clips for step in range(sampler.steps_in(0))]
        [4, 4, 2]
    """

    def __init__(
        self,
        labels: Sequence[int],
        *,
        policy: Policy,
        base: Base,
        tokens: int,
        clips: int | None = None,
        cells: int = 1,
        seed: int = 0,
        steps: int | None = None,
        balanced: bool = False,
        repeats: int = 1,
    ):
        if len(labels) < cells:
            raise ConfigError(
                f"{len(labels)} clips cannot be shared by {cells} micro-batches (ranks times accumulation); "
                "use fewer of these."
            )
        if clips is not None and clips < cells * repeats:
            raise ConfigError(
                f"At most {clips} clips a step cannot be shared by {cells} micro-batches (ranks times "
                f"accumulation) of {repeats} or more; allow {cells * repeats}, or use fewer of these."
            )
        most = None if clips is None else clips // repeats
        self._labels, self._policy, self._base = tuple(labels), policy, base
        self._cells, self._seed, self._steps = cells, seed, steps
        self._balanced, self._repeats = balanced, repeats
        self._sizes = {
            spec: _step_clips(policy, base, spec, tokens=tokens, most=most, cells=cells, repeats=repeats)
            for spec in policy.specs(base)
        }
        self._schedules: dict[int, _Schedule] = {}
        self._order: tuple[tuple[int, int], list[int]] = ((-1, -1), [])

    def steps_in(self, epoch: int) -> int:
        """Count the steps of an epoch."""
        return len(self._schedule(epoch).specs)

    def plan(self, epoch: int, step: int) -> StepPlan:
        """Give the plan of a step.

        Args:
            epoch: from 0.
            step: of the epoch, from 0.

        Raises:
            IndexError: the epoch has no such step.
        """
        schedule = self._schedule(epoch)
        start, end = schedule.ends[step - 1] if step else 0, schedule.ends[step]
        clips = [self._clip(epoch, place) for place in range(start, end) for _ in range(self._repeats)]
        size = len(clips) // self._cells
        cells = tuple(tuple(clips[i * size : (i + 1) * size]) for i in range(self._cells))
        return StepPlan(schedule.specs[step], cells, start * self._repeats)

    def count_clips(self, epochs: int) -> Counter[ClipSpec]:
        """Count the clips of each spec over the epochs from 0 on."""
        counted = Counter(dict.fromkeys(self._sizes, 0))
        for epoch in range(epochs):
            schedule = self._schedule(epoch)
            for spec, begin, end in zip(schedule.specs, (0, *schedule.ends), schedule.ends, strict=False):
                counted[spec] += (end - begin) * self._repeats
        return counted

    def _schedule(self, epoch: int) -> "_Schedule":
        if epoch not in self._schedules:
            self._schedules[epoch] = self._drawn(epoch)
        return self._schedules[epoch]

    def _drawn(self, epoch: int) -> "_Schedule":
        """Draw specs until the clips, or the steps that were asked for, are used up."""
        room = len(self._labels) // self._cells * self._cells
        specs, ends, end = [], [], 0
        while len(specs) < self._steps if self._steps is not None else end < room:
            spec = self._policy.sample(self._base, seed=self._seed, epoch=epoch, step=len(specs))
            end += self._sizes[spec] if self._steps is not None else min(self._sizes[spec], room - end)
            specs.append(spec)
            ends.append(end)
        return _Schedule(specs, ends)

    def _clip(self, epoch: int, place: int) -> int:
        turn, place = divmod(place, len(self._labels))
        if self._order[0] != (epoch, turn):
            order = epoch_order(
                self._labels, seed=self._seed, epoch=epoch, turn=turn, balanced=self._balanced
            )
            self._order = ((epoch, turn), order)
        return self._order[1][place]


class _Schedule(NamedTuple):
    """The spec of every step of an epoch, and how many clips have been taken after it."""

    specs: list[ClipSpec]
    ends: list[int]


def _step_clips(
    policy: Policy,
    base: Base,
    spec: ClipSpec,
    *,
    tokens: int,
    most: int | None,
    cells: int,
    repeats: int,
) -> int:
    """Clips of a step, repeats not counted: what the budget holds and `most` allows, shared evenly."""
    each = clip_tokens(policy, base, spec) * repeats
    if tokens < each * cells:
        times = f", {repeats} times," if repeats > 1 else ""
        raise GeometryError(
            f"A budget of {tokens:,} tokens a step does not hold one clip of {spec.frames} x {spec.height} x "
            f"{spec.width} ({each // repeats:,} tokens){times} for each of {cells} micro-batches (ranks "
            f"times accumulation): it takes {each * cells:,}. Raise the budget, or use smaller clips or "
            "fewer micro-batches."
        )
    held = tokens // each
    return (held if most is None else min(held, most)) // cells * cells


def _shuffled(items: Sequence[_Item], draw: Random) -> list[_Item]:
    # By sorting, as Python promises the same numbers in every version, and not the same shuffle.
    keys = [draw.random() for _ in items]
    return [items[place] for place in sorted(range(len(items)), key=keys.__getitem__)]
