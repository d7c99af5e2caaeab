"""What a training says while it runs, on standard error and from one process."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from flexvideo.data.records import plural
from flexvideo.train import TrainResult
from flexvideo.train.distributed import rank_and_world

_QUIET = 30.0  # seconds between lines where there is no bar


class StepBar:
    """A bar of steps on a terminal, a line now and then elsewhere, and one for every evaluation."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._said = float("-inf")
        self._begun = 0.0, 0  # when the first record came, and its step

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Show a record of the log."""
        figures = {key: value for key, value in record.items() if key.startswith("top1")}
        if figures:
            found = ", ".join(f"{key[5:]} px {100 * value:.1f} %" for key, value in figures.items())
            tqdm.write(f"epoch {record['epoch'] + 1}: top-1 at {found}", file=sys.stderr)
            return
        if self._bar is None:
            self._bar = tqdm(
                total=record["steps"], unit=" steps", file=sys.stderr, disable=None, initial=record["step"]
            )
            self._begun = time.monotonic(), record["step"]
        self._bar.set_postfix_str(f"loss {record['loss']:.3f}", refresh=False)
        self._bar.update(record["step"] - self._bar.n)
        ended = record["step"] == record["steps"]
        if self._bar.disable and (ended or time.monotonic() - self._said > _QUIET):
            self._said = time.monotonic()
            say(f"step {record['step']} of {record['steps']}: loss {record['loss']:.3f}{self._left(record)}")
        if ended:
            self._bar.close()

    def _left(self, record: Mapping[str, Any]) -> str:
        begun, first = self._begun
        taken = max(1, record["step"] - first)
        minutes = (time.monotonic() - begun) / taken * (record["steps"] - record["step"]) / 60
        return f", about {minutes:.0f} min left" if minutes >= 1 else ""


def summarise(result: TrainResult) -> None:
    """Say what came of a training."""
    if not result.finished:
        say(f"stopped and saved at step {result.steps}: the same command with --resume goes on from there")
        return
    steps = plural(result.steps, "step")
    say(f"{steps}, loss {result.loss:.3f}, {result.seconds:.0f} s; clips seen at each size:")
    for spec, clips in sorted(result.clips.items(), key=str):
        size, patch = f"{spec.frames} x {spec.height} x {spec.width}", f"{spec.patch[0]} x {spec.patch[1]}"
        say(f"  {size} px, patch {patch}: {clips}")
    say(f"model, log and checkpoints: {result.folder}")


def say(text: str) -> None:
    """Print a line, once for all processes."""
    if rank_and_world()[0] == 0:
        print(text, file=sys.stderr)
