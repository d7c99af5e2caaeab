"""What flexing costs: a flexible forward and training step against the same geometry, baked.

    python benchmarks/overhead.py [--device cuda] [--models tiny middle] [--batches 1 8]

The two are timed in turns, each first in half of them, so that a slow moment slows both; the figure is the
median of the ratios, beside its standard error: on a shared machine that can be larger than the figure. So
the same difference is taken of models of one block too, which spend their time elsewhere as little as can be,
since what flexing adds comes before the blocks: in milliseconds, and as a share of the whole model's time.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from _results import write_results
from torch import nn

import flexvideo as fv

BUILDERS = {"tiny": fv.videomamba_tiny, "small": fv.videomamba_small, "middle": fv.videomamba_middle}


def seconds(run: Callable[[], object], device: str) -> float:
    """Wall time of one call, the device idle before and after."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def timed(runs: tuple[Callable[[], object], ...], device: str, *, swapped: bool) -> tuple[float, float]:
    """Wall time of the flexible and of the baked model, the one run right after the other."""
    order = (1, 0) if swapped else (0, 1)
    taken = {number: seconds(runs[number], device) for number in order}
    return taken[0], taken[1]


def forward(model: nn.Module, clip: torch.Tensor) -> Callable[[], object]:
    model.eval()

    def run() -> None:
        with torch.inference_mode():
            model(clip)

    return run


def train_step(model: nn.Module, clip: torch.Tensor) -> Callable[[], object]:
    model.train()

    def run() -> None:
        model.zero_grad(set_to_none=True)
        model(clip).square().mean().backward()

    return run


def pairs_of(
    step: Callable[[nn.Module, torch.Tensor], Callable[[], object]],
    models: tuple[nn.Module, nn.Module],
    clip: torch.Tensor,
    repeats: int,
) -> list[tuple[float, float]]:
    """Seconds of the flexible and of the baked model, so many times."""
    first, second = (step(model, clip) for model in models)
    for run in (first, second) * 2:
        run()
    return [timed((first, second), clip.device.type, swapped=bool(number % 2)) for number in range(repeats)]


def compare(
    name: str, batch: int, *, device: str, frames: int, size: int, repeats: int
) -> list[dict[str, object]]:
    """Time eval and training of the flexible model against its baked twin."""
    flexible = fv.make_flexible(BUILDERS[name](num_classes=400, num_frames=16, drop_path_rate=0.0).to(device))
    models = flexible, fv.bake(flexible, frames=frames, size=size)
    shallow = copy.deepcopy(models)
    for model in shallow:
        del model.layers[1:]
    clip = torch.rand(batch, 3, frames, size, size, device=device)
    rows: list[dict[str, object]] = []
    for mode, step in (("eval", forward), ("train", train_step)):
        pairs = pairs_of(step, models, clip, repeats)
        ratios = [a / b for a, b in pairs]
        overhead = 100 * (statistics.median(ratios) - 1)
        error = 125.3 * statistics.stdev(ratios) / repeats**0.5
        whole, baked = (1e3 * statistics.median(times) for times in zip(*pairs, strict=True))
        extra = [1e3 * (a - b) for a, b in pairs_of(step, shallow, clip, 4 * repeats)]
        alone, its_error = statistics.median(extra), 1.253 * statistics.stdev(extra) / len(extra) ** 0.5
        rows.append(
            {
                "model": name,
                "mode": mode,
                "batch": batch,
                "frames": frames,
                "size": size,
                "flexible_ms": whole,
                "baked_ms": baked,
                "overhead_percent": overhead,
                "standard_error_percent": error,
                "of_one_block_ms": alone,
                "of_one_block_standard_error_ms": its_error,
                "of_one_block_percent": 100 * alone / baked,
            }
        )
        print(
            f"{name:>7} {mode:>6}  batch {batch:2d}, {frames} x {size}: {whole:9.1f} ms, "
            f"overhead {overhead:+.2f} % (standard error {error:.2f} %); of one block "
            f"{alone:+.2f} ms (standard error {its_error:.2f} ms), {100 * alone / baked:+.2f} %",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", nargs="+", default=["tiny"], choices=list(BUILDERS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    rows = []
    for name in options.models:
        for batch in options.batches:
            rows += compare(
                name,
                batch,
                device=options.device,
                frames=options.frames,
                size=options.size,
                repeats=options.repeats,
            )
            write_results("overhead", rows)  # all so far: what stops it takes only what is to come


if __name__ == "__main__":
    main()
