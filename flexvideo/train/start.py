"""What a model needs before it trains on something new: a head for the classes, a rate of drop path."""

from collections.abc import Sequence

import torch
from torch import nn

from flexvideo.errors import ConfigError
from flexvideo.models import VideoMamba
from flexvideo.models.videomamba import DropPath


def replace_head(model: VideoMamba, classes: Sequence[str]) -> VideoMamba:
    """Give a model a new linear head for the named classes, in place; masked-pretrained ones have none yet.

    The weights are drawn from torch's generator, as those of a new model are.

    Args:
        model: plain or flexible.
        classes: their names, which the model keeps as `labels`.

    Returns:
        The very same model.

    Example:
        >>> from flexvideo import VideoMamba
        >>> model = replace_head(VideoMamba(img_size=32, depth=1, embed_dim=16), ["jump", "bow", "clap"])
        >>> model.head.out_features, model.labels
        (3, ('jump', 'bow', 'clap'))
    """
    weight = model.norm_f.weight
    head = nn.Linear(model.embed_dim, len(classes), device=weight.device, dtype=weight.dtype)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    model.head, model.num_classes, model.labels = head, len(classes), tuple(classes)
    model.config["num_classes"] = len(classes)
    return model


def set_drop_path(model: nn.Module, rate: float) -> None:
    """Set the drop-path rate of a model's last block; it grows linearly with depth, as when it was built.

    Args:
        model: plain or flexible, one of ours.
        rate: 0 to below 1.

    Raises:
        ConfigError: another model.

    Example:
        >>> from flexvideo import VideoMamba
        >>> model = VideoMamba(img_size=32, depth=3, embed_dim=16)
        >>> set_drop_path(model, 0.5)
        >>> [layer.drop_path.rate for layer in model.layers], model.drop_path.rate
        ([0.0, 0.0, 0.25], 0.5)
    """
    if not isinstance(model, VideoMamba):
        raise ConfigError(
            f"Drop path of a {type(model).__name__} is its own matter: set it where the model is built, and "
            "leave `drop_path` at None."
        )
    rates = [0.0, *torch.linspace(0, rate, len(model.layers), device="cpu").tolist()]
    drops = [module for module in model.modules() if isinstance(module, DropPath)]
    for drop, each in zip(drops, rates, strict=True):  # the last of both is the model's own, after the blocks
        drop.rate = each
    model.config["drop_path_rate"] = rate
