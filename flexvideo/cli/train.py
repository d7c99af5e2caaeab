"""Commands that train: `train` and `finetune`."""

import argparse
import json
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flexvideo.active import flex_within
from flexvideo.checkpoints import load
from flexvideo.cli.shared import (
    CHECKPOINT,
    RECIPE,
    Commands,
    Options,
    command,
    device_argument,
    device_of,
    name,
    progress,
    rule_argument,
    source_arguments,
)
from flexvideo.cli.trainreport import StepBar, say, summarise
from flexvideo.data.datasets import ON_DISK, held_out_split
from flexvideo.data.held import HeldSource
from flexvideo.data.loader import FlexLoader
from flexvideo.data.opened import open_source
from flexvideo.data.records import plural
from flexvideo.data.source import ClipSource, require_learnable
from flexvideo.errors import CheckpointWarning, ConfigError
from flexvideo.geometry import Base
from flexvideo.models import VideoMamba, videomamba_middle, videomamba_small, videomamba_tiny
from flexvideo.output import require_folder
from flexvideo.policy import POLICIES, Policy, policy_of
from flexvideo.swap import flex_config, make_flexible
from flexvideo.train import PRESETS, TrainConfig, Validation, processes, replace_head, train
from flexvideo.train.distributed import rank_and_world
from flexvideo.train.interrupt import stopped_by_signals
from flexvideo.train.setup import sampling_of

TRAIN = """\
Train a model flexibly: at a frame count, a frame size and a patch that are drawn
anew for every step. The policy says what is drawn (--policy; `none` trains a
plain model at its own size); --frames and --sizes narrow it. A step holds as
many clips of its size as fit the budget of tokens.

OUT gets the model, which every other command reads (--checkpoint OUT) from the
end of the first epoch on, log.jsonl and checkpoints. A killed run goes on with
--resume, to the bit; Ctrl-C saves first. Preset `paper` begins from the
masked-pretrained weights, others from random ones unless --start or --model
says otherwise; `tiny` is for drawn motion data on a laptop. Several GPUs:
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
_PYTHON = {"None": None, "True": True, "False": False}  # what JSON writes otherwise
_MANY_TIMES = 8  # a step over so few clips is of their augmented copies
# What a preset starts from and draws, where nothing else is asked for.
_STARTS: dict[str, dict[str, Any]] = {
    "paper": {"start": "m16_k400_mask_pt_f8_res224"},
    "tiny": {"model": "laptop", "frames": [4, 8, 16], "sizes": [24, 32, 48], "hold": "16x48"},
}


def add(commands: Commands) -> None:
    """Register the commands."""
    example = "flexvideo train --data motion:short --preset tiny --out runs/a"
    parser = command(commands, "train", _train, TRAIN, example=example)
    parser.usage = "%(prog)s --data KIND:PATH --out DIR [option ...]"
    _run_arguments(parser)
    group = parser.add_argument_group("model")
    group.add_argument("--start", type=name, metavar="CHECKPOINT", help=f"begin from {CHECKPOINT}")
    group.add_argument("--filename", metavar="F", help="which file of a folder or repository")
    group.add_argument("--revision", metavar="R", help="branch, tag or commit of a repository")
    group.add_argument("--model", choices=list(MODELS), help="size of a new model (default: tiny)")
    group.add_argument(
        "--init", choices=["mamba", "official"], default="mamba", help="of a new model (default: mamba)"
    )
    _common_arguments(parser, preset="paper")
    example = "flexvideo finetune runs/a --data ucf101:/data/ucf101 --out runs/ucf101"
    parser = command(commands, "finetune", _finetune, FINETUNE, example=example)
    parser.usage = "%(prog)s CHECKPOINT --data KIND:PATH --out DIR [option ...]"
    source_arguments(parser)
    _run_arguments(parser)
    _common_arguments(parser, preset="paper-finetune")


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, type=name, metavar="DIR", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUT")
    parser.add_argument("--tensorboard", action="store_true", help="write events for TensorBoard to OUT")
    parser.add_argument(
        "--workers", type=int, default=2, metavar="N", help="processes that read clips (default: 2)"
    )
    device_argument(parser)


def _common_arguments(parser: argparse.ArgumentParser, *, preset: str) -> None:
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
    group = parser.add_argument_group("recipe", "What is not given is as in the preset.")
    group.add_argument(
        "--preset",
        choices=list(PRESETS),
        default=preset,
        metavar="NAME",
        help=f"{', '.join(PRESETS)} (default: {preset})",
    )
    for field, kind, text in (
        ("epochs", int, "rounds of the data"),
        ("steps", int, "optimiser steps of an epoch, instead of one pass over the data"),
        ("tokens", int, "budget of a step, over all GPUs and accumulation"),
        ("clips", int, "most clips of a step, where the budget holds more"),
        ("accumulate", int, "batches that make up a step on each GPU"),
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
        help="other fields: ema=0.999 augment=light",
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


def _train(options: Options) -> int:
    for field, value in _STARTS.get(options.preset, {}).items():
        chosen = field == "start" and options.model is not None  # a new model starts from nothing
        if getattr(options, field) is None and not chosen:
            setattr(options, field, value)
    return _run(options, _new_or_started)


def _finetune(options: Options) -> int:
    options.frames, options.sizes = options.frames or [16], options.sizes or [224]
    return _run(options, lambda options, source: _loaded(options, options.checkpoint))


def _new_or_started(options: Options, source: ClipSource) -> VideoMamba:
    if options.start is None:
        return MODELS[options.model or "tiny"](num_classes=len(source.classes), init=options.init)
    if options.model is not None:
        raise ConfigError("--model is for a new model, --start for one that there is: give one of them.")
    return _loaded(options, options.start)


def _loaded(options: Options, checkpoint: str) -> VideoMamba:
    """The model to begin from; what is to be said of it, one process says."""
    with warnings.catch_warnings():
        if rank_and_world()[0] > 0:
            warnings.simplefilter("ignore", CheckpointWarning)
        model = load(checkpoint, filename=options.filename, revision=options.revision, rule=options.rule)
    say(f"beginning from {model.source}")
    return model


def _run(options: Options, build: Callable[[Options, ClipSource], VideoMamba]) -> int:
    with processes() as device:
        if device is not None and options.device is not None:
            raise ConfigError("Under torchrun each process has a device of its own: leave --device out.")
        config = _config(options)
        out = Path(options.out).absolute()  # which a run that is refused does not make
        require_folder(next(folder for folder in (out, *out.parents) if folder.exists()))
        device = device or device_of(options)
        source = _hold(options, _open(options, options.split), device)
        torch.manual_seed(config.seed)
        model = _with_head(build(options, source), source).to(device)
        policy = _flex(options, model)
        _say_what_comes(options, model, policy, source, config)
        with stopped_by_signals() as stop:
            result = train(
                model,
                source,
                config=config,
                out=options.out,
                policy=policy,
                evaluate=_validation(options, model, policy, source),
                resume=options.resume,
                workers=0 if options.hold else options.workers,
                tensorboard=options.tensorboard,
                report=StepBar(),
                stop=stop,
            )
        summarise(result)
        return 0 if result.finished else 130


def _say_what_comes(
    options: Options, model: VideoMamba, policy: Policy | None, source: ClipSource, config: TrainConfig
) -> None:
    base, drawn = sampling_of(model, policy)
    say(f"{source.name}: {len(source)} clips, {len(source.classes)} classes; drawn by {drawn}")
    loader = FlexLoader(
        source,
        policy=drawn,
        base=base,
        tokens=config.tokens,
        clips=config.clips,
        specs=config.specs,
        steps=config.steps,
        seed=config.seed,
        world=rank_and_world()[1],
        accumulate=config.accumulate,
        augment=config.augment,
    )
    steps, clips = loader.steps_in(0), loader.summary(1).total()
    say(f"first epoch: {plural(steps, 'step')} of {clips / steps:,.0f} clips on average")
    times = clips / steps / (len(source) * config.augment.repeats)
    if times >= _MANY_TIMES:
        say(f"note: a step takes every clip {times:,.0f} times; --clips or --tokens makes steps smaller")
    if options.hold is None:
        return
    frames, size = _frames_and_size(options.hold, "--hold")
    specs = drawn.specs(base)
    most, largest = max(spec.frames for spec in specs), max(max(spec.height, spec.width) for spec in specs)
    if most > frames or largest > size:
        say(
            f"note: up to {most} frames of {largest} px are drawn, and --hold keeps {frames} of {size} px: "
            "frames are repeated or enlarged where it keeps too little"
        )


def _config(options: Options) -> TrainConfig:
    """The preset, with what was asked for otherwise."""
    changes: dict[str, Any] = {}
    for text in options.set:
        field, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set takes FIELD=VALUE, such as ema=0.999, and got {text!r}.")
        try:
            changes[field] = json.loads(value)
        except ValueError:
            changes[field] = _PYTHON.get(value, value)
    for field in RECIPE:
        if getattr(options, field) is not None:
            changes[field] = getattr(options, field)
    if options.shard:
        changes["shard"] = True
    preset = PRESETS[options.preset].to_config()
    if "epochs" in changes and "warmup_epochs" not in changes and isinstance(changes["epochs"], int):
        changes["warmup_epochs"] = min(preset["warmup_epochs"], changes["epochs"])
    return TrainConfig.of(preset | changes)


def _open(options: Options, split: str) -> ClipSource:
    return open_source(
        options.data,
        split=None if split == "none" else split,
        fold=options.fold,
        annotations=options.annotations,
        on_error="skip" if options.skip_unreadable else "raise",
    )


def _hold(options: Options, source: ClipSource, device: torch.device | str) -> ClipSource:
    if options.hold is None:
        return source
    frames, size = _frames_and_size(options.hold, "--hold")
    shown = progress("clips", len(source)) if rank_and_world()[0] == 0 else nullcontext()
    with shown as bar:
        return HeldSource(source, frames=frames, size=size, device=device, progress=bar)


def _with_head(model: VideoMamba, source: ClipSource) -> VideoMamba:
    if model.num_classes == len(source.classes) and model.labels in (None, source.classes):
        return model
    count = len(source.classes)
    if sorted(model.labels or ()) == sorted(source.classes):
        say(f"a new head: the model had the same {count} classes in another order")
    else:
        say(f"a new head: the model had {model.num_classes} classes, the data has {count} others")
    return replace_head(model, source.classes)


def _flex(options: Options, model: VideoMamba) -> Policy | None:
    """Make the model flexible unless it is to stay plain, and say what its training draws from."""
    plain = flex_within(model) is None
    base = sampling_of(model, None)[0]
    own = (options.frames or [base.frames], options.sizes or [base.height]) == ([base.frames], [base.height])
    fixed = options.command == "finetune" and options.policy is None
    if plain and (options.policy == "none" or (fixed and own)):
        if not own:
            raise ConfigError(
                f"A plain model trains at its own size alone, {base.frames} x {base.height} px: leave "
                "--frames and --sizes out, or give a policy."
            )
        return None
    if options.policy == "none":
        raise ConfigError("The checkpoint is flexible, so --policy none does not apply: leave it out.")
    chosen = policy_of(options.policy or (flex_config(model)["policy"] if not plain else "static-tokens"))
    drawn = _narrowed(chosen, options, base)
    make_flexible(model, policy=chosen if options.command == "finetune" else drawn, rule=options.rule)
    return drawn


def _narrowed(policy: Policy, options: Options, base: Base) -> Policy:
    changes = {"frames": options.frames} if options.frames else {}
    if options.sizes:
        if not hasattr(policy, "sizes"):
            if options.sizes == [base.height]:
                return replace(policy, **changes)
            raise ConfigError(f"Policy {policy.name!r} keeps the model's own frame size: leave --sizes out.")
        changes["sizes"] = options.sizes
    return replace(policy, **changes)


def _validation(
    options: Options, model: VideoMamba, policy: Policy | None, source: ClipSource
) -> Validation | None:
    split = options.val_split or _usual_split(options)
    if split in (None, "none") and options.evaluate_at:
        raise ConfigError(
            "--evaluate-at says at which sizes to measure, and there is no split to measure on: name one "
            "with --val-split, or leave --evaluate-at out."
        )
    if split is None:
        say("no split to measure on: name one with --val-split")
    if split in (None, "none"):
        return None
    held_out = _open(options, split)
    require_learnable(source, held_out)
    sizes = [_frames_and_size(text, "--evaluate-at") for text in options.evaluate_at or ()]
    if not sizes:
        base, drawn = sampling_of(model, policy)
        specs = sorted(drawn.specs(base), key=lambda spec: (spec.frames * spec.height, spec.frames))
        ends = [(spec.frames, spec.height) for spec in (specs[0], specs[-1])]
        sizes = sorted({*ends, (base.frames or ends[0][0], base.height)})
    return Validation(held_out, sizes, workers=max(1, options.workers))


def _usual_split(options: Options) -> str | None:
    drawn = {"motion": "val", "mocap": "test"}.get(options.data.partition(":")[0])
    return drawn or held_out_split(options.data, annotations=options.annotations)


def _frames_and_size(text: str, option: str) -> tuple[int, int]:
    frames, _, size = text.partition("x")
    if not (frames.isdigit() and size.isdigit() and int(frames) and int(size)):
        raise ConfigError(f"{option} takes frames x pixels, such as 16x224, and got {text!r}.")
    return int(frames), int(size)
