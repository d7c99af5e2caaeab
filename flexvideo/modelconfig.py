"""What travels with the weights: config.json, and the same text in the header of a safetensors file."""

import json
import re
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flexvideo.errors import CheckpointError, FlexVideoError
from flexvideo.layout import Layout
from flexvideo.models.hub_mixin import IMAGENET_MEAN, IMAGENET_STD
from flexvideo.policy import policy_of
from flexvideo.resample import Rule

LIBRARY, ARCHITECTURE = "flexvideo", "VideoMamba"
FORMAT = 1
LICENCE = "an identifier as the Hub spells it, such as 'apache-2.0' or 'other'"
# What tensors do not tell about an architecture; everything else is read from them, and only checked here.
UNSEEN = ("norm_epsilon", "drop_rate", "drop_path_rate", "fc_drop_rate")  # each from 0 to 1
_LARGEST = 1e38  # of float32, in which the colours are
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclass(frozen=True)
class ModelConfig:
    """How to build and feed a model, and how it flexes.

    Args:
        model: keyword arguments of `flexvideo.VideoMamba`; any of them may be left out.
        policy: `Policy.to_config()` of a flexible model; None for a plain one.
        rule: `Rule.to_config()` of a flexible model; None for a plain one.
        labels: class names in the order of the head's rows; None when unknown.
        mean: of the colour channels, subtracted from frames in [0, 1].
        std: of the colour channels, by which they are divided then.
        license: identifier of the weights' licence; None when unknown.
        origin: where it was read, to call it in messages.
    """

    model: dict[str, Any]
    policy: dict[str, Any] | None = None
    rule: dict[str, Any] | None = None
    labels: tuple[str, ...] | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    license: str | None = None
    origin: str = "config.json"

    @property
    def img_size(self) -> tuple[int, int] | None:
        """Frame height and width in pixels, where recorded."""
        size = self.model.get("img_size")
        return None if size is None else (size, size) if isinstance(size, int) else tuple(size)

    def to_text(self, layout: Layout) -> str:
        """The text of config.json; always the same for the same content.

        Raises:
            CheckpointError: something that JSON cannot hold.
        """
        base = layout.base
        content = {
            "library": LIBRARY,
            "format": FORMAT,
            "architecture": ARCHITECTURE,
            "model": self.model,
            "base": {
                "frames": base.frames,
                "height": base.height,
                "width": base.width,
                "patch": list(base.patch),
                "tubelet": base.tubelet,
            },
            "policy": self.policy,
            "rule": self.rule,
            "labels": self.labels,
            "mean": self.mean,
            "std": self.std,
            "license": self.license,
        }
        try:
            text = json.dumps(content, indent=2, ensure_ascii=False)
        except TypeError as error:
            raise CheckpointError(f"labels, mean and std must be plain lists or tuples: {error}.") from error
        # Halves of characters, which UTF-8 does not allow, become the escapes that JSON has for them.
        return text.encode(errors="backslashreplace").decode() + "\n"


def parse_config(text: str, *, where: str) -> ModelConfig | None:
    """Read config.json; None when it is another library's.

    Args:
        text: the content of the file.
        where: how to call it in messages.

    Raises:
        CheckpointError: no JSON, a value of the wrong kind, or a format newer than this version reads.

    Example:
        >>> parse_config('{"library": "flexvideo", "rule": {"kernel": "paper", "antialias": false}}',
        ...              where="config.json").rule
        {'kernel': 'paper', 'antialias': False}
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not JSON: {error}.") from error
    if not is_flexvideos(content):
        return None
    if content.get("format", FORMAT) != FORMAT:
        raise CheckpointError(
            f"{where} has format {content['format']!r}, this version reads {FORMAT}: upgrade flexvideo."
        )
    architecture = content.get("architecture", ARCHITECTURE)
    _expect(architecture == ARCHITECTURE, where, "architecture", repr(ARCHITECTURE), architecture)
    model, labels = content.get("model", {}), content.get("labels")
    mean, std = content.get("mean", IMAGENET_MEAN), content.get("std", IMAGENET_STD)
    _expect(isinstance(model, dict), where, "model", "an object", model)
    _expect(labels is None or _list_of(labels, str), where, "labels", "a list of names", labels)
    _expect(_numbers(mean, -_LARGEST), where, "mean", "a list of numbers", mean)
    _expect(_numbers(std, 0.0), where, "std", "a list of numbers above 0", std)
    _check_sizes(model, where)
    policy, rule, license = content.get("policy"), content.get("rule"), content.get("license")
    _expect(license is None or is_licence(license), where, "license", LICENCE, license)
    return ModelConfig(
        model=model,
        policy=None if policy is None else _known(policy_of, policy, where).to_config(),
        rule=None if rule is None else _known(Rule.of, rule, where).to_config(),
        labels=None if labels is None else tuple(labels),
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
        license=license,
        origin=where,
    )


def is_flexvideos(content: Any) -> bool:
    """Whether what a config.json holds is of this library.

    Example:
        >>> is_flexvideos({"library": "flexvideo"}), is_flexvideos({"lr": 1})
        (True, False)
    """
    return isinstance(content, dict) and content.get("library") == LIBRARY


def is_licence(value: object) -> bool:
    """Whether it has the form of the Hub's identifiers of licences.

    Example:
        >>> is_licence("cc-by-nc-4.0"), is_licence("MIT License")
        (True, False)
    """
    return isinstance(value, str) and _LICENCE.fullmatch(value) is not None


def agree(config: ModelConfig, layout: Layout, *, where: str) -> dict[str, Any]:
    """Keyword arguments of the model: from its tensors, and from its config what tensors do not tell.

    Args:
        config: what was recorded.
        layout: what the tensors are.
        where: how to call the checkpoint in messages.

    Raises:
        CheckpointError: the two contradict each other.
    """
    arguments = layout.arguments
    for name, found in arguments.items():
        recorded = config.model.get(name, found)
        if _pair(recorded) != _pair(found):
            raise CheckpointError(
                f"{config.origin} says {name} = {recorded}, but the tensors of {where} are of a model with "
                f"{found}: correct it, or keep the two in different folders."
            )
    if config.labels is not None and len(config.labels) != layout.num_classes:
        raise CheckpointError(
            f"{config.origin} has {len(config.labels)} labels, but the head of {where} has "
            f"{layout.num_classes} classes."
        )
    for name, value, usual in (("mean", config.mean, IMAGENET_MEAN), ("std", config.std, IMAGENET_STD)):
        is_own = value != usual or len(config.mean) != len(config.std)
        if is_own and len(value) != layout.channels:
            raise CheckpointError(
                f"{config.origin} has {name} = {list(value)}, but {where} takes {layout.channels} colour "
                "channels: give a number for each."
            )
    return arguments | {name: float(config.model[name]) for name in UNSEEN if name in config.model}


def _check_sizes(model: dict[str, Any], where: str) -> None:
    size = model.get("img_size", 1)
    sides = [size] if isinstance(size, int) else size
    positive = _list_of(sides, int) and len(sides) in (1, 2) and min(sides) > 0
    _expect(positive, where, "model.img_size", "pixels or [height, width]", size)
    for name in UNSEEN:
        value = model.get(name, 0.0)
        fits = type(value) in (float, int) and 0 <= value <= 1
        _expect(fits, where, f"model.{name}", "a number from 0 to 1", value)


def _known(read: Callable[[Any], Any], value: object, where: str) -> Any:
    try:
        return read(value)
    except (FlexVideoError, TypeError) as error:
        raise CheckpointError(f"{where}: {error}") from error


def _expect(holds: bool, where: str, name: str, expected: str, found: object) -> None:
    if not holds:
        raise CheckpointError(f"{where}: {name} must be {expected}, found {reprlib.repr(found)}.")


def _list_of(value: object, *kinds: type) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(type(item) in kinds for item in value)


def _numbers(value: Any, above: float) -> bool:
    """Whether it is a list of finite numbers above a bound; NaN is above none."""
    return _list_of(value, float, int) and all(above < item < _LARGEST for item in value)


def _pair(value: Any) -> Any:
    """A size as a pair, whichever way it was written; other values as they are."""
    if isinstance(value, list | tuple):
        return tuple(value)
    return (value, value)
