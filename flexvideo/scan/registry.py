"""Which scan backends exist, which of them can run here, and which one `auto` takes."""

import functools
import importlib
import os
import warnings
from types import ModuleType

import torch
from torch.autograd import forward_ad

from flexvideo.errors import BackendError, ConfigError
from flexvideo.nearest import did_you_mean

BACKENDS = ("reference", "chunked", "cpu", "cuda", "triton", "mamba-ssm")
HOME = os.getpid()  # the process that imported this, and torch
FAST = {"cuda": ("cuda", "triton", "mamba-ssm"), "cpu": ("cpu",)}
_loaded: dict[str, ModuleType] = {}


def available_backends() -> dict[str, str | None]:
    """Every backend by name, with None where it can run and one sentence saying why where it cannot.

    Example:
        >>> from flexvideo.scan import available_backends
        >>> available_backends()["reference"] is None
        True
    """
    return {name: reason(name) for name in BACKENDS}


def backend_for(name: str, device: str, dtype: torch.dtype) -> ModuleType:
    """The module that runs for this name, device type and dtype.

    Raises:
        ConfigError: an unknown name.
        BackendError: a backend that cannot run here, or not within a function transform.
    """
    chosen = _choose(name, device, dtype)
    if chosen != "reference" and transformed():
        raise BackendError(
            f"The scan backend {chosen!r} has a backward pass and nothing else, and torch.func or "
            "forward-mode differentiation needs more: build the model with scan_backend='reference'."
        )
    return _loaded[chosen]


def transformed() -> bool:
    """Whether a transform of torch.func or forward-mode AD is at work: torch would give zeros."""
    functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    return functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


transformed._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def check_name(name: str) -> None:
    """Refuse a name that no backend has; whether it can run here is another question.

    Args:
        name: "auto" or a name of `available_backends()`.

    Raises:
        ConfigError: an unknown name, listing those that are known.
    """
    if name not in ("auto", *BACKENDS):
        known = ("auto", *BACKENDS)
        instead = did_you_mean(name, known) if isinstance(name, str) else ""
        raise ConfigError(f"Unknown scan backend {name!r}; known: {str(known)[1:-1]}.{instead}")


def _choose(name: str, device: str, dtype: torch.dtype) -> str:
    check_name(name)
    if torch.onnx.is_in_onnx_export():
        chosen = "onnx"
    elif name == "auto":
        chosen = "reference" if dtype == torch.float64 else _preferred(device)
    elif why := reason(name):
        raise BackendError(f"The scan backend {name!r} cannot run here: {why} Use 'auto'.")
    elif name == "cpu" and device not in (
        "cpu",
        "meta",
    ):  # its kernels would take addresses for those of the host
        raise BackendError(
            f"The scan backend 'cpu' is for tensors on the CPU, and these are on {device!r}: use 'auto'."
        )
    else:
        chosen = name
    load(chosen)
    return chosen


# A constant to the compiler, which can follow neither imports nor caches; it then finds the module loaded.
# `torch.compiler.assume_constant_result` does just this, and imports the whole compiler, which takes seconds.
_choose._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def load(name: str) -> ModuleType:
    """A backend's module, imported when first asked for."""
    if name not in _loaded:
        _loaded[name] = importlib.import_module(f"flexvideo.scan.{name.replace('-', '_')}")
    return _loaded[name]


@functools.cache
def reason(name: str) -> str | None:
    """Why a backend cannot run here, in one sentence, or None."""
    try:
        return load(name).unavailable()
    except ImportError as error:
        if name in FAST["cuda"] and not torch.cuda.is_available():
            return "it needs a CUDA device."  # to install the module would not help
        return f"the module {error.name!r} is not installed."


@functools.cache
def _preferred(device: str) -> str:
    """The first fast backend of the device that can run, else the slow one, saying once why."""
    reasons = {name: reason(name) for name in FAST.get(device, ())}
    chosen = next((name for name, why in reasons.items() if why is None), "chunked")
    if chosen == "chunked" and device != "meta":  # where nothing is computed
        whys = " ".join(f"{name}: {why}" for name, why in reasons.items())
        whys = whys or f"No backend has kernels for this device: they are for {' and '.join(FAST)}."
        warnings.warn(f"Selective scans on {device!r} take the slow path in torch. {whys}", stacklevel=4)
    return chosen
