"""The arms of the evidence run: how each is trained from the shared start, and how each is measured."""

import json
import math
import shutil
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from _evidence_data import load_start
from _evidence_losses import ClipsAlike, Distilled
from _evidence_place import Place, build
from _evidence_scale import Kind, Scale
from torch import nn

import flexvideo as fv
from flexvideo.data.augment import Augment
from flexvideo.data.sampler import clip_tokens
from flexvideo.evaluate import Cell, NativeSize, cells, extract, linear_probe, retrieval, save_result
from flexvideo.geometry import Base
from flexvideo.policy import Policy
from flexvideo.train import TrainConfig, read_log, replace_head, train
from flexvideo.train.setup import REFERENCE_CLIPS
from flexvideo.train.step import Criterion
from flexvideo.weights import write_atomically

FLEXIBLE = ("static-tokens", "static-patch", "temporal", "flexivit", "flex-all")
RESIZED, NATIVE, ZERO_SHOT = "vanilla", "vanilla, clip resized", "vanilla, zero-shot static tokens"
PER_LENGTH = "one vanilla per T"
OWN_OFTEN = "static-tokens, own size often"
PAPER_RULE = "static-tokens, paper's rule"
SEVERAL = "static-tokens, several sizes a step"
DISTILLED = "static-tokens, distilled"
ALIKE = "static-tokens, clips count alike"
LONGER = "static-tokens, without the fewest frames"
TASKS = ("retrieval", "probe")
_PAPER = "paper"  # rule by which tables are resized
_SPECS = 4  # sizes a step, where there are several
_PARTS = 4  # flexible training has one of so many parts of the epochs
_WARMUP = 1 / 14  # of a training
_DRAWS = 2000
_AUGMENT = Augment(sampling="random", scale=(0.5, 1.0), smoothing=0.1)


@dataclass(frozen=True)
class Arm:
    """A training, and the rows of the table that come of it.

    Args:
        name: of the training.
        policy: of flexible training, None for vanilla's one geometry.
        rows: the ways in which its weights are measured.
        quarter: whether it has a quarter of vanilla's epochs; otherwise as many steps, of as many tokens.
        start: whether it begins from the shared start, or from random weights.
        frames: the one frame count that it is trained and measured at; None is the model's own, or many.
        rule: by which flexible training resizes tables and kernels, None for the default.
        own_often: whether every second draw of a frame count, and of a frame size, is the model's own.
        specs: sizes that an optimiser step draws, each for its part of the clips.
        distilled: whether every clip is seen at vanilla's size too, which costs about as much again.
        alike: whether the loss of a clip counts alike in steps of many and of few clips.
        longer: whether the smallest frame count is not drawn.
        later: whether it waits until the others are done with all seeds.
        trial: whether it is trained only where its name is asked for.
    """

    name: str
    policy: str | None
    rows: tuple[str, ...]
    quarter: bool = False
    start: bool = True
    frames: int | None = None
    rule: str | None = None
    own_often: bool = False
    specs: int = 1
    distilled: bool = False
    alike: bool = False
    longer: bool = False
    later: bool = False
    trial: bool = False


def arms(scale: Scale, kind: Kind) -> list[Arm]:
    """All arms of a kind of data."""
    others = [frames for frames in kind.lengths if frames != scale.model["num_frames"]]
    main = [
        Arm("vanilla", None, (RESIZED, NATIVE, ZERO_SHOT, PER_LENGTH)),
        *(Arm(name, name, (name,), quarter=True) for name in FLEXIBLE),
        Arm("static-tokens, equal tokens", "static-tokens", ("static-tokens, equal tokens",)),
        Arm(OWN_OFTEN, "static-tokens", (OWN_OFTEN,), quarter=True, own_often=True),
    ]
    more = [
        Arm("vanilla, a quarter of the epochs", None, ("vanilla, a quarter of the epochs",), quarter=True),
        # By the rule that it is measured by.
        *(Arm(f"vanilla of {t}", "temporal", (PER_LENGTH,), frames=t, rule=_PAPER) for t in others),
        Arm("vanilla, from scratch", None, ("vanilla, from scratch",), start=False),
        Arm("static-tokens, from scratch", "static-tokens", ("static-tokens, from scratch",), start=False),
    ]
    trial = Arm("", "static-tokens", (), quarter=True, trial=True)
    trials = [
        replace(trial, name=PAPER_RULE, rows=(PAPER_RULE,), rule=_PAPER),
        replace(trial, name=SEVERAL, rows=(SEVERAL,), specs=_SPECS),
        replace(trial, name=DISTILLED, rows=(DISTILLED,), distilled=True),
        replace(trial, name=ALIKE, rows=(ALIKE,), alike=True),
        replace(trial, name=LONGER, rows=(LONGER,), longer=True),
    ]
    return main + [replace(arm, later=True) for arm in more] + trials


def run_arm(place: Place, kind: Kind, arm: Arm, seed: int) -> bool:
    """Train and measure an arm, or go on with it; whether it is done."""
    folder = place.work / f"{kind.name}-{seed}-{_slug(arm.name)}"
    # A training that was stopped has left a model too.
    trained = _run_file(place, kind, arm, seed).exists() and (folder / "model.safetensors").exists()
    if not trained and not _train(place, kind, arm, seed, folder):
        return False
    for row in arm.rows:
        if not all(_file(place, kind, row, arm, seed, task).exists() for task in TASKS):
            if place.over():
                return False
            _measure(place, kind, arm, row, seed, folder)
    return True


def finished(place: Place, kind: Kind, arm: Arm, seed: int) -> bool:
    files = (_file(place, kind, row, arm, seed, task) for row in arm.rows for task in TASKS)
    return all(file.exists() for file in files)


def _train(place: Place, kind: Kind, arm: Arm, seed: int, folder: Path) -> bool:
    scale, source = place.scale, place.source(kind, "train")
    _run_file(place, kind, arm, seed).unlink(missing_ok=True)  # of a training whose model is lost
    model = load_start(place.out, place.device) if arm.start else build(place, seed=1000 + seed)
    torch.manual_seed(seed)
    replace_head(model, source.classes)
    if arm.policy is not None:
        fv.make_flexible(model, policy=policy_of(scale, kind, arm), rule=arm.rule)
    config = config_of(scale, kind, arm, seed, len(source))
    found = train(
        model,
        source,
        config=config,
        out=folder,
        criterion=_criterion(scale, arm),
        resume=True,
        stop=place.over,
    )
    took = f"{found.steps:,} steps, {found.seconds:.0f} s"
    place.say(f"{kind.name} {seed} {arm.name}: loss {found.loss:.3f} after {took}")
    if found.finished:
        clips = {f"{spec.frames}x{spec.height}/{spec.patch[0]}": count for spec, count in found.clips.items()}
        facts = {"kind": kind.name, "arm": arm.name, "seed": seed, "config": config.to_config()}
        facts |= {"steps": found.steps, "seconds": found.seconds, "loss": found.loss, "clips": clips}
        lines = [line for line in read_log(folder) if "waiting_for_data" in line]
        facts["waiting_for_data"] = fmean(line["waiting_for_data"] for line in lines)
        write_atomically(_run_file(place, kind, arm, seed), (json.dumps(facts, indent=1) + "\n").encode())
        shutil.rmtree(folder / "checkpoints")
    return found.finished


def _criterion(scale: Scale, arm: Arm) -> Criterion | None:
    if arm.distilled:
        return Distilled(scale.base)
    return ClipsAlike(scale.clips) if arm.alike else None


def policy_of(scale: Scale, kind: Kind, arm: Arm) -> Policy:
    if arm.policy is not None and arm.frames is None:
        policy: Any = scale.policy(arm.policy, kind)
        if arm.longer:
            return replace(policy, frames=kind.lengths[1:])
        return _own_often(policy, scale.base) if arm.own_often else policy
    return fv.Temporal(frames=(arm.frames or scale.model["num_frames"],))


def _own_often(policy: Any, base: Base) -> Policy:
    """What is drawn uniformly from a list is drawn as often as the list has it."""
    frames = (*policy.frames, *[base.frames] * (len(policy.frames) - 2))
    return replace(policy, frames=frames, sizes=(*policy.sizes, *[base.height] * (len(policy.sizes) - 2)))


def config_of(scale: Scale, kind: Kind, arm: Arm, seed: int, clips: int) -> TrainConfig:
    """The recipe of an arm for so many clips: vanilla's, at its highest rate, but for its epochs.

    With a quarter of the epochs, a step has at most as many clips as vanilla's; otherwise as many tokens.
    """
    epochs = scale.epochs // _PARTS if arm.quarter else scale.epochs
    most = scale.clips if arm.quarter else None
    return TrainConfig(
        epochs=epochs,
        steps=None if arm.quarter else math.ceil(clips / scale.clips),
        tokens=scale.tokens,
        clips=most,
        specs=arm.specs,
        balanced=True,
        lr=scale.lr * REFERENCE_CLIPS / _mean_clips(policy_of(scale, kind, arm), scale, most),
        warmup_epochs=max(1, round(epochs * _WARMUP)),
        clip_norm=1.0,
        drop_path=0.1,
        augment=_AUGMENT,
        bf16=torch.cuda.is_available(),
        seed=seed,
        keep=1,
    )


def _mean_clips(policy: Policy, scale: Scale, most: int | None) -> float:
    """Clips of a step on average, by which the rate is scaled."""
    drawn = (policy.sample(scale.base, seed=0, epoch=0, step=step) for step in range(_DRAWS))
    held = (scale.tokens // clip_tokens(policy, scale.base, spec) for spec in drawn)
    return fmean(held if most is None else (min(most, clips) for clips in held))


def _measure(place: Place, kind: Kind, arm: Arm, row: str, seed: int, folder: Path) -> None:
    """Features of queries and gallery over the grid; retrieval and probe of them."""
    scale = place.scale
    model = measured(folder, row, device=place.device)
    own = scale.model["num_frames"] if arm.policy is None and row == PER_LENGTH else arm.frames
    grid = scale.grid(kind) if own is None else cells((own,), scale.sizes)
    autocast = torch.autocast("cuda", torch.bfloat16) if place.device == "cuda" else nullcontext()
    sources = place.source(kind, "test", scale.queries), place.source(kind, "train", scale.gallery)
    with autocast:
        queries, gallery = (extract(model, each, grid=grid, tokens=1 << 16) for each in sources)
    found = retrieval(queries, gallery, name=row), linear_probe(gallery, queries, name=row)
    for task, result in zip(TASKS, found, strict=True):
        save_result(result, _file(place, kind, row, arm, seed, task))
    best = _accuracy(found[0], Cell(arm.frames or scale.model["num_frames"], scale.model["img_size"]))
    place.say(f"{kind.name} {seed} {row}: top-1 {best} at its own size")


def measured(folder: Path, row: str, *, device: str) -> nn.Module:
    """The weights of an arm as a row of the table runs them.

    Vanilla's tables are resized by the paper's rule, and "one vanilla per T" likewise.
    """
    if row == NATIVE:
        return NativeSize(fv.load(folder, device=device))
    model = fv.load(folder, device=device)
    if row == ZERO_SHOT:
        return fv.make_flexible(model, policy="static-tokens", rule="auto")
    if row.startswith("vanilla") or row == PER_LENGTH:
        return fv.make_flexible(model, policy="static-patch", rule=_PAPER)
    return model


def _accuracy(result: Any, cell: Cell) -> str:
    return next(str(found.metrics["top1"]) for found in result.cells if found.cell == cell)


def _run_file(place: Place, kind: Kind, arm: Arm, seed: int) -> Path:
    return place.out / f"{kind.name}-{seed}-{_slug(arm.name)}-run.json"


def _file(place: Place, kind: Kind, row: str, arm: Arm, seed: int, task: str) -> Path:
    part = "" if arm.frames is None else f"-{arm.frames}"
    return place.out / f"{kind.name}-{seed}-{_slug(row)}{part}-{task}.json"


def _slug(name: str) -> str:
    return name.replace(",", "").replace("'", "").replace(" ", "_")
