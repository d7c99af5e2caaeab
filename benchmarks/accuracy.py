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
from pathlib import Path

import torch
from _evidence_arms import Place, arms, finished, make_start, run_arm
from _evidence_scale import FULL, TOY
from _evidence_tables import draw_figures, print_tables


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    scale, begun = TOY if options.toy else FULL, time.monotonic()
    scale = scale if options.epochs is None else replace(scale, epochs=options.epochs)
    place = Place(
        scale=scale,
        out=options.out,
        work=options.work or options.out / "work",
        mocap=options.mocap,
        device="cuda" if torch.cuda.is_available() else "cpu",
        left=lambda: 60 * options.minutes - (time.monotonic() - begun),
        say=lambda text: print(f"{time.monotonic() - begun:6.0f} s  {text}", flush=True),
    )
    if options.table:
        print_tables(place.out, scale)
    if options.figures:
        draw_figures(place.out)
    if options.table or options.figures:
        return 0
    place.out.mkdir(parents=True, exist_ok=True)
    if not make_start(place):
        place.say("the time is over; the start goes on with the next call")
        return 0
    kinds = [scale.kind(name) for name in options.kinds]
    for kind in kinds:
        for split in ("train", "test"):
            place.draw(kind, split)  # before several processes want it
    if options.prepare:
        return 0
    queue = [
        (kind, arm, seed)
        for later in (False, True)
        for seed in options.seeds
        for kind in kinds
        for arm in arms(scale, kind)
        if arm.later == later and (not options.only or arm.name in options.only)
    ]
    done = 0
    for kind, arm, seed in queue:
        if place.over() or not (finished(place, kind, arm, seed) or run_arm(place, kind, arm, seed)):
            place.say("the time is over; what is missing is made by the next call")
            break
        done += 1
    place.say(f"{done} of {len(queue)} trainings are done and measured")
    return 0


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
    parser.add_argument("--only", nargs="+", help="names of trainings")
    parser.add_argument("--epochs", type=int, help=f"of vanilla training (default: {FULL.epochs})")
    parser.add_argument("--prepare", action="store_true", help="make the start and draw the clips, no more")
    parser.add_argument("--toy", action="store_true", help="a size for tests")
    parser.add_argument("--table", action="store_true", help="print tables of the results that are there")
    parser.add_argument("--figures", action="store_true", help="draw figures of the results that are there")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
