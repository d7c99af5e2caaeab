"""Which scan backends exist, which of them can run here, and which one `auto` takes."""

import functools
import importlib
import warnings
from types import ModuleType

import torch
from torch import Tensor

from flexvideo.errors import BackendError, ConfigError

MODULES = {
    "reference": "flexvideo.scan.reference",
    "chunked": "flexvideo.scan.chunked",
    "cpu": "flexvideo.scan.cpu",
    "triton": "flexvideo.scan.triton",
    "mamba-ssm": "flexvideo.scan.mamba_ssm",
}
FAST = {"cuda": ("triton", "mamba-ssm"), "cpu": ("cpu",)}
ONNX = "flexvideo.scan.onnx"


def available_backends() -> dict[str, str | None]:
    """Every backend by name, with None where it can run and one sentence saying why where it cannot.

    Example:
        >>> from flexvideo.scan import available_backends
        >>> available_backends()["reference"] is None
        True
    """
    return {name: reason(name) for name in MODULES}


def backend_for(name: str, x: Tensor) -> ModuleType:
    """The module that runs for this name and tensor.

    Raises:
        ConfigError: an unknown name.
        BackendError: a backend that cannot run here.
    """
    if torch.onnx.is_in_onnx_export():
        return importlib.import_module(ONNX)
    if name == "auto":
        return module("reference" if x.dtype == torch.float64 else _preferred(x.device.type))
    if name not in MODULES:
        raise ConfigError(f"Unknown scan backend {name!r}; known: 'auto', {str(list(MODULES))[1:-1]}.")
    if why := reason(name):
        raise BackendError(f"The scan backend {name!r} cannot run here: {why} Use 'auto'.")
    return module(name)


@functools.cache
def module(name: str) -> ModuleType:
    """A backend's module, imported when first asked for."""
    return importlib.import_module(MODULES[name])


@functools.cache
def reason(name: str) -> str | None:
    """Why a backend cannot run here, in one sentence, or None."""
    try:
        return module(name).unavailable()
    except ImportError as error:
        return f"the module {error.name!r} is not installed."


@functools.cache
def _preferred(device: str) -> str:
    """The first fast backend of the device that can run, else the slow one, saying once why."""
    reasons = {name: reason(name) for name in FAST.get(device, ())}
    chosen = next((name for name, why in reasons.items() if why is None), "chunked")
    if chosen == "chunked" and reasons:
        whys = " ".join(f"{name}: {why}" for name, why in reasons.items())
        warnings.warn(f"Selective scans on {device!r} take the slow path in torch. {whys}", stacklevel=4)
    return chosen
