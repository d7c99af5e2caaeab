"""The two models that come with the package: measured over frames x sizes, told in a table and a sentence."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flexvideo.checkpoints import load
from flexvideo.data.held import HeldSource
from flexvideo.data.motion import MotionSet
from flexvideo.data.source import RenderedSource
from flexvideo.demo.recipe import ARMS, MODEL, POLICY
from flexvideo.evaluate import Cell, NativeSize, Result, accuracy, cells, estimate, extract
from flexvideo.evaluate.bootstrap import Estimate
from flexvideo.swap import make_flexible

FILES = {name: Path(__file__).with_name(f"{name}.safetensors") for name in ARMS}
FRAMES, SIZES = (4, 8, 16, 32), (24, 48, 64, 96)
OWN = Cell(MODEL["num_frames"], MODEL["img_size"])
RESIZED_TABLES, RESIZED_CLIP, FLEXIBLE = "vanilla, tables resized", "vanilla, clip resized", "static tokens"
_CLIPS = 5  # of each class
_TOKENS = 8192  # in a forward pass; more of them leave the caches of a CPU


def measure_pair(
    files: Mapping[str, Path],
    *,
    frames: Sequence[int] = FRAMES,
    sizes: Sequence[int] = SIZES,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> list[Result]:
    """Measure a pair on test clips of the procedural set: vanilla in both of its ways, then static tokens.

    Args:
        files: `FILES`, or what `train_pair` gives.
        frames: frame counts, vanilla's own among them.
        sizes: frame sides in pixels, likewise.
        progress: called with the number of clips done, and their total, drawing included.
    """
    models = _models(files)
    clips = RenderedSource(MotionSet("test", per_class=_CLIPS), split="test")

    def part(number: int) -> Callable[[int, int], object]:
        return lambda done, total: progress(number * total + done, (1 + len(models)) * total)

    source = HeldSource(clips, frames=max(frames), size=max(sizes), progress=part(0))
    results = []
    for number, (name, model) in enumerate(models.items(), 1):
        scores = extract(
            model, source, grid=cells(frames, sizes), output="scores", tokens=_TOKENS, progress=part(number)
        )
        results.append(accuracy(scores, name=name))
    return results


def _models(files: Mapping[str, Path]) -> dict[str, nn.Module]:
    """Both models, as they meet clips of other sizes."""
    resized, native, flexible = (
        load(files[name], dtype=torch.float32) for name in ("vanilla", "vanilla", "static-tokens")
    )
    return {
        RESIZED_TABLES: make_flexible(resized, policy="static-patch", rule="paper"),
        RESIZED_CLIP: NativeSize(native),
        FLEXIBLE: flexible,
    }


def accuracy_lines(results: Sequence[Result]) -> Iterator[str]:
    """Top-1 of a pair as a table: a block a model, a line a frame count, a column a frame size.

    Args:
        results: of `measure_pair`.
    """
    clips, classes = len(results[0].labels), results[0].queries.classes
    chance = f"chance: {100 / classes:.1f}"
    yield f"top-1 in %, {clips} drawn clips of {classes} actions that neither has seen ({chance})"
    counts, sizes = (sorted({getattr(c.cell, n) for c in results[0].cells}) for n in ("frames", "size"))
    yield f"{'model':<24} {'T x R':>6}" + "".join(f"{size:>7} " for size in sizes).rstrip()
    for result in results:
        values = {found.cell: f"{100 * found.metrics['top1'].value:.1f}" for found in result.cells}
        for frames in counts:
            row = (f"{values[cell]:>7}{'*' if cell == OWN else ' '}" for cell in cells((frames,), sizes))
            name = result.name if frames == counts[0] else ""
            yield f"{name:<24} {frames:>6}{''.join(row)}".rstrip()
    frames, sides = (", ".join(map(str, each)) for each in (POLICY.frames, POLICY.sizes))
    yield f"*  all that vanilla was trained at; static tokens: T {frames}, R {sides}"


def finding(results: Sequence[Result]) -> str:
    """Say in a sentence how static tokens does beside vanilla, with intervals over clips.

    Args:
        results: of `measure_pair`.
    """
    hits = {result.name: _hits(result) for result in results}
    own = [found.cell == OWN for found in results[0].cells].index(True)
    others = [n for n in range(len(results[0].cells)) if n != own]
    at_own, tables, clip = (
        estimate((hits[FLEXIBLE] - hits[vanilla])[rows].mean(0))
        for vanilla, rows in ((RESIZED_CLIP, [own]), (RESIZED_TABLES, others), (RESIZED_CLIP, others))
    )
    return (
        f"At vanilla's own {OWN.frames} x {OWN.size} px, static tokens is {_told(at_own, 'vanilla')}; over "
        f"the other {len(others)} sizes it is on average {_told(tables, 'vanilla with its tables resized')}, "
        f"and {_told(clip, 'vanilla with the clip resized')} (in brackets 95 % intervals)."
    )


def _hits(result: Result) -> Float[Tensor, "cells n"]:
    return torch.tensor([[hit == "1" for hit in found.hits] for found in result.cells]).double()


def _told(difference: Estimate, what: str) -> str:
    """A difference in words.

    Example:
        >>> _told(Estimate(-0.021, -0.05, 0.01), "vanilla")
        '2.1 points below vanilla [-5.0, +1.0]'
    """
    side = "above" if difference.value >= 0 else "below"
    interval = f"[{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    return f"{100 * abs(difference.value):.1f} points {side} {what} {interval}"
