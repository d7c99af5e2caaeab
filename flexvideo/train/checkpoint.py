"""Checkpoints of a run: one safetensors file each, whole or not there, and nothing in it that could run.

The header holds, as JSON, where the run is and what it is a run of; the tensors are the model's, the
optimizer's and the average's, under names that begin with "model.", "optimizer." and "ema.".
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from flexvideo.errors import CheckpointError
from flexvideo.train.distributed import rank_and_world
from flexvideo.train.ema import Ema
from flexvideo.weights import read_weights, write_safetensors

if TYPE_CHECKING:
    from flexvideo.train.sharding import Sharding

FOLDER = "checkpoints"
_FORMAT = 1
_SHOWN = 6  # differences in a message
_KEY = "flexvideo-training"


@dataclass(frozen=True)
class Progress:
    """Where a run is.

    Args:
        epoch: that comes next, or that goes on.
        step: of that epoch that comes next.
        done: optimiser steps taken since the beginning.
        seconds: spent on them.
        unlogged: loss and norm of the gradient of the last steps, those that no line of the log tells of yet.
    """

    epoch: int = 0
    step: int = 0
    done: int = 0
    seconds: float = 0.0
    unlogged: Sequence[Sequence[float]] = ()


@dataclass(frozen=True)
class Run:
    """What changes in the course of a run.

    Args:
        model: not wrapped.
        optimizer: over the groups of `param_groups`.
        ema: average of the weights, if there is one.
        sharding: of a model that is spread over the processes.
    """

    model: nn.Module
    optimizer: Optimizer
    ema: Ema | None
    sharding: "Sharding | None" = None


def save_checkpoint(
    folder: Path, run: Run, progress: Progress, *, identity: Mapping[str, Any], keep: int
) -> Path:
    """Write a checkpoint, then remove all but the last ones; every process calls, and the first one writes.

    Args:
        folder: of the run.
        run: what is saved.
        progress: where it is.
        identity: what the run is, as JSON data; `load_checkpoint` compares it.
        keep: how many checkpoints stay.

    Raises:
        CheckpointError: it cannot be written; those written before are still there.
    """
    path = folder / FOLDER / f"step-{progress.done:08d}.safetensors"
    tensors = _tensors(run)
    if run.sharding is not None:
        tensors = run.sharding.gathered(tensors)
    if rank_and_world()[0] > 0:
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{path.parent} cannot be made: {error.strerror}.") from error
    header = {"format": _FORMAT, "progress": vars(progress), "identity": identity}
    write_safetensors(path, tensors, text={_KEY: json.dumps(header)})
    for old in checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def load_checkpoint(
    path: Path, run: Run, *, identity: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> Progress:
    """Put a run back to where a checkpoint was made.

    Args:
        path: the file.
        run: as it was built for a new run; changed in place.
        identity: what this run is.
        defaults: of what a checkpoint of an older version lacks.

    Raises:
        CheckpointError: damaged, no checkpoint of a run, or one of another run: it says what differs.
    """
    tensors, header = _read(path)
    differing = _differences(_filled(header["identity"], defaults or {}), identity)
    if differing:
        more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        raise CheckpointError(
            f"{path} is a checkpoint of another run: {'; '.join(differing[:_SHOWN])}{more}. Go on with the "
            "settings of that run, or start a new one in another folder (--start begins with its weights)."
        )
    parts = {prefix: _part(tensors, prefix) for prefix in ("model", "ema", "optimizer")}
    if run.sharding is not None:
        parts = {prefix: run.sharding.spread(part) for prefix, part in parts.items()}
    run.model.load_state_dict(parts["model"])
    if run.ema is not None:
        run.ema.load(parts["ema"])
    _load_optimizer(run.optimizer, parts["optimizer"])
    return Progress(**header["progress"])


def checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints of a run, the last one last.

    Args:
        folder: of the run.
    """
    return sorted((folder / FOLDER).glob("step-*.safetensors"))


def remove_parts(folder: Path) -> None:
    """Remove what a killed process had begun to write.

    Args:
        folder: of the run.
    """
    for part in (*folder.glob(".*.part"), *(folder / FOLDER).glob(".*.part")):
        part.unlink(missing_ok=True)


def _tensors(run: Run) -> dict[str, Tensor]:
    tensors = {f"model.{name}": value for name, value in run.model.state_dict().items()}
    if run.ema is not None:
        tensors |= {f"ema.{name}": value for name, value in run.ema.state.items()}
    for group in run.optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in run.optimizer.state[parameter].items():
                tensors[f"optimizer.{name}/{key}"] = value
    return tensors


def _load_optimizer(optimizer: Optimizer, state: Mapping[str, Tensor]) -> None:
    content = optimizer.state_dict()
    names = [name for group in optimizer.param_groups for name in group["names"]]
    numbers = [number for group in content["param_groups"] for number in group["params"]]
    by_name = dict(zip(names, numbers, strict=True))
    found: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        name, _, kind = key.rpartition("/")
        found.setdefault(by_name[name], {})[kind] = value
    optimizer.load_state_dict(content | {"state": found})


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def _read(path: Path) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    try:
        tensors, text = read_weights(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error} Delete it, and the run goes on from the one before it.") from error
    if _KEY not in text:
        raise CheckpointError(f"{path} holds weights, but is no checkpoint of a run: nothing to resume from.")
    header = json.loads(text[_KEY])
    if header["format"] != _FORMAT:
        raise CheckpointError(
            f"{path} has format {header['format']!r}, this version reads {_FORMAT}: go on with the flexvideo "
            "that wrote it."
        )
    return tensors, header


def _filled(saved: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of JSON data, with what another has and it lacks."""
    filled = {**defaults, **saved}
    for name in saved.keys() & defaults.keys():
        if isinstance(saved[name], Mapping) and isinstance(defaults[name], Mapping):
            filled[name] = _filled(saved[name], defaults[name])
    return filled


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    """What differs between two trees of JSON data, a sentence part each."""
    found: list[str] = []
    for name in dict.fromkeys((*saved, *now)):
        one, other = saved.get(name), now.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += _differences(one, other, f"{path}{name}.")
        elif one != other:
            found.append(f"{path}{name} was {one!r} and is {other!r}")
    return found
