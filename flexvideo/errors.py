"""Every error that the library raises on purpose: one base, so that a caller can catch them all."""


class FlexVideoError(Exception):
    """Base of all errors raised by flexvideo."""


class GeometryError(FlexVideoError, ValueError):
    """A clip, frame, patch or grid size that cannot be run."""


class PlanError(FlexVideoError, ValueError):
    """A model in which the parts to flex could not be found, or were found more than once."""


class NothingToFlexError(FlexVideoError, TypeError):
    """A model that takes clips of any size as it is, and has nothing that could be resampled."""


class UnsupportedModelError(FlexVideoError, TypeError):
    """A model that is wrapped, compiled or parametrized in a way that must be undone first."""


class ConfigError(FlexVideoError, ValueError):
    """An unknown name or a malformed configuration of a policy, a rule or a backend."""


class CheckpointError(FlexVideoError, ValueError):
    """A file or state dict that is not a checkpoint of the expected model."""


class CheckpointWarning(UserWarning):
    """A checkpoint of which something was left out, or made up."""


class HubError(FlexVideoError, OSError):
    """The Hugging Face Hub refuses, lacks what was asked for, or cannot be reached."""


class VideoError(FlexVideoError, ValueError):
    """A video that cannot be read."""


class VideoWarning(UserWarning):
    """A damaged video of which only a part is used."""


class DatasetError(FlexVideoError, ValueError):
    """A data set whose lists, videos or labels are not as they should be."""


class DatasetWarning(UserWarning):
    """A data set of which something is missing."""


class MotionError(FlexVideoError, ValueError):
    """A motion capture file that cannot be read, or holds no clip that was asked for."""


class BackendError(FlexVideoError, RuntimeError):
    """A scan backend that is not available on this machine."""


class BackendMemoryError(BackendError, MemoryError):
    """A scan backend that ran out of memory."""


class TrainingError(FlexVideoError, RuntimeError):
    """A training that cannot go on, or cannot begin where it was told to."""


class MemoryLimitError(TrainingError):
    """A batch that does not fit into memory."""


class MissingExtraError(FlexVideoError, ImportError):
    """An optional dependency that the called function needs."""


def brief(value: object) -> str:
    """A value as an error shows it: in one line, and not all of what is long.

    Args:
        value: anything.

    Example:
        >>> import torch
        >>> brief(["x"]), brief(torch.nn.Sequential(torch.nn.ReLU()))
        ("['x']", 'Sequential(...')
    """
    shown = repr(value)
    line = shown.partition("\n")[0][:80]
    return line if line == shown else f"{line}..."
