"""What a run is, as JSON data: two runs of the same identity compute the same."""

import hashlib
from typing import Any

from torch import nn

from flexvideo.active import flex_within
from flexvideo.data.source import ClipSource
from flexvideo.models import VideoMamba
from flexvideo.policy import Policy
from flexvideo.swap import flex_config
from flexvideo.train.config import TrainConfig

# What decides nothing that is computed. Accumulation counts together with the number of processes.
_FREE = ("accumulate", "shard", "evaluate_every", "log_every", "checkpoint_every", "keep")
_ARCHITECTURE = ("img_size", "patch_size", "depth", "embed_dim", "num_frames", "kernel_size", "num_classes")


def identity(
    model: nn.Module, source: ClipSource, *, policy: Policy, config: TrainConfig, world: int
) -> dict[str, Any]:
    """Describe a run: config, model, sampling, data.

    Args:
        model: that trains.
        source: of the clips.
        policy: what the sizes are drawn from.
        config: the recipe.
        world: processes that share a step.
    """
    labels = hashlib.sha256(repr(source.labels).encode()).hexdigest()[:12]
    return {
        "config": _recipe(config),
        "processes times accumulation": world * config.accumulate,
        "model": _model(model),
        "resampling": None if flex_within(model) is None else flex_config(model),
        "training policy": policy.to_config(),
        "data": {"name": source.name, "classes": list(source.classes), "labels": labels},
    }


def defaults() -> dict[str, Any]:
    """Give what the identity of an older version may lack: fields of recipes, as they were until then."""
    return {"config": _recipe(TrainConfig())}


def _recipe(config: TrainConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_config().items() if name not in _FREE}


def _model(model: nn.Module) -> dict[str, Any]:
    if isinstance(model, VideoMamba):
        return {name: _listed(model.config[name]) for name in _ARCHITECTURE}
    return {name: list(value.shape) for name, value in model.named_parameters()}


def _listed(value: Any) -> Any:
    """As JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value
