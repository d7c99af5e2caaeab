"""What a result is about, as plain data: which weights, run how, on which clips."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flexvideo.active import flex_within
from flexvideo.data.source import ClipSource, VideoSource
from flexvideo.discover import plan_for
from flexvideo.evaluate.native import NativeSize
from flexvideo.swap import flex_config

_TRIED = 3  # drawn clips that are looked at to tell one set from another


@dataclass(frozen=True)
class ModelFacts:
    """Which weights, and how they meet clips of other sizes.

    Args:
        source: where they came from, or the class of the model.
        weights: SHA-256 over names, shapes, types and values; the same in whatever file they lie.
        parameters: how many numbers.
        policy: configuration of the policy; `{"name": "native"}` of `NativeSize`, None of a plain model.
        rule: configuration of the resampling rule; None where nothing is resampled.
        base: sizes that the model was built for.
    """

    source: str
    weights: str
    parameters: int
    policy: dict[str, Any] | None
    rule: dict[str, Any] | None
    base: dict[str, Any]


@dataclass(frozen=True)
class SourceFacts:
    """Which clips.

    Args:
        data: name of the data set.
        split: such as "test".
        fold: which of the official divisions into splits, where there are several.
        clips: how many.
        classes: how many.
        digest: SHA-256 over what the set calls them, their classes, and the sizes of their files; of drawn
            ones, over some that were drawn small.
        omitted: how many more the lists of the set name that are not there.
    """

    data: str
    split: str
    fold: str | None
    clips: int
    classes: int
    digest: str
    omitted: int = 0


def facts_of_model(model: nn.Module) -> ModelFacts:
    """Say what is to be known of a model.

    Args:
        model: flexible, `NativeSize` or plain.

    Example:
        >>> from flexvideo import VideoMamba
        >>> model = VideoMamba(img_size=32, patch_size=8, depth=1, embed_dim=16, num_frames=4)
        >>> facts_of_model(NativeSize(model)).policy
        {'name': 'native'}
    """
    inner = model.model if isinstance(model, NativeSize) else model
    flexing: dict[str, Any] = {} if flex_within(inner) is None else flex_config(inner)
    base = plan_for(inner).base
    return ModelFacts(
        source=getattr(inner, "source", None) or type(inner).__name__.removeprefix("Flexible"),
        weights=_hash_weights(inner),
        parameters=sum(parameter.numel() for parameter in inner.parameters()),
        policy={"name": "native"} if inner is not model else flexing.get("policy"),
        rule=flexing.get("rule"),
        base=asdict(base) | {"patch": list(base.patch)},
    )


def facts_of_source(source: ClipSource) -> SourceFacts:
    """Say which clips a source gives, so that two sources of one name are told apart.

    Clips that a GPU holds are told by their pixels as it resizes them, which a CPU rounds otherwise.

    Args:
        source: files or drawn clips.
    """
    digest = hashlib.sha256("\n".join(source.classes).encode())
    for index, label in enumerate(source.labels):
        digest.update(f"\n{label}".encode())
        if isinstance(source, VideoSource):  # not its path: the set may lie elsewhere on another machine
            record, file = source.videos[index], Path(source.identify(index))
            size = file.stat().st_size if file.is_file() else None
            digest.update(f" {record.id} {record.start} {record.end} {size}".encode())
    if not isinstance(source, VideoSource):
        for index in {len(source) * part // _TRIED for part in range(_TRIED)} if len(source) else ():
            digest.update(source.read(index, frames=2, size=16).contiguous().cpu().numpy().tobytes())
    videos = source.listed()
    split = getattr(getattr(source, "clips", None), "split", videos.split)  # of a drawn set
    return SourceFacts(
        data=videos.name,
        split=split,
        fold=videos.fold,
        clips=len(source),
        classes=len(source.classes),
        digest=digest.hexdigest(),
        omitted=len(videos.omitted),
    )


def _hash_weights(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
