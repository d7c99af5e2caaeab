"""The command to try first: `demo`."""

import argparse
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
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
from flexvideo.cli.trainreport import StepBar, say
from flexvideo.data.clips import read_clip
from flexvideo.data.decode import index_video
from flexvideo.data.encode import write_video
from flexvideo.data.motion import MotionSet
from flexvideo.data.records import plural
from flexvideo.demo.grid import Cell, Point, points, run_grid, table_lines
from flexvideo.demo.pair import FILES, accuracy_lines, finding, measure_pair
from flexvideo.demo.recipe import QUICK, draw_clips, train_pair
from flexvideo.discover import plan_for
from flexvideo.errors import ConfigError
from flexvideo.evaluate import save_result
from flexvideo.evaluate.figures import plot_heat_maps
from flexvideo.models import VideoMamba, videomamba_tiny
from flexvideo.output import require_folder
from flexvideo.plots import plot_grid, require_matplotlib
from flexvideo.policy import POLICIES
from flexvideo.swap import make_flexible
from flexvideo.train.interrupt import stopped_by_signals
from flexvideo.train.log import Report

DEMO = """\
Show one set of weights at many sizes: what a forward pass of every geometry
costs, under every policy, on a video that is rendered or yours; and how well two
small models that come with the package do over frame counts and frame sizes, one
trained at a single size and one flexibly (static tokens). No network is needed.

With --checkpoint the costs are those of your model, with how close its features
stay to the one at its own size. --train trains the two small models anew, a few
minutes long and so not as well as those of the package, and shows them."""

TINY = "VideoMamba-tiny, random weights"


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
        default=[4, 16],
        metavar="T",
        help="frame counts (default: 4 16)",
    )
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[96, 384],
        metavar="R",
        help="frame sides in pixels (default: 96 384)",
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
        "--train", action="store_true", help="train the two small models first; goes on where it was stopped"
    )
    parser.add_argument(
        "--out",
        type=name,
        default="flexvideo-demo",
        metavar="DIR",
        help="where results go (default: %(default)s)",
    )


def _demo(options: Options) -> int | None:
    require_matplotlib()
    if options.train and options.checkpoint:
        raise ConfigError(
            "--train is about the demo's own two models, and --checkpoint about yours: give one."
        )
    out = require_folder(options.out)
    if options.video:
        index_video(options.video)
    model = _model(options)
    grid = points(model, policies=options.policies, frames=options.frames, sizes=options.sizes)
    files: Mapping[str, Path] | None = FILES
    if options.train:  # before anything is shown, which would be shown again by the command that goes on
        files = _train(out / "trained")
        if files is None:
            say("stopped and saved: the same command goes on from there")
            return 130
    _show_costs(options, model, grid, out)
    if not options.checkpoint:
        _show_accuracy(files, out / "trained" if options.train else out)
    return None


def _show_costs(options: Options, model: VideoMamba, grid: Sequence[Point], out: Path) -> None:
    """Run one model at every geometry: a table, and a picture where the weights are worth one."""
    video = options.video or _render(out / "video.mp4")

    def read(frames: int, size: int) -> Float[Tensor, "1 3 t h w"]:
        return read_clip(video, frames=frames, size=size, mean=model.mean, std=model.std)

    counted = _counted(run_grid(model, read, grid), len(grid))
    cells = _show(counted, cosines=options.checkpoint is not None)
    print(_legend(model, options.checkpoint, video))
    (out / "grid.json").write_text(json.dumps([cell.to_json() for cell in cells], indent=1) + "\n")
    if options.checkpoint:
        title = f"One set of weights at every geometry: {Path(options.checkpoint).name}"
        plot_grid(cells, out / "grid.png", title=title)
        print(f"picture: {out / 'grid.png'}, numbers: {out / 'grid.json'}")


def _show_accuracy(files: Mapping[str, Path], out: Path) -> None:
    """Measure the two small models: a table, a sentence and a picture."""
    with progress("clips") as bar:
        results = measure_pair(files, progress=bar)
    print(*accuracy_lines(results), sep="\n")
    print(f"\n{textwrap.fill(finding(results), 79)}\n")
    for result in results:
        save_result(result, out)
    print(f"picture: {plot_heat_maps(results, out / 'accuracy.png')}")
    print(f"numbers: {out / 'accuracy-*.json'}")


def _train(out: Path) -> dict[str, Path] | None:
    say("drawing clips to learn from; they are not kept, and drawn again when the command goes on")
    with progress("clips drawn") as bar:
        clips = draw_clips("train", QUICK.clips, progress=bar)
    with stopped_by_signals() as stop:
        return train_pair(clips, QUICK, out=out, watch=_watch, stop=stop)


def _watch(part: str) -> Report:
    say(part)
    return StepBar()


def _show(cells: Iterator[Cell], *, cosines: bool) -> list[Cell]:
    """Print every row of the table as soon as it is known."""
    rows, shown = tee(cells)
    for line in table_lines(rows, cosines=cosines):
        with tqdm.external_write_mode():
            print(line, flush=True)
    return list(shown)


def _counted(cells: Iterator[Cell], total: int) -> Iterator[Cell]:
    with progress("geometries", total) as bar:
        for number, cell in enumerate(cells, 1):
            yield cell
            bar(number, total)


def _legend(model: VideoMamba, checkpoint: str | None, video: str | Path) -> str:
    threads, base = plural(torch.get_num_threads(), "CPU thread"), plan_for(model).base
    lines = [
        f"{checkpoint or TINY}, on the centre of {video}",
        "sees    side in pixels that the patches cover, after the model's own resize",
        f"ms      one forward pass on {threads}; reading the clip not counted",
    ]
    if checkpoint:
        lines.append(
            f"cosine  of the feature to that at its own size, {base.frames} frames of {base.height} px"
        )
    return "\n".join(["", *lines, ""])


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
