"""How fast the kernels and whole models are on a GPU, beside the official path and a transformer.

    python benchmarks/speed.py              # everything, several minutes on an H100
    python benchmarks/speed.py --quick      # what the targets need, a minute or two
    python benchmarks/speed.py --profile    # which kernels a forward pass and a training step consist of
    python benchmarks/speed.py --table benchmarks/results/*_speed.json --picture speed.png

Every figure is in the results file as soon as it is measured. What fails, runs out of memory or hangs is
named in its cell, and the rest goes on in a new process. Models run in bfloat16 autocast; a clip is
frames x pixels x batch. The columns:

official        the official model's flips, two scans and addition, on mamba-ssm's and causal-conv1d's kernels
padded          the same, on tokens padded to a multiple of 2048, which those kernels work off anyway
ours NAME       VideoMamba with a scan backend of flexvideo, eager
ours compiled   the first of them, its blocks compiled by torch.compile
ours graphed    the first of them, by `fv.graphed`
vit             a transformer of the same size (18 x 576, 9 heads, MLP 4), PyTorch's fused attention, eager
vit compiled    its blocks compiled
vit graphed     as a CUDA graph
floor           the least time for the bytes, products, exponentials and instructions (_speed_floor.py)
"""

import argparse
import os
import selectors
import subprocess
import sys
import time
from pathlib import Path

from _speed_table import load_rows, print_report

RESULTS = Path(__file__).resolve().parent / "results"
HANG = 150.0  # seconds without a figure, compilation included
NO_DEVICE = 2  # exit status
FAULTS = 3  # after so many processes in a row that brought no figure, something else is wrong


def main(arguments: list[str] | None = None) -> int:
    """Measure, or only draw; returns the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    options = parse(given)
    if options.table:
        return report(options)
    if options.worker is not None:
        return worker(options)
    start = time.time()
    status = supervise(given, options)
    files = [path for path in options.results.glob("*_speed*.json") if path.stat().st_mtime >= start]
    if files and not options.profile:
        options.table = files
        report(options)
    return status


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--quick", dest="kind", action="store_const", const="quick", default="full")
    kind.add_argument("--toy", dest="kind", action="store_const", const="toy", help="every column on a CPU")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="WORD",
        help="cases of whose line ('middle 16x224x1 forward ours') one of these is a part",
    )
    parser.add_argument(
        "--budget", type=float, default=float("inf"), metavar="SECONDS", help="begin nothing after"
    )
    parser.add_argument("--resume", action="store_true", help="keep the file's figures of the same commit")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--profile", action="store_true", help="kernels by time instead of the table")
    parser.add_argument("--table", nargs="+", type=Path, metavar="FILE", help="measure nothing, print these")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw time against tokens")
    parser.add_argument("--worker", type=float, metavar="SECONDS", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def report(options: argparse.Namespace) -> int:
    """Table, targets and, if asked for, the picture, from results files alone."""
    rows = load_rows(options.table)
    print_report(rows)
    if options.picture:
        from _speed_picture import draw_tokens

        print(draw_tokens(rows, options.picture))
    return 0


def worker(options: argparse.Namespace) -> int:
    """The process that uses the GPU."""
    import torch

    if options.kind != "toy" and not torch.cuda.is_available():
        print("torch finds no CUDA device here; --toy tries every column on a CPU.", file=sys.stderr)
        return NO_DEVICE
    del sys.argv[sys.argv.index("--worker") :]  # the results file names the user's command
    if options.profile:
        from _speed_profile import profile_models

        profile_models(toy=options.kind == "toy", folder=options.results)
        return 0
    from _speed_worker import Order, work

    order = Order(options.kind, tuple(options.only), options.worker, options.resume, options.results)
    print(work(order))
    return 0


def supervise(arguments: list[str], options: argparse.Namespace) -> int:
    """Run workers until one comes to its end; each goes on after the figure at which the last one died."""
    end, faults, again = time.monotonic() + options.budget, 0, []
    while faults < FAULTS:
        left = str(max(0.0, end - time.monotonic()))
        command = [sys.executable, __file__, *arguments, "--worker", left, *again]
        figures, status = watch(command, hang=HANG)
        if status in (0, NO_DEVICE) or options.profile:
            return status
        faults, again = 0 if figures else faults + 1, ["--resume"]
        print(f"The process ended with status {status}; going on in a new one.", flush=True)
    return 1


def watch(command: list[str], *, hang: float) -> tuple[int, int]:
    """Run a command, passing its lines on; end it when it is silent for too long. Lines, and its status."""
    lines = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process, selectors.DefaultSelector() as waiting:
        assert process.stdout is not None  # it is a pipe
        waiting.register(process.stdout, selectors.EVENT_READ)
        while waiting.select(timeout=hang):
            text = os.read(process.stdout.fileno(), 1 << 16)
            if not text:
                return lines, process.wait()
            lines += text.count(b"\n")
            print(text.decode(errors="replace"), end="", flush=True)
        process.kill()
        print(f"Nothing for {hang:.0f} s: ended.", flush=True)
        return lines, process.wait()


if __name__ == "__main__":
    sys.exit(main())
