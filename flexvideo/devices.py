"""Whether a device can be used here."""

import torch

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
