"""The command to try first: `demo`."""

import argparse
import json
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from flexvideo.cli.shared import (
    Commands,
    Options,
    checkpoint_arguments,
    command,
    load_model,
    progress,
    rule_argument,
)
from flexvideo.data.clips import read_clip
from flexvideo.data.encode import write_video
from flexvideo.data.motion import MotionSet
from flexvideo.demo import Cell, format_table, run_grid
from flexvideo.models import VideoMamba, videomamba_tiny
from flexvideo.plots import plot_grid, require_matplotlib
from flexvideo.policy import POLICIES
from flexvideo.swap import make_flexible

DEMO = """\
Run one set of VideoMamba weights over a grid of frame counts, frame sizes and policies: print what every
geometry costs and how close its feature stays to the one at the size the model was built for, and draw it.
Without arguments it renders its own video and uses a small model with random weights: no network needed."""


def add(commands: Commands) -> None:
    """Register the command."""
    example = "flexvideo demo --video clip.mp4 --frames 8 32"
    _arguments(command(commands, "demo", _demo, DEMO, example=example))


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--video", metavar="FILE", help="a video of yours (default: one that is rendered)")
    checkpoint_arguments(parser, required=False)
    parser.add_argument("--frames", type=int, nargs="+", default=[4, 8, 16], metavar="T", help="frame counts")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[96, 128, 224, 384], metavar="R", help="frame sides in pixels"
    )
    parser.add_argument(
        "--policies",
        nargs="+",
        choices=list(POLICIES),
        default=list(POLICIES),
        metavar="P",
        help=str(list(POLICIES)),
    )
    rule_argument(parser)
    parser.add_argument(
        "--out", default="flexvideo-demo", metavar="DIR", help="where results go (default: %(default)s)"
    )


def _demo(options: Options) -> None:
    require_matplotlib()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    video = Path(options.video) if options.video else _render(out / "video.mp4")
    model = _model(options)

    def read(frames: int, size: int) -> Float[Tensor, "1 3 t h w"]:
        return read_clip(video, frames=frames, size=size, mean=model.mean, std=model.std)

    cells: list[Cell] = []
    total = len(options.policies) * len(options.frames) * len(options.sizes)
    with progress("geometries", total) as bar:
        grid = run_grid(model, read, policies=options.policies, frames=options.frames, sizes=options.sizes)
        for cell in grid:
            cells.append(cell)
            bar(len(cells), total)
    print(format_table(cells))
    what = options.checkpoint or "a VideoMamba-tiny with random weights"
    plot_grid(cells, out / "grid.png", title=f"One set of weights at every geometry: {what}")
    (out / "grid.json").write_text(json.dumps([cell.to_json() for cell in cells], indent=1) + "\n")
    print(f"\n{what} on {video}; picture {out / 'grid.png'}, numbers {out / 'grid.json'}")


def _render(path: Path) -> Path:
    """A video of the procedural motion set, so that the demo needs no network and reads a true file."""
    clip = MotionSet("test", seed=0, actions=("wave_left",), per_class=1)
    write_video(path, clip.sample(0, frames=48, size=256), fps=16.0)
    return path


def _model(options: Options) -> VideoMamba:
    if options.checkpoint:
        return make_flexible(load_model(options))
    torch.manual_seed(0)
    return make_flexible(videomamba_tiny(num_classes=400, num_frames=8).eval(), rule=options.rule)
