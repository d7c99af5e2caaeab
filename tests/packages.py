"""Packages with models, imported when a test needs them: two of them take seconds."""

import functools
import importlib
import importlib.util
import warnings
from types import ModuleType

import torch


def installed(name: str) -> bool:
    """Whether there is a package of this name, or the one that has this module."""
    return importlib.util.find_spec(name.partition(".")[0]) is not None


@functools.cache
def package(name: str) -> ModuleType:
    """Import a package or a module of one, which the test extra brings.

    Torchvision comes first, which transformers and timm import where it is installed.
    """
    if installed("torchvision"):
        _torchvision()
    with warnings.catch_warnings():
        # hiera names a module of timm by its former path.
        warnings.filterwarnings("ignore", "Importing from timm.models.layers", FutureWarning)
        return importlib.import_module(name)


@functools.cache
def _torchvision() -> None:
    """Torchvision from PyPI is built for CUDA: beside a torch for CPUs it misses two operators of its own.

    None of its models for video uses them.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        for operator in ("nms", "qnms"):
            signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            _LIBRARY.define(f"{operator}{signature}")
        importlib.import_module("torchvision")


_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
