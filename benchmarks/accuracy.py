"""Does training at random sizes make a model better at every size, its own included?

VideoMamba on rendered motion, short clips and long ones of ordered steps: vanilla at one geometry against
the five policies with a quarter of its epochs, all from one start, measured by retrieval and linear probe
over frame counts and frame sizes. Every training and every result is a file; what is missing is made, most
important first, until the time is over:

    python benchmarks/accuracy.py --out results/accuracy --minutes 9
    python benchmarks/accuracy.py --out results/accuracy --table --figures
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch
from _evidence_arms import Arm, arms, finished, run_arm
from _evidence_place import Place, claim, make_start
from _evidence_scale import FULL, TOY, Kind
from _evidence_tables import draw_figures, print_tables
from torch import Tensor

_FOR_MODELS = 0.8  # of the memory of a GPU; clips and contexts have the rest


Job = tuple[Kind, Arm, int]


def main(arguments: Sequence[str] | None = None) -> int:
    parser, begun = _parser(), time.monotonic()
    options = parser.parse_args(arguments)
    if options.side_by_side < 1:
        parser.error(f"--side-by-side must be at least 1, got {options.side_by_side}")
    place = _place(options, begun)
    if options.table:
        print_tables(place.out, place.scale)
    if options.figures:
        draw_figures(place.out)
    if options.table or options.figures:
        return 0
    kinds = [place.scale.kind(name) for name in options.kinds]
    known = dict.fromkeys(arm.name for kind in kinds for arm in arms(place.scale, kind))
    for name in options.only or ():
        if name not in known:
            parser.error(f"--only: no training {name!r}; there are {', '.join(map(repr, known))}")
    if place.device == "cpu" and not options.toy:
        parser.error("no GPU is visible, without which this takes weeks: try it with --toy")
    if place.mocap is not None and not place.mocap.is_file():
        parser.error(f"--mocap: there is no file {place.mocap}")
    claim(place)
    if not make_start(place):
        place.say("the time is over; the start goes on with the next call")
        return 0
    for kind in kinds:
        for split in ("train", "test"):
            place.draw(kind, split)
    if options.prepare:
        return 0
    jobs = [
        (kind, arm, seed)
        for alike in zip(*(arms(place.scale, kind) for kind in kinds), strict=True)
        for seed in options.seeds
        for kind, arm in zip(kinds, alike, strict=True)
        if (arm.name in options.only if options.only else not arm.trial)
    ]
    jobs.sort(key=lambda job: job[1].later)
    run = _one_by_one if options.side_by_side == 1 else _side_by_side
    whole = run(options, begun, place, jobs)
    done = sum(finished(place, *job) for job in jobs)
    if done < len(jobs):
        place.say("the time is over; what is missing is made by the next call")
    place.say(f"{done} of {len(jobs)} trainings are done and measured")
    return 0 if whole else 1


def _place(options: argparse.Namespace, begun: float) -> Place:
    scale = TOY if options.toy else FULL
    return Place(
        scale=scale if options.epochs is None else replace(scale, epochs=options.epochs),
        out=options.out,
        work=options.work or options.out / "work",
        mocap=options.mocap,
        device="cuda" if torch.cuda.is_available() else "cpu",
        left=lambda: 60 * options.minutes - (time.monotonic() - begun),
        say=lambda text: print(f"{time.monotonic() - begun:6.0f} s  {text}", flush=True),
    )


def _one_by_one(options: argparse.Namespace, begun: float, place: Place, jobs: Sequence[Job]) -> bool:
    for job in jobs:
        if place.over() or not (finished(place, *job) or run_arm(place, *job)):
            break
    return True


def _side_by_side(options: argparse.Namespace, begun: float, place: Place, jobs: Sequence[Job]) -> bool:
    """So many processes, each of which takes the next training: a small one leaves most of a GPU idle.

    They share the clips that a GPU holds, those of files anyhow; whether all of them came to their end.
    """
    if place.device == "cuda":
        for kind in {job[0] for job in jobs}:
            for split in ("train", "test"):
                place.hold(kind, split)
        torch.cuda.empty_cache()
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    processes = [
        context.Process(target=_work, args=(options, begun, place.held, queue))
        for _ in range(options.side_by_side)
    ]
    for process in processes:
        process.start()
    for job in [*jobs, *[None] * options.side_by_side]:
        queue.put(job)
    for process in processes:
        process.join()
    return not any(process.exitcode for process in processes)


def _work(
    options: argparse.Namespace,
    begun: float,
    held: dict[tuple[str, str], Tensor],
    queue: "SimpleQueue[Job | None]",
) -> None:
    """What one process does; of the GPU's memory it takes its part and no more."""
    place = replace(_place(options, begun), held=held)
    if place.device == "cuda":
        torch.cuda.set_per_process_memory_fraction(_FOR_MODELS / options.side_by_side)
    for job in iter(queue.get, None):
        if not (place.over() or finished(place, *job)):
            run_arm(place, *job)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of results and of the shared start")
    parser.add_argument("--work", type=Path, help="folder of drawn clips and trainings (default: OUT/work)")
    parser.add_argument("--mocap", type=Path, help="motion capture (default: the procedural set)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which to stop")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="+", default=["short", "long"], choices=["short", "long"])
    parser.add_argument("--side-by-side", type=int, default=1, help="trainings at a time")
    parser.add_argument("--only", nargs="+", help="names of trainings, trials among them")
    parser.add_argument("--epochs", type=int, help=f"of vanilla training (default: {FULL.epochs})")
    parser.add_argument("--prepare", action="store_true", help="make the start and draw the clips, no more")
    parser.add_argument("--toy", action="store_true", help="a size for tests")
    parser.add_argument("--table", action="store_true", help="print tables of the results that are there")
    parser.add_argument("--figures", action="store_true", help="draw figures of the results that are there")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
