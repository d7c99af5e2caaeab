"""The options of `train` and `finetune`."""

import argparse
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from flexvideo.cli.shared import RECIPE, Options, device_argument, name, rule_argument
from flexvideo.data.datasets import ON_DISK
from flexvideo.errors import ConfigError
from flexvideo.models import VideoMamba, videomamba_middle, videomamba_small, videomamba_tiny
from flexvideo.output import require_folder
from flexvideo.policy import POLICIES
from flexvideo.train import PRESETS, TrainConfig
from flexvideo.train.distributed import rank_and_world

TRAIN = """\
Train a model flexibly: at a frame count, a frame size and a patch that are drawn
anew for every step. The policy says what is drawn (--policy; `none` trains a
plain model at its own size); --frames and --sizes narrow it. A step holds as
many clips of its size as fit the budget of tokens.

OUT gets the model, which every other command reads (--checkpoint OUT) from the
end of the first epoch on, log.jsonl and checkpoints. A killed run goes on with
--resume, to the bit; Ctrl-C saves first. Preset `paper` begins from the
masked-pretrained weights, others from random ones unless --start or --model
says otherwise; `tiny` is for drawn motion data on a laptop, and takes --model
laptop, --frames 4 8 16, --sizes 24 32 48 and --hold 16x48 for what is not given.
Several GPUs:
  torchrun --nproc-per-node 4 -m flexvideo train ..."""
FINETUNE = """\
Train a checkpoint on other classes: at one size, 16 x 224 px by default, as the
paper fine-tunes. A head for other classes is replaced. Several --frames or
--sizes are drawn from, as in `train`. Everything else is as in `train`, resuming
and several GPUs too."""
MODELS: dict[str, Callable[..., VideoMamba]] = {
    "laptop": partial(VideoMamba, img_size=32, patch_size=8, depth=4, embed_dim=64, num_frames=8),
    "tiny": partial(videomamba_tiny, num_frames=16),
    "small": partial(videomamba_small, num_frames=16),
    "middle": partial(videomamba_middle, num_frames=16),
}
NOTHING_TO_MEASURE = (
    "--evaluate-at says at which sizes to measure, and there is no split to measure on: name one with "
    "--val-split, or leave --evaluate-at out."
)
# What a preset starts from and draws, where nothing else is asked for.
STARTS: dict[str, dict[str, Any]] = {
    "paper": {"start": "m16_k400_mask_pt_f8_res224"},
    "tiny": {"model": "laptop", "frames": [4, 8, 16], "sizes": [24, 32, 48], "hold": "16x48"},
}


def run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says where a run is and on what it runs."""
    parser.add_argument("--out", required=True, type=name, metavar="DIR", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUT")
    parser.add_argument("--tensorboard", action="store_true", help="write events for TensorBoard to OUT")
    parser.add_argument(
        "--workers", type=int, default=2, metavar="N", help="processes that read clips (default: 2)"
    )
    device_argument(parser)


def common_arguments(parser: argparse.ArgumentParser, *, preset: str) -> None:
    """Add data, sizes and recipe.

    Args:
        parser: of a command.
        preset: the default.
    """
    _data_arguments(parser)
    group = parser.add_argument_group("sizes")
    policies = [*POLICIES, "none"]
    group.add_argument(
        "--policy",
        choices=policies,
        metavar="NAME",
        help=f"{', '.join(policies)} (default: the checkpoint's, or static-tokens)",
    )
    rule_argument(parser)
    group.add_argument("--frames", type=int, nargs="+", metavar="T", help="frame counts to draw")
    group.add_argument("--sizes", type=int, nargs="+", metavar="R", help="sides in pixels to draw")
    group = parser.add_argument_group("recipe", _recipes())
    group.add_argument(
        "--preset",
        choices=list(PRESETS),
        default=preset,
        metavar="NAME",
        help=f"one of these (default: {preset})",
    )
    for field, kind, text in (
        ("epochs", int, "rounds of the data"),
        ("steps", int, "optimiser steps of an epoch, instead of one pass over the data"),
        ("tokens", int, "budget of a step, over all GPUs and accumulation: its memory goes with it"),
        ("clips", int, "most clips of a step, where the budget holds more"),
        ("accumulate", int, "batches that make up a step on each GPU, which then needs memory for one"),
        ("lr", float, "learning rate for 256 clips a step"),
        ("seed", int, "of everything that is drawn"),
    ):
        group.add_argument(f"--{field}", type=kind, metavar="N", help=text)
    group.add_argument(
        "--shard", action="store_true", help="split weights and optimizer over the GPUs of torchrun (FSDP2)"
    )
    group.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="FIELD=VALUE",
        help=f"other fields, such as ema=0.999 augment=light: {', '.join(_other_fields())}",
    )


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    kinds = f"motion:short, motion:long, mocap:FILE, or one on disk: {ON_DISK}"
    group.add_argument("--data", required=True, type=name, metavar="KIND:PATH", help=kinds)
    group.add_argument(
        "--split", default="train", metavar="S", help="to learn from (default: train; `none` is all)"
    )
    group.add_argument(
        "--val-split", metavar="S", help="to measure on (default: val or test; `none` does not)"
    )
    group.add_argument("--evaluate-at", nargs="+", metavar="TxR", help="sizes to measure at: 8x96 16x224")
    group.add_argument("--fold", metavar="N", help="split number, or protocol of Breakfast")
    group.add_argument("--annotations", metavar="DIR", help="of the split files, if elsewhere")
    group.add_argument("--skip-unreadable", action="store_true", help="go on without videos that fail")
    group.add_argument(
        "--hold", metavar="TxR", help="keep T frames of R px of every clip on the device: small sets"
    )


def _recipes() -> str:
    """What the presets are, for people: their figures are read off them."""
    width = max(map(len, PRESETS))
    lines = [
        f"  {preset:{width}} {recipe.epochs} epochs{f' of {recipe.steps} steps' if recipe.steps else ''}, "
        f"{recipe.tokens:,} tokens a step, lr {recipe.lr:g}"
        for preset, recipe in PRESETS.items()
    ]
    return "\n".join(
        (
            "What is not given is as in the preset; all but `tiny` are made for GPUs, and on",
            "a CPU --tokens or --accumulate makes their steps fit:",
            *lines,
            "A clip of 16 x 224 px has 3,136 tokens under static-tokens.",
        )
    )


def _other_fields() -> list[str]:
    return [field.name for field in fields(TrainConfig) if field.name not in (*RECIPE, "shard")]


def frames_and_size(text: str, option: str) -> tuple[int, int]:
    """Read frames x pixels.

    Args:
        text: such as "16x224".
        option: where it was given.

    Raises:
        ConfigError: anything else.

    Example:
        >>> frames_and_size("16x224", "--hold")
        (16, 224)
    """
    frames, _, size = text.partition("x")
    if not (frames.isdigit() and size.isdigit() and int(frames) and int(size)):
        raise ConfigError(f"{option} takes frames x pixels, such as 16x224, and got {text!r}.")
    return int(frames), int(size)


def check(options: Options) -> None:
    """Refuse what is known to be wrong before any data is read.

    Args:
        options: of a command.

    Raises:
        ConfigError: a number or a size that does not fit, or a folder that cannot be made or written.
    """
    if options.workers < 0:
        raise ConfigError(f"--workers must be at least 0, got {options.workers}.")
    for text in options.evaluate_at or ():
        frames_and_size(text, "--evaluate-at")
    if options.hold is not None:
        frames_and_size(options.hold, "--hold")
    if options.val_split == "none" and options.evaluate_at:
        raise ConfigError(NOTHING_TO_MEASURE)
    if rank_and_world()[0] == 0:
        out = Path(options.out).absolute()
        made = [folder for folder in (out, *out.parents) if not folder.exists()]
        require_folder(out)
        for folder in made:  # a run that is refused leaves nothing
            folder.rmdir()
