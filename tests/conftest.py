"""Shared fixtures: fixed seeds, and shape checks that compile and export tests switch off."""

import inspect

import jaxtyping
import pytest
import torch
from packages import installed, package

from flexvideo import Geometry
from flexvideo.data.motion import MotionSet

torch.set_num_threads(1)
# Before any test: torch's exporter imports transformers too, and then without a torchvision that works.
if installed("transformers"):
    package("transformers")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _shape_checks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    off = request.node.get_closest_marker("unchecked") is not None
    if off:
        _unwrap_methods(Geometry, monkeypatch)
    jaxtyping.config.update("jaxtyping_disable", off)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def _unwrap_methods(cls: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo cannot trace the checked methods of an object made inside a graph, even with the checks off."""
    for name, value in list(vars(cls).items()):
        if isinstance(value, property):
            monkeypatch.setattr(cls, name, property(inspect.unwrap(value.fget)))
        elif inspect.isfunction(value):
            monkeypatch.setattr(cls, name, inspect.unwrap(value))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `gpu` need a CUDA device; without one they are left out, and the report says so."""
    if torch.cuda.is_available():
        return
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu:
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]
        config.hook.pytest_deselected(items=gpu)


@pytest.fixture
def few_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two clips of three actions: the set itself would take a minute to draw."""
    original = MotionSet.__init__

    def few(self, *arguments, **settings):
        original(self, *arguments, **settings | {"per_class": 2, "actions": ("jump", "bow", "sit_down")})

    monkeypatch.setattr(MotionSet, "__init__", few)
