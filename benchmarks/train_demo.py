"""Make the two small models that `flexvideo demo` shows, by the recipe that came with the package.

What was stopped goes on with the same command. The two files then belong into flexvideo/demo:

    python benchmarks/train_demo.py --out /tmp/demo && cp /tmp/demo/*.safetensors flexvideo/demo
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from flexvideo.demo.pair import accuracy_lines, finding, measure_pair
from flexvideo.demo.recipe import SHIPPED, draw_clips, train_pair
from flexvideo.train.log import Report

SIZES = (24, 32, 48, 64, 80, 96, 128)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    files = train_pair(draw_clips("train", SHIPPED.clips), SHIPPED, out=options.out, watch=_watch)
    assert files is not None  # nothing stops it
    results = measure_pair(files, sizes=SIZES)
    print(*accuracy_lines(results), finding(results), sep="\n")
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
    parser.add_argument("--out", type=Path, required=True, help="folder of everything that is made")
    parser.add_argument("--threads", type=int, default=2)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
