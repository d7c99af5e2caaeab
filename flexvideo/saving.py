"""Models out: one file for `load` and for the official code, and what is recorded beside the weights."""

import os
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from flexvideo.active import flex_within
from flexvideo.errors import CheckpointError, CheckpointWarning, UnsupportedModelError
from flexvideo.imagenet import IMAGENET_MEAN, IMAGENET_STD
from flexvideo.modelconfig import UNSEEN, ModelConfig, agree, parse_config
from flexvideo.models import VideoMamba
from flexvideo.models.videomamba import PatchEmbed
from flexvideo.sources import HEADER_KEY, path_text
from flexvideo.statedict import interpret, some
from flexvideo.swap import flex_config
from flexvideo.weights import SUFFIXES, write_pickle, write_safetensors


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model to one file, for `load` and for the official code: the same bytes for the same model.

    A .safetensors file carries policy, rule, labels, normalisation and licence in its header. Any other is a
    bare state dict for torch.load, as the official files are, and carries tensors only: a warning names what
    it does not record.

    Args:
        model: a VideoMamba, plain or flexible.
        path: the file; it is replaced whole or not at all.

    Raises:
        CheckpointError: it cannot be written, or could not be loaded again.
        UnsupportedModelError: another model, or a wrapped one.
    """
    path = Path(path_text(path, "the file to write"))
    if path.suffix.lower() not in SUFFIXES:
        raise CheckpointError(
            f"{path} ends in none of {', '.join(SUFFIXES)}: `save` writes one file, and "
            "model.save_pretrained a folder."
        )
    text = config_text(model)
    if path.suffix.lower() == ".safetensors":
        write_safetensors(path, model.state_dict(), text={HEADER_KEY: text})
        return
    if forgotten := _not_in_tensors(model):
        message = f"{path} is a bare state dict: it does not record {forgotten}; .safetensors does."
        warnings.warn(message, CheckpointWarning, stacklevel=2)
    write_pickle(path, model.state_dict())


def config_text(model: nn.Module, *, license: str | None = None) -> str:
    """The text of config.json for a model, which `load` is sure to take.

    Args:
        model: a VideoMamba, plain or flexible.
        license: of its weights; the one that it carries by default.

    Raises:
        CheckpointError: tensors that are not those of a VideoMamba, or labels that do not fit them.
        UnsupportedModelError: another model, or a wrapped one.
    """
    if not isinstance(model, VideoMamba):
        inside = next((f"model.{name}" for name in ("_orig_mod", "module") if hasattr(model, name)), None)
        instead = f"the one inside, {inside}" if inside else "its state_dict() and fv.flex_config(model)"
        raise UnsupportedModelError(f"{type(model).__name__} is no VideoMamba: save {instead}.")
    size = model.patch_embed.img_size
    layout = interpret(model.state_dict(), where="the model", img_size=size).layout
    unseen = {name: model.config[name] for name in UNSEEN}
    recorded = flexing(model)
    config = ModelConfig(
        model=layout.arguments | unseen,
        policy=recorded.get("policy"),
        rule=recorded.get("rule"),
        labels=model.labels,
        mean=model.mean,
        std=model.std,
        license=license or model.license,
    )
    text = config.to_text(layout)
    written = parse_config(text, where="the model")
    assert written is not None
    agree(written, layout, where="the model")
    return text


def flexing(model: nn.Module) -> dict[str, Any]:
    """Policy and rule of a flexible model; empty for a plain one."""
    return {} if flex_within(model) is None else flex_config(model)


def _not_in_tensors(model: nn.Module) -> dict[str, Any]:
    """What a bare state dict of a model would not record, and other weights would not have the same."""
    assert isinstance(model, VideoMamba)
    facts = flexing(model) | _size_not_told(model)
    if model.labels is not None:
        facts["labels"] = some(model.labels)
    for name, value, usual in (("mean", model.mean, IMAGENET_MEAN), ("std", model.std, IMAGENET_STD)):
        if tuple(value) != usual:
            facts[name] = tuple(value)
    return facts | ({} if model.license is None else {"license": model.license})


def _size_not_told(model: nn.Module) -> dict[str, Any]:
    """The frame size, where `load` would read another one or none off the shapes of the tensors."""
    embed = model.get_submodule("patch_embed")
    assert isinstance(embed, PatchEmbed)
    height, width = embed.patch_size
    told = {(side * height, side * width) for side in embed.grid_size}
    return {} if told == {embed.img_size} else {"img_size": embed.img_size}
