"""The command line: every command is a thin call of one public function.

Mistakes end in one sentence on standard error and exit code 2.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from flexvideo import __version__
from flexvideo.checkpoints import describe, load
from flexvideo.data.check import check_videos
from flexvideo.data.clips import read_clip
from flexvideo.data.datasets import DATASETS, open_dataset
from flexvideo.data.encode import write_video
from flexvideo.data.lists import write_list
from flexvideo.data.motion import MotionSet
from flexvideo.demo import Cell, format_table, run_grid
from flexvideo.errors import ConfigError, FlexVideoError
from flexvideo.features import extract_features, require_features_file, save_features
from flexvideo.folder import convert
from flexvideo.models import VideoMamba, videomamba_tiny
from flexvideo.plots import plot_grid, require_matplotlib
from flexvideo.policy import POLICIES
from flexvideo.resample import RULES
from flexvideo.swap import make_flexible

Options = argparse.Namespace


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, or 2 after a mistake that a sentence explains."""
    options = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = _show_warning
            options.run(options)
    except (FlexVideoError, OSError) as error:
        print(f"flexvideo {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nflexvideo {options.command}: interrupted.", file=sys.stderr)
        return 130
    return 0


def _show_warning(message: Warning | str, *_: object) -> None:
    tqdm.write(f"note: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flexvideo",
        description="Run and train any video state-space model at any frame count, frame and patch size.",
        epilog="`flexvideo COMMAND --help` says more, with an example.",
    )
    parser.add_argument("--version", action="version", version=f"flexvideo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _demo_arguments(_command(commands, "demo", _demo, DEMO, "flexvideo demo --video clip.mp4 --frames 8 32"))
    info = _command(
        commands, "info", _info, INFO, "flexvideo info videomamba_m16_k400_mask_ft_f16_res224.pth"
    )
    _source_arguments(info)
    features = _command(
        commands,
        "features",
        _features,
        FEATURES,
        "flexvideo features videos/*.mp4 --checkpoint model.pth --frames 32 --size 128 --out f.safetensors",
    )
    _features_arguments(features)
    check = _command(
        commands,
        "check-videos",
        _check_videos,
        CHECK,
        "flexvideo check-videos ucf101:/data/ucf101 --split train --fold 1 --good good.csv",
    )
    _check_arguments(check)
    convert_ = _command(commands, "convert", _convert, CONVERT, "flexvideo convert official.pth my-model/")
    _source_arguments(convert_)
    convert_.add_argument("target", metavar="DST", help="a folder, or a file ending in .safetensors or .pth")
    return parser


DEMO = """\
Run one set of VideoMamba weights over a grid of frame counts, frame sizes and policies: print what every
geometry costs and how close its feature stays to the one at the size the model was built for, and draw it.
Without arguments it renders its own video and uses a small model with random weights: no network needed."""
INFO = "Say what a checkpoint is: model, sizes, classes, and what of it can flex."
FEATURES = "Write one feature vector for every video, at the frame count and size of your choice."
CHECK = "Decode the first, middle and last frame of every video of a data set: name the damaged ones."
CONVERT = "Rewrite a checkpoint: an official .pth as a folder of ours, or back."


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[Options], None],
    text: str,
    example: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=text.partition(":")[0].replace("\n", " ").rstrip("."),
        description=text,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _source_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="CHECKPOINT", help="a file, a folder, or OWNER/NAME on the Hub")
    parser.add_argument("--filename", metavar="F", help="which file of a folder or repository")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a repository")


def _flexing_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rule", choices=list(RULES), help="how to resample (default: the checkpoint's, or auto)"
    )


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--video", metavar="FILE", help="a video of yours (default: one that is rendered)")
    parser.add_argument(
        "--checkpoint", metavar="CHECKPOINT", help="a file, a folder, or OWNER/NAME on the Hub"
    )
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
    _flexing_arguments(parser)
    parser.add_argument(
        "--out", default="flexvideo-demo", metavar="DIR", help="where results go (default: %(default)s)"
    )


def _features_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="video files")
    parser.add_argument(
        "--checkpoint", required=True, metavar="CHECKPOINT", help="a file, a folder, or OWNER/NAME"
    )
    parser.add_argument("--filename", metavar="F", help="which file of a folder or repository")
    parser.add_argument(
        "--frames", type=int, default=16, metavar="T", help="frames a clip (default: %(default)s)"
    )
    parser.add_argument(
        "--size", type=int, default=224, metavar="R", help="frame side in pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--policy", choices=list(POLICIES), help="default: the checkpoint's, or static-tokens"
    )
    _flexing_arguments(parser)
    parser.add_argument(
        "--batch", type=int, default=8, metavar="B", help="clips a forward pass (default: %(default)s)"
    )
    parser.add_argument(
        "--device", default=None, metavar="D", help="cpu, cuda, ... (default: cuda where there is one)"
    )
    parser.add_argument(
        "--skip-unreadable", action="store_true", help="leave out, and name, videos that fail"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="ends in .safetensors or .npz")


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", metavar="KIND:PATH", help=f"a data set on disk; the kinds are {', '.join(DATASETS)}"
    )
    parser.add_argument("--split", metavar="S", help="train, test, ... (default: the set's first)")
    parser.add_argument(
        "--fold", metavar="N", help="split number of UCF101 and HMDB51, protocol of Breakfast"
    )
    parser.add_argument(
        "--annotations", metavar="DIR", help="where the official split files are, if elsewhere"
    )
    parser.add_argument("--good", metavar="FILE", help="write the list of readable videos here")


def _info(options: Options) -> None:
    print(describe(options.source, filename=options.filename, revision=options.revision))


def _convert(options: Options) -> None:
    convert(options.source, options.target, filename=options.filename, revision=options.revision)
    print(f"wrote {options.target}")


def _check_videos(options: Options) -> None:
    videos = open_dataset(
        options.data,
        split=options.split,
        fold=int(options.fold) if options.fold and options.fold.isdigit() else options.fold,
        annotations=options.annotations,
    )
    with _bar("videos", len(videos)) as bar:
        check = check_videos(videos, progress=_progress(bar))
    print(check)
    if options.good:
        write_list(options.good, check.good)
        print(f"list of the readable videos: {options.good}")


def _features(options: Options) -> None:
    require_features_file(options.out)
    model = load(
        options.checkpoint,
        filename=options.filename,
        policy=options.policy,
        rule=options.rule,
        device=_device(options.device),
    )
    make_flexible(model)
    with _bar("videos", len(options.videos)) as bar:
        names, features = extract_features(
            model,
            options.videos,
            frames=options.frames,
            size=options.size,
            batch=options.batch,
            on_error="skip" if options.skip_unreadable else "raise",
            progress=_progress(bar),
        )
    save_features(options.out, names, features)
    print(f"{len(names)} of {len(options.videos)} videos, {features.shape[1]} numbers each: {options.out}")


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ConfigError(f"Device {name!r} cannot be used here: {reason}.") from error


def _demo(options: Options) -> None:
    require_matplotlib()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    video = Path(options.video) if options.video else _render(out / "video.mp4")
    model = _demo_model(options)

    def read(frames: int, size: int) -> Float[Tensor, "1 3 t h w"]:
        return read_clip(video, frames=frames, size=size, mean=model.mean, std=model.std)

    cells: list[Cell] = []
    total = len(options.policies) * len(options.frames) * len(options.sizes)
    with _bar("geometries", total) as bar:
        grid = run_grid(model, read, policies=options.policies, frames=options.frames, sizes=options.sizes)
        for cell in grid:
            cells.append(cell)
            bar.update()
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


def _demo_model(options: Options) -> VideoMamba:
    if options.checkpoint:
        return make_flexible(load(options.checkpoint), rule=options.rule)
    torch.manual_seed(0)
    return make_flexible(videomamba_tiny(num_classes=400, num_frames=8).eval(), rule=options.rule)


def _bar(unit: str, total: int) -> tqdm:
    return tqdm(total=total, unit=f" {unit}", file=sys.stderr, disable=None, leave=False)


def _progress(bar: tqdm) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        bar.update(done - bar.n)

    return progress


if __name__ == "__main__":
    sys.exit(main())
