"""The two small models that `flexvideo demo` shows: made by the recipe that came with them, and measured.

What was stopped goes on with the same command. The two files then belong into flexvideo/demo:

    python benchmarks/train_demo.py --out /tmp/demo && cp /tmp/demo/*.safetensors flexvideo/demo
    python benchmarks/train_demo.py                            # measures those of the package
    python benchmarks/train_demo.py --quick --out /tmp/quick   # makes and measures those of `demo --train`
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from _results import write_results

from flexvideo.demo.pair import FILES, accuracy_lines, finding, measure_pair
from flexvideo.demo.recipe import QUICK, SHIPPED, draw_clips, train_pair
from flexvideo.train.log import Report


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.quick and options.out is None:
        parser.error("--quick makes models: it takes --out")
    torch.set_num_threads(options.threads)
    files: Mapping[str, Path] | None = FILES
    if options.out is not None:
        recipe = QUICK if options.quick else SHIPPED
        files = train_pair(draw_clips("train", recipe.clips), recipe, out=options.out, watch=_watch)
        assert files is not None  # nothing stops it
    seconds = time.process_time()
    results = measure_pair(files)
    print(*accuracy_lines(results), finding(results), sep="\n")
    rows: list[dict[str, object]] = [
        {
            "model": result.name,
            "cell": str(found.cell),
            "clips": len(result.labels),
            "top1": round(100 * found.metrics["top1"].value, 1),
        }
        for result in results
        for found in result.cells
    ]
    summary: dict[str, object] = {"finding": finding(results)}
    if options.out is not None:
        summary["training_cpu_seconds"] = round(seconds)
    write_results("demo_quick" if options.quick else "demo", [summary, *rows])
    return 0


def _watch(part: str) -> Report:
    print(part, flush=True)
    return _say


def _say(record: Mapping[str, Any]) -> None:
    shown = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items())
    print(f"{time.process_time():7.0f} s of CPU ", *shown, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder of everything that is made; without it nothing is")
    parser.add_argument("--quick", action="store_true", help="by the recipe of `flexvideo demo --train`")
    parser.add_argument("--threads", type=int, default=2)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
