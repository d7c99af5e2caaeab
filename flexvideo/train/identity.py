"""What a run is, as JSON data: two runs of the same identity compute the same."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from flexvideo.active import flex_within
from flexvideo.data.held import HeldSource
from flexvideo.data.source import ClipSource
from flexvideo.models import VideoMamba
from flexvideo.policy import Policy
from flexvideo.swap import flex_config
from flexvideo.train.config import TrainConfig
from flexvideo.train.validation import normalisation

# What decides nothing that is computed. Accumulation counts together with the number of processes.
_FREE = ("accumulate", "shard", "evaluate_every", "log_every", "checkpoint_every", "keep")
_ARCHITECTURE = ("img_size", "patch_size", "depth", "embed_dim", "num_frames", "kernel_size", "num_classes")


def identity(
    model: nn.Module, source: ClipSource, *, policy: Policy, config: TrainConfig, world: int
) -> dict[str, Any]:
    """Describe a run: config, model, sampling, data; by what the set calls its clips, wherever they lie.

    Args:
        model: that trains.
        source: of the clips.
        policy: what the sizes are drawn from.
        config: the recipe.
        world: processes that share a step.
    """
    clips = [(record.id, record.start, record.end) for record in source.listed()]
    return {
        "config": _recipe(config),
        "processes times accumulation": world * config.accumulate,
        "model": _model(model),
        "resampling": None if flex_within(model) is None else flex_config(model),
        "training policy": policy.to_config(),
        "colours": {name: list(value) for name, value in normalisation(model).items()},
        "drop path": model.config["drop_path_rate"] if isinstance(model, VideoMamba) else None,
        "data": {
            "name": source.name,
            "classes": list(source.classes),
            "labels": _digest(source.labels),
            "clips": _digest(clips),
            "held": list(source.videos.shape[1:4]) if isinstance(source, HeldSource) else None,
        },
    }


def defaults(now: Mapping[str, Any]) -> dict[str, Any]:
    """Give what the identity of an older version may lack.

    Fields of recipes count as they were until then; of the rest nothing is known, so it counts as it is now.

    Args:
        now: identity of this run.
    """
    data = {name: now["data"][name] for name in ("clips", "held")}
    unknown = {name: now[name] for name in ("colours", "drop path")}
    return {"config": _recipe(TrainConfig()), "data": data, **unknown}


def _recipe(config: TrainConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_config().items() if name not in _FREE}


def _model(model: nn.Module) -> dict[str, Any]:
    if isinstance(model, VideoMamba):
        return {name: _listed(model.config[name]) for name in _ARCHITECTURE}
    return {name: list(value.shape) for name, value in model.named_parameters()}


def _digest(values: Sequence[Any]) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:12]


def _listed(value: Any) -> Any:
    """As JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value
