"""Devices: whether one can be used here, and in which dtype it computes."""

import torch
from torch import Tensor

from flexvideo.errors import ConfigError


def usable_device(device: torch.device | str) -> torch.device:
    """Return a device, of which it is certain that tensors can be put there.

    Args:
        device: as torch takes it.

    Raises:
        ConfigError: torch does not know it, was not built for it, or finds none.

    Example:
        >>> usable_device("cpu")
        device(type='cpu')
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:  # torch asserts that it was built for it
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ConfigError(f"Device {device!r} cannot be used here: {reason}.") from error


def products_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which products with this tensor are computed: autocast's where it is on, but for float64.

    Args:
        x: floating point.
    """
    device = x.device.type
    if (
        device == "meta" or x.dtype == torch.float64
    ):  # the former has no autocast, the latter is left as it is
        return x.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
