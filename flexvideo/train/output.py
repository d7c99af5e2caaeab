"""What a finished run leaves: a model that loads."""

import json
from pathlib import Path

from torch import nn

from flexvideo.active import flex_within
from flexvideo.models import VideoMamba
from flexvideo.swap import flex_config
from flexvideo.weights import write_safetensors

WEIGHTS = "model.safetensors"


def save_model(model: nn.Module, folder: Path) -> None:
    """Write a model to a folder: ours as `flexvideo.load` reads it, any other as weights, policy and rule.

    The policy and rule of another's model are JSON in the header of the weights, under "flexvideo".

    Args:
        model: plain or flexible.
        folder: that is there.

    Raises:
        CheckpointError: it cannot be written.
    """
    if isinstance(model, VideoMamba):
        model.save_pretrained(folder)
        return
    config = {} if flex_within(model) is None else flex_config(model)
    write_safetensors(folder / WEIGHTS, model.state_dict(), text={"flexvideo": json.dumps(config)})
