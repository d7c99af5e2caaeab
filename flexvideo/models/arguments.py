"""What a VideoMamba can be built from: refused at once, where torch would fail late or compute nonsense."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from flexvideo.errors import ConfigError, GeometryError
from flexvideo.geometry import as_pair

_LEAST = {
    "depth": 1,
    "embed_dim": 1,
    "channels": 1,
    "num_classes": 0,
    "kernel_size": 1,
    "num_frames": 1,
    "checkpoint_num": 0,
}
_FRACTIONS = ("drop_rate", "drop_path_rate", "fc_drop_rate", "norm_epsilon")


def check_arguments(arguments: Mapping[str, Any], dtype: torch.dtype | None) -> None:
    """Refuse arguments of VideoMamba that no model can have.

    Args:
        arguments: all but `device` and `dtype`.
        dtype: of the weights; torch's default when None.

    Raises:
        ConfigError: naming the argument, and what it may be.
    """
    if arguments["init"] not in ("official", "mamba"):
        raise ConfigError(f"Unknown init {arguments['init']!r}; known: 'official', 'mamba'.")
    for name, least in _LEAST.items():
        value = arguments[name]
        if type(value) is not int or value < least:  # `type`, as JSON's true is no number
            raise ConfigError(f"VideoMamba: `{name}` must be a whole number from {least}, got {value!r}.")
    for name in _FRACTIONS:
        value = arguments[name]
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise ConfigError(f"VideoMamba: `{name}` must be a number from 0 to below 1, got {value!r}.")
    if dtype is not None and not dtype.is_floating_point:
        raise ConfigError(f"VideoMamba: `dtype` must be a floating-point one, got {dtype}.")
    size, patch = (pair_of(arguments[name], name) for name in ("img_size", "patch_size"))
    _check_clip((arguments["num_frames"], *size), (arguments["kernel_size"], *patch))


def pair_of(size: int | Sequence[int], name: str) -> tuple[int, int]:
    """Height and width of what is given as such a pair, or as one number for both.

    Args:
        size: pixels.
        name: of the argument.

    Raises:
        ConfigError: it is neither.

    Example:
        >>> pair_of(16, "patch_size"), pair_of([240, 320], "img_size")
        ((16, 16), (240, 320))
    """
    try:
        return as_pair(list(size) if isinstance(size, Sequence) else size, what=name)
    except GeometryError as error:
        raise ConfigError(str(error)) from error


def _check_clip(clip: tuple[int, ...], patch: tuple[int, ...]) -> None:
    if any(side < of_patch for side, of_patch in zip(clip, patch, strict=True)):
        shown = (" x ".join(map(str, sizes)) for sizes in (clip, patch))
        raise ConfigError(
            "A clip of {} (frames, height, width) holds no patch of {}; make the patch smaller or the clip "
            "larger.".format(*shown)
        )
    steps, left = divmod(clip[0], patch[0])
    if left:
        raise ConfigError(
            f"{clip[0]} frames cannot be cut into tubelets of kernel_size={patch[0]}: use "
            f"num_frames={steps * patch[0]} or {(steps + 1) * patch[0]}."
        )
