"""Kernels of a mixer by themselves: agreement, and times of scan and convolution, forward and backward.

Every candidate runs in a process of its own, since a kernel that faults takes the device's context with it;
its failure is one row of the table. A variant is a candidate with other constants of `cuda_forward.py` (or,
after `backward.` and `conv.`, of `cuda_backward.py` and `cuda_conv.py`):
`--variants STEPS=8 STEPS=8,SHORTEST=128 backward.MOST_WARPS=8 conv.ROWS=64,conv.LOADS=2`. In the forward scan
`LEAST_GAIN=1000` leaves every chain whole, `SHORTEST=1000000` does not split time, `MOST_WARPS=2` and
`LEAST_WARPS=4` have blocks of one size; in the backward scan `backward.PASSES=1000000` does not split time.
What it costs to split time depends on how long states remember: here as a VideoMamba begins (128 to 134
steps), with `--long` thousands of steps.
"""

import argparse
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from _results import write_results

from flexvideo.scan.reference import selective_scan
from flexvideo.scan.registry import load

RUNS = 30
CHECKED = (2, 2, 301, 96, 16)  # directions, batch, tokens, width, states
NAMES = ("out", "du", "ddelta", "dA", "dB", "dC", "dD", "dz", "dbias")


def inputs_of(k: int, b: int, l: int, d: int, n: int, *, long: bool = True) -> list[torch.Tensor]:
    """Random inputs laid out as in the model: B, C and z are views of wider rows.

    Some state of every few channels remembers thousands of steps, or (not `long`) none more than 134.
    """
    generator = torch.Generator("cuda").manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device="cuda")

    u, delta = draw(k, b, l, d).bfloat16(), (draw(k, b, l, d) - 1).bfloat16()
    rows, z = draw(k, b, l, 36 + 2 * n).bfloat16(), draw(b, l, 2 * d).bfloat16()[..., d:]
    B, C = rows[..., 36 : 36 + n], rows[..., 36 + n :]
    A, skip, bias = -torch.exp(draw(k, d, n)), draw(k, d), draw(k, d)
    if not long:
        A, bias = -torch.arange(1.0, n + 1, device="cuda").expand_as(A).contiguous(), torch.zeros_like(bias)
        delta = 0.3 * (delta + 1)
    return [u, delta, A, B, C, skip, z, bias]


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


def milliseconds(function: Callable[[], object]) -> dict[str, float]:
    """Medians of CUDA events: called by Python, and replayed as a CUDA graph."""
    for _ in range(3):
        function()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return {"called": _median(function), "graphed": _median(graph.replay)}


def _median(function: Callable[[], object]) -> float:
    times = []
    for _ in range(RUNS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return round(statistics.median(times), 4)


def name_of(shape: tuple[int, ...]) -> str:
    """Batch and tokens."""
    return f"{shape[1]}x{shape[2]}"


def checked(kernels, *, forward: bool) -> dict[str, float]:
    """Relative errors of output and, unless only the forward pass is wanted, gradients against float64."""
    inputs = inputs_of(*CHECKED)
    exact = [x.double().requires_grad_() for x in inputs]
    truth = selective_scan(*exact)
    grad = torch.randn_like(truth).bfloat16()
    out, saved = kernels.scan(*inputs)
    if forward:
        return {"out": error(out, truth)}
    found = (out, *kernels.scan_backward(grad, *inputs, saved))
    expected = (truth, *torch.autograd.grad(truth, exact, grad.double()))
    return {name: error(a, b) for name, a, b in zip(NAMES, found, expected, strict=True)}


def timed(
    kernels, shape: tuple[int, ...], sample: Path, *, forward: bool, long: bool
) -> Iterator[tuple[str, dict[str, float]]]:
    """Times at one shape, of the forward scan or of all; every 997th result goes to the file `sample`."""
    torch.manual_seed(0)
    inputs = inputs_of(*shape, long=long)
    out, saved = kernels.scan(*inputs)
    grad = torch.randn_like(out)
    x, (k, _, _, d, _) = inputs[6], shape
    weight, bias = torch.randn(k, d, 4, device="cuda"), torch.randn(k, d, device="cuda")
    results = [out]
    torch.save([out.flatten()[::997].float().cpu()], sample)
    yield "forward", milliseconds(lambda: kernels.scan(*inputs))
    yield "inference", milliseconds(lambda: kernels.scan(*inputs, keep=False))
    if forward:
        return
    yield "conv", milliseconds(lambda: kernels.conv(x, weight, bias))
    yield "conv backward", milliseconds(lambda: kernels.conv_backward(inputs[0], x, weight, bias))
    results += kernels.scan_backward(grad, *inputs, saved)
    torch.save([x.flatten()[::997].float().cpu() for x in results], sample)
    yield "backward", milliseconds(lambda: kernels.scan_backward(grad, *inputs, saved))


def work(candidate: str, shapes: list[tuple[int, ...]], folder: Path, *, forward: bool, long: bool) -> None:
    """One candidate, in its own process: a JSON object a line, the check first."""
    backend, _, constants = candidate.partition(":")
    kernels = load(backend).KERNELS
    for setting in filter(None, constants.split(",")):
        name, value = setting.split("=")
        side, _, constant = name.rpartition(".")
        setattr(importlib.import_module(f"flexvideo.scan.cuda_{side or 'forward'}"), constant, int(value))
    try:
        say({"errors": checked(kernels, forward=forward)})
    except Exception as failure:
        say({"failed": f"the check: {failure}"})
    for shape in shapes:
        for kind, times in timed(kernels, shape, folder / name_of(shape), forward=forward, long=long):
            say({"shape": name_of(shape), "kind": kind, **times})


def say(row: dict[str, object]) -> None:
    """One line, at once: what comes later may fail."""
    print(json.dumps(row), flush=True)


def run(candidate: str, arguments: list[str], folder: Path, limit: float) -> list[dict[str, object]]:
    """The rows of one candidate, and what ended it early."""
    folder.mkdir()
    command = [sys.executable, __file__, *arguments, "--work", candidate, "--folder", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
        output, problem, failed = done.stdout, done.stderr, done.returncode != 0
    except subprocess.TimeoutExpired as late:
        output = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        problem, failed = f"no end after {limit} s", True
    rows = [{"candidate": candidate, **json.loads(line)} for line in output.splitlines() if line[:1] == "{"]
    if failed:
        rows.append({"candidate": candidate, "failed": problem.strip()[-1500:]})
    return rows


def compare(folder: Path, first: str, candidates: list[str], shapes: list[str]) -> list[dict[str, object]]:
    """Relative differences from the first candidate at full size."""
    rows = []
    for candidate in candidates:
        for shape in shapes:
            paths = [folder / name.replace("/", "_") / shape for name in (first, candidate)]
            if candidate != first and all(path.exists() for path in paths):
                one, other = (torch.load(path) for path in paths)
                values = {name: error(b, a) for name, a, b in zip(NAMES, one, other, strict=False)}
                rows.append({"candidate": candidate, "shape": shape, f"difference from {first}": values})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--backends", nargs="+", default=["triton", "cuda"])
    parser.add_argument("--variants", nargs="*", default=[], help="constants of the cuda backend to try")
    parser.add_argument("--shapes", nargs="+", default=["16x3137", "1x3137"], help="batch x tokens")
    parser.add_argument("--width", type=int, default=1152)
    parser.add_argument("--forward", action="store_true", help="only the forward scan")
    parser.add_argument("--long", action="store_true", help="states that remember thousands of steps")
    parser.add_argument("--limit", type=float, default=150.0, help="seconds a candidate")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    shapes = [(2, *map(int, shape.split("x")), options.width, 16) for shape in options.shapes]
    if options.work:
        return work(options.work, shapes, options.folder, forward=options.forward, long=options.long)
    candidates = [*options.backends, *(f"cuda:{variant}" for variant in options.variants)]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for candidate in candidates:
            for row in run(candidate, sys.argv[1:], Path(name) / candidate.replace("/", "_"), options.limit):
                if "failed" in row:
                    print(candidate, row["failed"], flush=True)
                rows.append(row)
        rows += compare(Path(name), candidates[0], candidates, options.shapes)
    table(rows)
    path = write_results("kernels", rows)
    if "OUT" in os.environ:
        shutil.copy(path, os.environ["OUT"])


def table(rows: list[dict[str, object]]) -> None:
    """Milliseconds as Python calls it and as a graph; the largest error."""
    for row in rows:
        begin = f"{row['candidate']:32}{row.get('shape', ''):>10}  "
        if "kind" in row:
            print(f"{begin}{row['kind']:14} {row['called']:8.3f} {row['graphed']:8.3f}")
        for key in row:
            if key == "errors" or key.startswith("difference"):
                worst = max(row[key], key=row[key].get)
                print(f"{begin}{key}: {worst} {row[key][worst]:.1e}")
        if "failed" in row:
            print(f"{begin}FAILED {row['failed'].splitlines()[-1][:300]}")


if __name__ == "__main__":
    main()
