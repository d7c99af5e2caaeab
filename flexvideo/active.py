"""The geometry in force: set by an entry point of a flexible model, read by everything below it."""

import threading
from collections import deque
from operator import index
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch._C._autograd import _get_sequence_nr

from flexvideo.errors import GeometryError, UnsupportedModelError
from flexvideo.geometry import Geometry, as_pair
from flexvideo.plan import Layout, Plan
from flexvideo.policy import Policy
from flexvideo.resample import resize_clip

Patch = int | tuple[int, int] | list[int]
_REMEMBERED = 1024  # forwards, of which a backward pass may still run parts again
_DIMENSIONS = {"b": "batch", "c": "channels", "t": "frames", "h": "height", "w": "width"}


class Active(threading.local):
    """What one thread is running: two threads may share a model at two sizes.

    Both fields are set in `__init__`, which runs once a thread: torch.compile's guards need them to exist.
    """

    def __init__(self) -> None:
        self.geometry: Geometry | None = None
        self.patch: Patch | None = None

    def __reduce__(self) -> tuple[type["Active"], tuple[()]]:
        return Active, ()


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
        self._runs: deque[tuple[int, int, Geometry]] = deque(maxlen=_REMEMBERED)

    def __getstate__(self) -> dict[str, Any]:
        """Without the graph numbers of this process, which mean nothing in another."""
        return {**vars(self), "_runs": deque(maxlen=_REMEMBERED)}

    def ran(self, first: int, geometry: Geometry) -> None:
        """Remember the nodes of the autograd graph that an entry point made, from a sequence number on."""
        if not torch.compiler.is_compiling() and torch.is_grad_enabled():
            self._runs.append((first, sequence_number(), geometry))

    def run_again(self) -> Geometry | None:
        """Geometry of the forward of which activation checkpointing is running a part again, if it is known.

        A recomputed part has no clip of its own to tell by; the node whose backward needs it has a number
        that falls into those of its forward. Each thread counts for itself, so two may claim it.
        """
        number = torch._C._current_autograd_node()._sequence_nr()
        found = {geometry for first, last, geometry in self._runs if first <= number < last}
        return found.pop() if len(found) == 1 else None

    def geometry(self, clip: Any, patch: Patch | None) -> Geometry:
        """Geometry for a clip: the one in force where an entry point hands its own clip to another.

        Args:
            clip: what the entry point was called with.
            patch: pixels, for this call; that of the enclosing call, or else the policy's, when None.

        Raises:
            GeometryError: when the clip or the patch cannot be run.
        """
        frames, height, width = self._sizes(clip)
        active = self.active.geometry
        if (
            active is not None
            and (active.frames, active.height, active.width) == (frames, height, width)
            and (patch is None or as_pair(patch) == active.patch)
        ):
            return active
        patch = self.active.patch if patch is None else patch
        geometry = self.policy.geometry(self.plan.base, frames, height, width, patch)
        if geometry.patch != self.plan.base.patch and not self.plan.patch_embeds:
            raise GeometryError(
                f"The patch of this model cannot change: it stays {self.plan.base.patch[0]} x "
                f"{self.plan.base.patch[1]} px, and this call asks for {geometry.patch[0]} x "
                f"{geometry.patch[1]} px."
            )
        return geometry

    def fit(self, clip: Tensor, geometry: Geometry) -> Tensor:
        """Return the clip at the frame size that a geometry asks for; the very same one if it has it."""
        size = geometry.height, geometry.width
        if tuple(clip.shape[-2:]) == size:
            return clip
        if not clip.is_floating_point():
            raise GeometryError(
                f"A clip of {clip.shape[-2]} x {clip.shape[-1]} px must be resized to {size[0]} x {size[1]} "
                f"px, and this one holds {clip.dtype}: convert and normalise it first."
            )
        if clip.ndim == 4:
            return resize_clip(clip.unsqueeze(2), size).squeeze(2)
        return resize_clip(clip, size)

    def _sizes(self, clip: Any) -> tuple[int, int, int]:
        layout: Layout = self.plan.layout
        if not isinstance(clip, Tensor) or clip.ndim != len(layout):
            found = f"shape {tuple(clip.shape)}" if isinstance(clip, Tensor) else type(clip).__name__
            raise GeometryError(f"The model takes clips as ({_names(layout)}), got {found}.")
        sizes = dict(zip(layout, clip.shape, strict=True))
        if sizes["c"] != self.channels:
            others = [other for other in get_args(Layout) if other != layout and len(other) == len(layout)]
            raise GeometryError(
                f"The model takes clips as ({_names(layout)}) with {self.channels} channels, got "
                f"shape {tuple(clip.shape)}, which has {sizes['c']}."
                + "".join(f" For {other} give a plan with layout={other!r}." for other in others)
            )
        # `index`, unlike `int`, makes torch.export and torch.compile specialise on the sizes, which decide on
        # shapes everywhere: half-symbolic ones take inductor minutes.
        return index(sizes.get("t", 1)), index(sizes["h"]), index(sizes["w"])


def sequence_number() -> int:
    """Number of the next node of the autograd graph that this thread makes; 0 in a graph being compiled."""
    return 0 if torch.compiler.is_compiling() else _get_sequence_nr()


def in_backward() -> bool:
    """Whether a backward pass is calling, outside of compiled graphs."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def flex_within(model: nn.Module) -> Flex | None:
    """What makes a model flexible, or the one part of it that is; None when nothing is.

    Args:
        model: any model.

    Raises:
        UnsupportedModelError: when it holds several flexible models.
    """
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


def _names(layout: Layout) -> str:
    return ", ".join(_DIMENSIONS[letter] for letter in layout)
