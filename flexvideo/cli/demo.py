"""The command to try first: `demo`."""

import argparse
import json
from collections.abc import Iterator
from itertools import tee
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from flexvideo.cli.shared import (
    Commands,
    Options,
    checkpoint_arguments,
    command,
    load_model,
    name,
    progress,
    rule_argument,
)
from flexvideo.data.clips import read_clip
from flexvideo.data.decode import index_video
from flexvideo.data.encode import write_video
from flexvideo.data.motion import MotionSet
from flexvideo.data.records import plural
from flexvideo.demo import Cell, points, run_grid, table_lines
from flexvideo.discover import plan_for
from flexvideo.errors import ConfigError
from flexvideo.models import VideoMamba, videomamba_tiny
from flexvideo.output import require_folder
from flexvideo.plots import plot_grid, require_matplotlib
from flexvideo.policy import POLICIES
from flexvideo.swap import make_flexible

DEMO = """\
Run one set of VideoMamba weights over a grid of frame counts, frame sizes and policies: print what every
geometry costs and how close its feature stays to the one at the size the model was built for, and draw it.
Without arguments it renders its own video and uses a small model with random weights: no network needed."""

TINY = "a VideoMamba-tiny with random weights"
UNTRAINED = "Cosines of random weights say little, for these hardly tell one video from another"


def add(commands: Commands) -> None:
    """Register the command."""
    example = "flexvideo demo --video clip.mp4 --frames 8 32"
    _arguments(command(commands, "demo", _demo, DEMO, example=example))


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--video", type=name, metavar="FILE", help="a video of yours (default: one that is rendered)"
    )
    checkpoint_arguments(parser, required=False)
    parser.add_argument(
        "--frames",
        type=int,
        nargs="+",
        default=[4, 8, 16],
        metavar="T",
        help="frame counts (default: 4 8 16)",
    )
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[96, 128, 224, 384],
        metavar="R",
        help="frame sides in pixels (default: 96 128 224 384)",
    )
    parser.add_argument(
        "--policies",
        nargs="+",
        choices=list(POLICIES),
        default=list(POLICIES),
        metavar="P",
        help=f"which of {', '.join(POLICIES)} (default: all)",
    )
    rule_argument(parser)
    parser.add_argument(
        "--out",
        type=name,
        default="flexvideo-demo",
        metavar="DIR",
        help="where results go (default: %(default)s)",
    )


def _demo(options: Options) -> None:
    require_matplotlib()
    out = require_folder(options.out)
    if options.video:
        index_video(options.video)
    model = _model(options)
    grid = points(model, policies=options.policies, frames=options.frames, sizes=options.sizes)
    video = options.video or _render(out / "video.mp4")

    def read(frames: int, size: int) -> Float[Tensor, "1 3 t h w"]:
        return read_clip(video, frames=frames, size=size, mean=model.mean, std=model.std)

    cells = _show(_counted(run_grid(model, read, grid), len(grid)))
    print(_legend(model, options.checkpoint or TINY, video))
    if not options.checkpoint:
        print(f"{UNTRAINED}: try --checkpoint.\n")
    title = Path(options.checkpoint).name if options.checkpoint else f"{TINY}.\n{UNTRAINED}"
    plot_grid(cells, out / "grid.png", title=f"One set of weights at every geometry: {title}")
    (out / "grid.json").write_text(json.dumps([cell.to_json() for cell in cells], indent=1) + "\n")
    print(f"picture: {out / 'grid.png'}, numbers: {out / 'grid.json'}")


def _show(cells: Iterator[Cell]) -> list[Cell]:
    """Print every row of the table as soon as it is known."""
    rows, shown = tee(cells)
    for line in table_lines(rows):
        with tqdm.external_write_mode():
            print(line, flush=True)
    return list(shown)


def _counted(cells: Iterator[Cell], total: int) -> Iterator[Cell]:
    with progress("geometries", total) as bar:
        for number, cell in enumerate(cells, 1):
            yield cell
            bar(number, total)


def _legend(model: VideoMamba, what: str, video: str | Path) -> str:
    base = plan_for(model).base
    return f"""
{what} on the centre square of {video}
sees    side in pixels that the patches cover, after the model's own resize of the clip
ms      one forward pass on {plural(torch.get_num_threads(), "CPU thread")}; reading the clip not counted
cosine  of the feature to that at the model's own size, {base.frames} frames of {base.height} px
"""


def _render(path: Path) -> Path:
    """A video of the procedural motion set, so that the demo needs no network and reads a true file."""
    clip = MotionSet("test", seed=0, actions=("wave_left",), per_class=1)
    write_video(path, clip.sample(0, frames=48, size=256), fps=16.0)
    return path


def _model(options: Options) -> VideoMamba:
    if options.checkpoint:
        return make_flexible(load_model(options))
    if options.filename or options.revision:
        raise ConfigError("--filename and --revision say which file of --checkpoint, and none was given.")
    torch.manual_seed(0)
    return make_flexible(videomamba_tiny(num_classes=400, num_frames=8).eval(), rule=options.rule)
