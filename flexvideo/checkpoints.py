"""Checkpoints in: official files, other people's, and our own, as models ready to run."""

import logging
import os
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import torch

from flexvideo.description import Description, description
from flexvideo.devices import usable_device
from flexvideo.errors import CheckpointError, CheckpointWarning, ConfigError
from flexvideo.modelconfig import agree
from flexvideo.models import VideoMamba
from flexvideo.policy import Policy
from flexvideo.resample import Rule
from flexvideo.sources import Remote, Source, locate, read
from flexvideo.statedict import FLOATS, Interpretation
from flexvideo.swap import make_flexible
from flexvideo.weights import is_plain

Model = TypeVar("Model", bound=VideoMamba)
logger = logging.getLogger(__name__)


def load(
    repo_or_path: str | os.PathLike[str],
    *,
    filename: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    policy: Policy | str | Mapping[str, Any] | None = None,
    rule: Rule | str | Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> VideoMamba:
    """Load a VideoMamba from a file, a folder or the Hugging Face Hub, in eval mode.

    Reads what `save_pretrained` writes, official .pth files and safetensors, under any common wrapper or
    prefix; the shapes of the tensors say which model it is. A model saved flexible, or loaded with a policy
    or a rule, comes back flexible; any other comes back plain. Pickles that hold code are refused. What a
    file lacks, or what was left out of it, is said in one warning. Another scan backend than "auto" is named
    afterwards, as `block.mixer.scan_backend` of every block in `model.layers`.

    Args:
        repo_or_path: a file, a folder, a repository ("owner/name"), or a name in `list_pretrained()`.
        filename: which file of a folder or repository; needed when it holds several.
        revision: branch, tag or commit of a repository.
        token: of the Hub; True for the stored one.
        cache_dir: where downloads are kept, the Hub client's own place by default.
        local_files_only: take downloads from the cache alone.
        policy: policy of the flexible model; the recorded one by default.
        rule: resampling rule of the flexible model; the recorded one by default, or else "auto".
        dtype: of the weights; that of the file by default.
        device: where to put the model; the CPU by default.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, or not a VideoMamba.
        HubError: the Hub refuses, lacks the file, or cannot be reached.
        ConfigError: an unknown policy or rule, a dtype that weights cannot have, or a device not to be had.

    Example:
        >>> import tempfile, flexvideo
        >>> folder = tempfile.mkdtemp()
        >>> model = flexvideo.VideoMamba(img_size=32, depth=1, embed_dim=16, num_classes=5)
        >>> flexvideo.make_flexible(model, policy="flex-all").save_pretrained(folder)
        >>> flexvideo.flex_config(flexvideo.load(folder))["policy"]["name"]
        'flex-all'
    """
    return load_as(
        VideoMamba,
        repo_or_path,
        filename=filename,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        policy=policy,
        rule=rule,
        dtype=dtype,
        device=device,
    )


def load_as(
    kind: type[Model],
    repo_or_path: str | os.PathLike[str],
    *,
    filename: str | None,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | os.PathLike[str] | None,
    local_files_only: bool,
    force_download: bool = False,
    policy: Policy | str | Mapping[str, Any] | None,
    rule: Rule | str | Mapping[str, Any] | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> Model:
    """Load a VideoMamba as an instance of a class that is one, built with the same arguments.

    Args:
        kind: the class.
        repo_or_path: as `load` takes it.
        filename: as `load` takes it.
        revision: as `load` takes it.
        token: as `load` takes it.
        cache_dir: as `load` takes it.
        local_files_only: as `load` takes it.
        force_download: fetch again what the cache has already.
        policy: as `load` takes it.
        rule: as `load` takes it.
        dtype: as `load` takes it.
        device: as `load` takes it.
    """
    if dtype not in (None, *FLOATS):
        instead = "a dtype of torch, " if isinstance(dtype, str) else "one of "
        raise ConfigError(f"Weights cannot be {dtype!r}: give {instead}{', '.join(map(str, FLOATS))}.")
    if device is not None:
        usable_device(device)
    source = locate(repo_or_path, filename, revision)
    if isinstance(source, Remote):
        from flexvideo import hub

        source = hub.fetch(
            source,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
    found, config = read(source)
    if hollow := [name for name, value in found.state.items() if not is_plain(value)]:
        raise CheckpointError(f"{source.name}: {hollow[0]} has no plain values (a meta or a sparse tensor).")
    model = _build(kind, found, agree(config, found.layout, where=source.name), dtype=dtype, device=device)
    model.labels, model.mean, model.std = config.labels, config.mean, config.std
    model.license, model.source = config.license, source.name
    _report(source, found)
    policy, rule = config.policy if policy is None else policy, config.rule if rule is None else rule
    if policy is not None or rule is not None:
        make_flexible(model, policy=policy, rule=rule)
    return model.eval()


def describe(
    repo_or_path: str | os.PathLike[str],
    *,
    filename: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Description:
    """Say what a checkpoint is, from the header alone where the Hub holds it as safetensors.

    Args:
        repo_or_path: as `load` takes it.
        filename: as `load` takes it.
        revision: as `load` takes it.
        token: as `load` takes it.
        cache_dir: as `load` takes it.
        local_files_only: as `load` takes it.

    Raises:
        CheckpointError: as `load` raises it.
        HubError: as `load` raises it.
    """
    source = locate(repo_or_path, filename, revision)
    if isinstance(source, Remote):
        from flexvideo import hub

        return hub.describe(
            source,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
    found, config = read(source, shapes_only=True)
    agree(config, found.layout, where=source.name)
    return description(found, config, name=source.name, remark=source.remark)


def _build(
    kind: type[Model],
    found: Interpretation,
    arguments: dict[str, Any],
    *,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> Model:
    """A model around the tensors themselves: nothing is initialised only to be overwritten."""
    model = kind(**arguments, device="meta")
    state = {name: value.to(device=device, dtype=dtype).contiguous() for name, value in found.state.items()}
    model.load_state_dict(state, assign=True)
    return model


def _report(source: Source, found: Interpretation) -> None:
    logger.info("Loaded %s (%s)", source.name, found.layout.variant)
    if found.translated:
        logger.info("%s: %s.", source.name, "; ".join(found.translated))
    remarks = [*found.lost, *([source.remark] if source.remark else [])]
    if remarks:
        warnings.warn(f"{source.name}: {'; '.join(remarks)}.", CheckpointWarning, stacklevel=4)
