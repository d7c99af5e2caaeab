"""The geometry in force: set by an entry point of a flexible model, read by everything below it."""

import threading
from collections import deque
from dataclasses import dataclass
from operator import index
from os import PathLike
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch._C._autograd import _get_sequence_nr

from flexvideo.errors import GeometryError, UnsupportedModelError, brief
from flexvideo.geometry import Geometry
from flexvideo.patch import dtype_error
from flexvideo.plan import Layout, Plan
from flexvideo.policy import Policy
from flexvideo.resample import resize_clip

Patch = int | tuple[int, int] | list[int]
Pair = tuple[int, int]
_REMEMBERED = 1024  # forwards, of which a backward pass may still run parts again; and geometries
_DIMENSIONS = {"b": "batch", "c": "channels", "t": "frames", "h": "height", "w": "width"}


class Active(threading.local):
    """What one thread is running: two threads may share a model at two sizes.

    All fields are set in `__init__`, which runs once a thread: torch.compile's guards need them to exist.
    """

    def __init__(self) -> None:
        self.thread = object()  # unlike the system's number of a thread, never used again
        self.geometry: Geometry | None = None
        self.patch: Pair | None = None

    def __reduce__(self) -> tuple[type["Active"], tuple[()]]:
        return Active, ()


@dataclass(frozen=True)
class Run:
    """One call of a flexible model, by the nodes of the autograd graph that it made.

    Args:
        thread: stands for the thread that ran it: each counts its nodes for itself.
        task: backward pass that ran it, when activation checkpointing runs a part again; -1 outside of any.
        first: number of the first node.
        last: number of the node after the last.
        patch: that of the call or of the one around it, which calls inside take over; the policy's when None.
        geometry: what the call ran at; None for a model that only passes the patch on.
    """

    thread: object
    task: int
    first: int
    last: int
    patch: Pair | None
    geometry: Geometry | None


class Flex:
    """What the modules of one flexible model share: its plan, its policy, and the geometry in force.

    Args:
        plan: what was made flexible.
        policy: chooses the geometry for a clip.
        channels: channels of a clip.
        modules: how many modules had their class changed.
    """

    def __init__(self, plan: Plan, policy: Policy, *, channels: int, modules: int) -> None:
        self.plan = plan
        self.policy = policy
        self.channels = channels
        self.modules = modules
        self.active = Active()
        self._runs: deque[Run] = deque(maxlen=_REMEMBERED)
        self._runs_again: list[Run] = []
        self._geometries: dict[tuple[tuple[int, int, int], Pair | None], Geometry] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the graph numbers of this process, which mean nothing in another."""
        return {**vars(self), "_runs": deque(maxlen=_REMEMBERED), "_runs_again": [], "_geometries": {}}

    def follow(self, policy: Policy, plan: Plan) -> None:
        """Change the policy and the plan."""
        self.policy, self.plan, self._geometries = policy, plan, {}

    def ran(self, first: int, geometry: Geometry | None) -> None:
        """Remember the nodes of the autograd graph that a call made, from a sequence number on."""
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return
        task = torch._C._current_graph_task_id()
        run = Run(self.active.thread, task, first, sequence_number(), self.active.patch, geometry)
        if task == -1:
            self._runs.append(run)
        else:
            self._runs_again.append(run)
            torch.autograd.Variable._execution_engine.queue_callback(lambda: self._runs_again.remove(run))

    def geometry_again(self) -> Geometry | None:
        """Geometry of the forward of which activation checkpointing is running a part again, if it is known.

        A recomputed part has no clip of its own to tell by.
        """
        found = {run.geometry for run in self._run_again(geometry=True)}
        return found.pop() if len(found) == 1 else None

    def patch_again(self) -> Pair | None:
        """Patch of the call of which activation checkpointing is running a part again; the policy's if None.

        Raises:
            GeometryError: when calls at different patches could have been this one.
        """
        found = {run.patch for run in self._run_again(geometry=False)}
        if len(found) > 1:
            raise GeometryError(
                "Activation checkpointing runs a part of this model again, and calls in several threads, at "
                f"patches of {', '.join(map(str, found))}, could have been this one: pass `patch` inside the "
                "function that is checkpointed."
            )
        return found.pop() if found else None

    def _run_again(self, *, geometry: bool) -> list[Run]:
        """Innermost call, one a thread, that made the node whose backward is running.

        The checkpoint that runs a part again is such a node, or needs the part for one. A node made in a
        backward pass runs in another, inside the first, and in the same thread; its number may be that of a
        node of the forward's thread too.
        """
        number, task = torch._C._current_autograd_node()._sequence_nr(), torch._C._current_graph_task_id()
        again = [run for run in self._runs_again if run.thread is self.active.thread and run.task != task]
        for runs in (again, tuple(self._runs)):
            found: dict[object, Run] = {}
            for run in runs:  # a call ends, and stands here, before the one around it
                if run.first <= number < run.last and not (geometry and run.geometry is None):
                    found.setdefault(run.thread, run)
            if found:
                return list(found.values())
        return []

    def geometry(self, clip: Any, patch: Pair | None) -> Geometry:
        """Geometry for a clip: the one in force where an entry point hands its own clip to another.

        Args:
            clip: what the entry point was called with.
            patch: pixels, for this call; that of the enclosing call, or else the policy's, when None.

        Raises:
            GeometryError: when the clip or the patch cannot be run.
        """
        sizes, active = self._sizes(clip), self.active.geometry
        if (
            active is not None
            and (active.frames, active.height, active.width) == sizes
            and (patch is None or patch == active.patch)
        ):
            return active
        patch = self.active.patch if patch is None else patch
        if torch.compiler.is_compiling():
            return self._solve(sizes, patch)
        geometry = self._geometries.get((sizes, patch))
        if geometry is None:
            if len(self._geometries) >= _REMEMBERED:
                self._geometries.clear()
            geometry = self._geometries[sizes, patch] = self._solve(sizes, patch)
        return geometry

    def _solve(self, sizes: tuple[int, int, int], patch: Pair | None) -> Geometry:
        geometry = self.policy.geometry(self.plan.base, *sizes, patch)
        if geometry.patch != self.plan.base.patch and not self.plan.patch_embeds:
            raise GeometryError(
                f"The patch of this model cannot change: it stays {self.plan.base.patch[0]} x "
                f"{self.plan.base.patch[1]} px, and this call asks for {geometry.patch[0]} x "
                f"{geometry.patch[1]} px."
            )
        return geometry

    def fit(self, clip: Tensor, geometry: Geometry, model: nn.Module) -> Tensor:
        """Return the clip at the frame size that a geometry asks for; the very same one if it has it."""
        size = geometry.height, geometry.width
        if tuple(clip.shape[-2:]) == size:
            return clip
        if not clip.is_floating_point():
            raise dtype_error(clip, next(model.parameters()), self.plan.layout)
        if clip.ndim == 4:
            return resize_clip(clip.unsqueeze(2), size).squeeze(2)
        return resize_clip(clip, size)

    def _sizes(self, clip: Any) -> tuple[int, int, int]:
        layout: Layout = self.plan.layout
        if not isinstance(clip, Tensor) or clip.ndim != len(layout):
            if not isinstance(clip, Tensor):
                found, remedy = type(clip).__name__, ""
            else:
                found, remedy = f"shape {tuple(clip.shape)}", _rank_remedy(clip, layout)
            raise GeometryError(f"The model takes clips as ({_names(layout)}), got {found}.{remedy}")
        sizes = dict(zip(layout, clip.shape, strict=True))
        if sizes["c"] != self.channels:
            raise GeometryError(
                f"The model takes clips as ({_names(layout)}) with {self.channels} channels, got shape "
                f"{tuple(clip.shape)}, which has {sizes['c']}.{_channels_remedy(clip, layout, self.channels)}"
            )
        # `index`, unlike `int`, makes torch.export and torch.compile specialise on the sizes, which decide on
        # shapes everywhere: half-symbolic ones take inductor minutes.
        return index(sizes.get("t", 1)), index(sizes["h"]), index(sizes["w"])


def sequence_number() -> int:
    """Number of the next node of the autograd graph that this thread makes; 0 where `Flex.ran` keeps none."""
    recording = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return _get_sequence_nr() if recording else 0


def in_backward() -> bool:
    """Whether a backward pass is calling, outside of compiled graphs."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def flex_within(model: nn.Module) -> Flex | None:
    """What makes a model flexible, or the one part of it that is; None when nothing is.

    Args:
        model: any model.

    Raises:
        UnsupportedModelError: when it is no model, or holds several flexible models.
    """
    if not isinstance(model, nn.Module):
        path = " (flexvideo.load reads a model from a path)" if isinstance(model, str | PathLike) else ""
        raise UnsupportedModelError(f"Give a model, a torch.nn.Module; got {brief(model)}{path}.")
    found = {
        id(flex): flex for module in model.modules() if (flex := module.__dict__.get("_flex")) is not None
    }
    if len(found) > 1:
        raise UnsupportedModelError(
            f"{type(model).__name__} holds {len(found)} flexible models: call this on each of them."
        )
    return next(iter(found.values()), None)


def flex_of(model: nn.Module) -> Flex:
    """What makes a model flexible.

    Args:
        model: a flexible model, or one that holds it.

    Raises:
        UnsupportedModelError: when it is not flexible, or holds several flexible models.
    """
    flex = flex_within(model)
    if flex is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} is not flexible: call make_flexible(model) first."
        )
    return flex


def _rank_remedy(clip: Tensor, layout: Layout) -> str:
    """What to do about a clip of other dimensions."""
    if clip.ndim == len(layout) - 1:
        return " One clip is a batch of one: clip[None]."
    if clip.ndim == 5 and layout == "bchw":
        return (
            " If it takes clips of several frames, restore(model) and give a plan that says so: "
            "plan_for(model, frames=...), or one with layout='bcthw' or 'btchw'."
        )
    return ""


def _channels_remedy(clip: Tensor, layout: Layout, channels: int) -> str:
    """What to do about a clip of other channels: another order of dimensions, or other colours."""
    at, found = layout.index("c"), clip.shape[layout.index("c")]
    others = [other for other in get_args(Layout) if len(other) == len(layout)]
    if fitting := [other for other in others if clip.shape[other.index("c")] == channels]:
        return "".join(f" For {other} give a plan with layout={other!r}." for other in fitting)
    if channels == 3 and found == 1:
        sizes = ", ".join("3" if dimension == at else "-1" for dimension in range(clip.ndim))
        return f" Grey frames in colour are clip.expand({sizes})."
    if channels == 3 and found == 4:
        return f" Without the fourth, such as the alpha of RGBA, it is clip[{':, ' * at}:3]."
    return ""


def _names(layout: Layout) -> str:
    return ", ".join(_DIMENSIONS[letter] for letter in layout)
