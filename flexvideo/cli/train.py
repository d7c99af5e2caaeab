"""Commands that train: `train` and `finetune`."""

import json
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
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
    device_of,
    name,
    progress,
    source_arguments,
)
from flexvideo.cli.trainforecast import say_what_comes
from flexvideo.cli.trainoptions import (
    FINETUNE,
    MODELS,
    NOTHING_TO_MEASURE,
    STARTS,
    TRAIN,
    check,
    common_arguments,
    frames_and_size,
    run_arguments,
)
from flexvideo.cli.trainreport import StepBar, say, summarise
from flexvideo.data.datasets import held_out_split
from flexvideo.data.held import HeldSource
from flexvideo.data.opened import open_source
from flexvideo.data.source import ClipSource, require_learnable
from flexvideo.errors import CheckpointWarning, ConfigError
from flexvideo.geometry import Base
from flexvideo.models import VideoMamba
from flexvideo.policy import Policy, policy_of
from flexvideo.swap import flex_config, make_flexible
from flexvideo.train import PRESETS, TrainConfig, Validation, processes, replace_head, train
from flexvideo.train.checkpoint import checkpoints
from flexvideo.train.distributed import rank_and_world
from flexvideo.train.interrupt import stopped_by_signals
from flexvideo.train.setup import sampling_of

_PYTHON = {"None": None, "True": True, "False": False}  # what JSON writes otherwise


def add(commands: Commands) -> None:
    """Register the commands."""
    example = "flexvideo train --data motion:short --preset tiny --out runs/a"
    parser = command(commands, "train", _train, TRAIN, example=example)
    parser.set_defaults(from_preset=())
    parser.usage = "%(prog)s --data KIND:PATH --out DIR [option ...]"
    run_arguments(parser)
    group = parser.add_argument_group("model")
    group.add_argument("--start", type=name, metavar="CHECKPOINT", help=f"begin from {CHECKPOINT}")
    group.add_argument("--filename", metavar="F", help="which file of a folder or repository")
    group.add_argument("--revision", metavar="R", help="branch, tag or commit of a repository")
    group.add_argument("--model", choices=list(MODELS), help="size of a new model (default: tiny)")
    group.add_argument(
        "--init", choices=["mamba", "official"], default="mamba", help="of a new model (default: mamba)"
    )
    common_arguments(parser, preset="paper")
    example = "flexvideo finetune runs/a --data ucf101:/data/ucf101 --out runs/ucf101"
    parser = command(commands, "finetune", _finetune, FINETUNE, example=example)
    parser.set_defaults(from_preset=())
    parser.usage = "%(prog)s CHECKPOINT --data KIND:PATH --out DIR [option ...]"
    source_arguments(parser)
    run_arguments(parser)
    common_arguments(parser, preset="paper-finetune")


def _train(options: Options) -> int:
    asked = {"start": options.start is not None or options.model is not None}
    asked["model"] = asked["start"]
    asked["frames"] = asked["sizes"] = options.start is not None or options.policy == "none"
    for field, value in STARTS.get(options.preset, {}).items():
        if getattr(options, field) is None and not asked.get(field):
            setattr(options, field, value)
            options.from_preset = (*options.from_preset, field)
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
        check(options)
        device = device or device_of(options)
        source = _hold(options, _open(options, options.split), device)
        torch.manual_seed(config.seed)
        model = _with_head(build(options, source), source).to(device)
        policy = _flex(options, model)
        if options.resume and not checkpoints(Path(options.out)):
            say(f"note: no checkpoint in {options.out}, starting from step 1")
        say_what_comes(options, model, policy, source, config)
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
    frames, size = frames_and_size(options.hold, "--hold")
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
    own_policy = None if plain else flex_config(model)["policy"]
    if own_policy is not None and options.policy not in (None, own_policy["name"]):
        say(
            f"note: the checkpoint records policy {own_policy['name']}, and is trained under {options.policy}"
        )
    chosen = policy_of(options.policy or own_policy or "static-tokens")
    drawn = _narrowed(chosen, options, base)
    make_flexible(model, policy=chosen if options.command == "finetune" else drawn, rule=options.rule)
    return drawn


def _narrowed(policy: Policy, options: Options, base: Base) -> Policy:
    changes = {"frames": options.frames} if options.frames else {}
    preset = "sizes" in options.from_preset
    if options.sizes and hasattr(policy, "sizes"):
        changes["sizes"] = options.sizes
    elif options.sizes and not preset and options.sizes != [base.height]:
        raise ConfigError(f"Policy {policy.name!r} keeps the model's own frame size: leave --sizes out.")
    try:
        return replace(policy, **changes)
    except ConfigError as error:
        if not preset:
            raise
        sizes = ", ".join(map(str, options.sizes))
        raise ConfigError(
            f"The preset {options.preset!r} sets sizes {sizes}, and with these: {error} Give --sizes for it."
        ) from error


def _validation(
    options: Options, model: VideoMamba, policy: Policy | None, source: ClipSource
) -> Validation | None:
    split = options.val_split or _usual_split(options)
    if split in (None, "none") and options.evaluate_at:
        raise ConfigError(NOTHING_TO_MEASURE)
    if split is None:
        say("no split to measure on: name one with --val-split")
    if split in (None, "none"):
        return None
    held_out = _open(options, split)
    require_learnable(source, held_out)
    sizes = [frames_and_size(text, "--evaluate-at") for text in options.evaluate_at or ()]
    if not sizes:
        base, drawn = sampling_of(model, policy)
        specs = sorted(drawn.specs(base), key=lambda spec: (spec.frames * spec.height, spec.frames))
        ends = [(spec.frames, spec.height) for spec in (specs[0], specs[-1])]
        sizes = sorted({*ends, (base.frames or ends[0][0], base.height)})
    return Validation(held_out, sizes, workers=max(1, options.workers))


def _usual_split(options: Options) -> str | None:
    drawn = {"motion": "val", "mocap": "test"}.get(options.data.partition(":")[0])
    return drawn or held_out_split(options.data, annotations=options.annotations)
