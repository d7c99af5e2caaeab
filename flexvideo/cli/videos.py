"""Commands about videos: `features`, `check-videos`."""

import argparse
import sys

from jaxtyping import Float
from torch import Tensor

from flexvideo.cli.shared import (
    Commands,
    Options,
    checkpoint_arguments,
    clip_arguments,
    command,
    device_argument,
    device_of,
    load_model,
    name,
    policy_argument,
    progress,
    rule_argument,
)
from flexvideo.data.check import check_videos
from flexvideo.data.datasets import ON_DISK, first_split, open_dataset
from flexvideo.data.lists import write_list
from flexvideo.data.records import plural
from flexvideo.featurefile import require_features_file, save_features
from flexvideo.features import extract_features
from flexvideo.models import VideoMamba
from flexvideo.output import require_file
from flexvideo.swap import flex_config, make_flexible

FEATURES = "Write one feature vector for every video, at the frame count and size of your choice."
CHECK = """\
Decode the first, middle and last frame of every video of a data set: name the damaged ones.
Exit code 0 says that all are good, 1 that some are not, 2 that there was nothing to check or none is good."""


def add(commands: Commands) -> None:
    """Register the commands."""
    example = "flexvideo features videos/*.mp4 --checkpoint m.pth --frames 32 --size 128 --out f.safetensors"
    _features_arguments(command(commands, "features", _features, FEATURES, example=example))
    example = "flexvideo check-videos ucf101:/data/ucf101 --split train --fold 1 --good good.csv"
    _check_arguments(command(commands, "check-videos", _check_videos, CHECK, example=example))


def _features_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="video files")
    checkpoint_arguments(parser)
    clip_arguments(parser)
    policy_argument(parser)
    rule_argument(parser)
    parser.add_argument(
        "--batch", type=int, default=8, metavar="B", help="clips a forward pass (default: %(default)s)"
    )
    device_argument(parser)
    parser.add_argument(
        "--skip-unreadable", action="store_true", help="leave out, and name, videos that fail"
    )
    parser.add_argument(
        "--out", required=True, type=name, metavar="FILE", help="ends in .safetensors or .npz"
    )


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="KIND:PATH", help=f"a data set on disk; the kinds are {ON_DISK}")
    parser.add_argument(
        "--split", metavar="S", help="train, test, ... (default: the set's first; `none`: it has no splits)"
    )
    parser.add_argument(
        "--fold", metavar="N", help="split number of UCF101 and HMDB51, protocol of Breakfast"
    )
    parser.add_argument(
        "--annotations", metavar="DIR", help="where the official split files are, if elsewhere"
    )
    parser.add_argument(
        "--good", type=name, metavar="FILE", help="write the list of readable videos here, with their classes"
    )


def _features(options: Options) -> None:
    require_features_file(options.out)
    model = load_model(options, policy=options.policy, device=device_of(options))
    make_flexible(model)
    names, features = _extract(model, options)
    save_features(options.out, names, features, settings=_settings(model, options))
    done = f"{len(names)} of {plural(len(options.videos), 'video')}"
    print(f"{done}, {features.shape[1]} numbers each: {options.out}")


def _extract(model: VideoMamba, options: Options) -> tuple[list[str], Float[Tensor, "n d"]]:
    with progress("videos", len(options.videos)) as bar:
        return extract_features(
            model,
            options.videos,
            frames=options.frames,
            size=options.size,
            batch=options.batch,
            on_error="skip" if options.skip_unreadable else "raise",
            progress=bar,
        )


def _settings(model: VideoMamba, options: Options) -> dict[str, object]:
    config = flex_config(model)
    return {
        "checkpoint": model.source,
        "frames": options.frames,
        "size": options.size,
        "policy": config["policy"]["name"],
        "rule": config["rule"],
    }


def _check_videos(options: Options) -> int:
    if options.good:
        require_file(options.good)
    split = options.split or first_split(options.data, annotations=options.annotations)
    videos = open_dataset(
        options.data,
        split=None if split == "none" else split,
        fold=int(options.fold) if options.fold and options.fold.isdigit() else options.fold,
        annotations=options.annotations,
    )
    if split != options.split:
        print(f"split {split}; --split names another", file=sys.stderr)
    with progress("videos", len(videos)) as bar:
        check = check_videos(videos, progress=bar)
    print(check)
    if options.good:
        write_list(options.good, check.good, classes=videos.classes)
        print(f"list of the readable videos: {options.good}")
    return 1 if check.problems else 0
