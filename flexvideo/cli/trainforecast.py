"""What a training will do and need, said before it is waited for."""

import os

from torch import nn

from flexvideo.cli.shared import Options
from flexvideo.cli.trainoptions import frames_and_size
from flexvideo.cli.trainreport import say
from flexvideo.data.loader import FlexLoader
from flexvideo.data.records import plural
from flexvideo.data.source import ClipSource
from flexvideo.errors import MemoryLimitError
from flexvideo.geometry import Base
from flexvideo.policy import Policy
from flexvideo.train import TrainConfig
from flexvideo.train.distributed import rank_and_world
from flexvideo.train.footprint import step_memory
from flexvideo.train.setup import drawing, sampling_of

_MANY_TIMES = 8  # a step over so few clips is of their augmented copies
_GIB = 2**30


def say_what_comes(
    options: Options, model: nn.Module, policy: Policy | None, source: ClipSource, config: TrainConfig
) -> None:
    """Say what is drawn and what steps hold, and refuse steps that cannot fit into the machine's memory.

    Args:
        options: of the command.
        model: that trains, on its device.
        policy: what the sizes are drawn from; None for a plain model.
        source: of the clips.
        config: the recipe.

    Raises:
        MemoryLimitError: a step on the CPU takes more memory than there is.
    """
    base, drawn = sampling_of(model, policy)
    say(f"{source.name}: {len(source)} clips, {len(source.classes)} classes; drawn by {drawn}")
    loader = FlexLoader(source, policy=drawn, base=base, world=rank_and_world()[1], **drawing(config))
    steps, clips = loader.steps_in(0), loader.summary(1).total()
    say(f"first epoch: {plural(steps, 'step')} of {clips / steps:,.0f} clips on average")
    times = clips / steps / (len(source) * config.augment.repeats)
    if times >= _MANY_TIMES:
        say(f"note: a step takes every clip {times:,.0f} times; --clips or --tokens makes steps smaller")
    if options.hold is not None:
        _compare_held(options.hold, drawn, base)
    if next(model.parameters()).device.type == "cpu":
        world = rank_and_world()[1]
        tokens, needed = step_memory(model, drawn, base, config=config, clips=len(source), world=world)
        _require_memory(tokens, needed, config)


def _compare_held(hold: str, drawn: Policy, base: Base) -> None:
    frames, size = frames_and_size(hold, "--hold")
    specs = drawn.specs(base)
    most, largest = max(spec.frames for spec in specs), max(max(spec.height, spec.width) for spec in specs)
    if most > frames or largest > size:
        say(
            f"note: up to {most} frames of {largest} px are drawn, and --hold keeps {frames} of {size} px: "
            "frames are repeated or enlarged where it keeps too little"
        )


def _require_memory(tokens: int, needed: int, config: TrainConfig) -> None:
    """Without this the kernel ends a run that outgrows the memory, and says nothing."""
    if not hasattr(os, "sysconf"):  # on Windows
        return
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 2 * needed < there:
        return
    takes = (
        f"a step of up to {tokens:,} tokens takes {needed / _GIB:,.1f} GiB of memory or more, and there are "
        f"{there / _GIB:,.1f} here"
    )
    parts = config.accumulate * -(-2 * needed // there)
    if needed < there:
        say(f"note: {takes}: --accumulate {parts} takes it in parts, --tokens makes it smaller")
        return
    raise MemoryLimitError(
        f"On the CPU {takes}: take it in parts by --accumulate {parts}, make it smaller by --tokens or "
        "--frames and --sizes, or train on a GPU."
    )
