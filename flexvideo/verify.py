"""Try a plan out: dry forwards that a wrong plan does not get through."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from flexvideo.active import Flex, flex_of, flex_within
from flexvideo.check import check_plan
from flexvideo.discover import plan_for
from flexvideo.errors import FlexVideoError, PlanError, UnsupportedModelError
from flexvideo.geometry import Geometry, as_pair
from flexvideo.listing import times
from flexvideo.plan import Plan, Table
from flexvideo.swap import make_flexible, restore
from flexvideo.unsettled import check_settled

_PLAINLY = (
    "Correct the plan's base, layout or channels; for a model that takes more than a clip give `call`, as in "
    "verify(model, call=lambda model, clip: model(clip, ...))."
)
_AT_BASE = "A State or a Table of the plan is not what the model needs."
_ELSEWHERE = "Something that depends on the size of the clip is missing from the plan, or wrong in it."


def verify(
    model: nn.Module,
    *,
    plan: Plan | None = None,
    frames: int | None = None,
    size: int | tuple[int, int] | None = None,
    call: Callable[[nn.Module, Tensor], Any] = lambda model, clip: model(clip),
) -> None:
    """Try a plan out on a model, which is left as it was: dry forwards at its base and at another size.

    At the base the outputs must be those of the plain model to the bit; at the other size, by default one
    more step, one more row and two more columns of tokens, the forward must run, the patch embedding give
    the grid that the plan expects, and nothing be resized by the model itself. A table that the forward never
    reads is warned of. What no forward can tell, such as tokens in another order, remains to be looked at.

    Args:
        model: a plain model.
        plan: what would be made flexible; `plan_for(model)` when None.
        frames: frames of the other clip.
        size: pixels of the other clip's frames, one number or (height, width).
        call: how to run a clip, for a model that needs more than the clip.

    Raises:
        PlanError: what went wrong, and what it says about the plan.
        GeometryError: another clip that the model cannot be given.
        UnsupportedModelError: a model that make_flexible refuses, is flexible already, or has no values.

    Example:
        >>> from flexvideo import VideoMamba
        >>> verify(VideoMamba(img_size=32, depth=1, embed_dim=16, num_frames=4))
    """
    if flex_within(model) is not None:
        raise UnsupportedModelError(
            f"{type(model).__name__} is flexible already: restore(model) first, then verify it."
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UnsupportedModelError(
            f"{type(model).__name__} is on the meta device, where outputs have no values to compare: "
            "verify it once it has its weights."
        )
    plan = plan_for(model) if plan is None else plan
    check_plan(model, plan)
    check_settled(model, plan)
    read: set[str] = set()
    watched = tuple(
        _Watched(**{each.name: getattr(table, each.name) for each in fields(table)}, read=read)
        for table in plan.tables
    )
    with _dry(model):
        base = _base(plan)
        clip = _clip(model, plan, base.frames, base.height, base.width)
        with _Resizes() as plainly:
            expected = _run(call, model, clip, f"Given {_shown(clip, plan)} the plain model fails", _PLAINLY)
        policy = "static-patch" if "static-patch" in plan.policies else plan.policies[0]
        make_flexible(model, plan=replace(plan, tables=watched), policy=policy)
        try:
            with _Resizes():  # as before: torch leaves its fused layers out while something watches
                found = _run(call, model, clip, "At its base the flexible model fails", _AT_BASE)
            _compare(expected, found, plan)
            _try_other(model, plan, (frames, size), call, plainly.count)
        finally:
            restore(model)
    unread = [table.name for table in plan.tables if table.name not in read]
    if unread:
        warnings.warn(
            f"The forward of {type(model).__name__} never read {', '.join(unread)}: wrong names in the plan, "
            "or tables of another way to call the model.",
            stacklevel=2,
        )


def _try_other(
    model: nn.Module,
    plan: Plan,
    wanted: tuple[int | None, int | tuple[int, int] | None],
    call: Callable[[nn.Module, Tensor], Any],
    resizes: int,
) -> None:
    flex = flex_of(model)
    other = _other(flex, plan, *wanted)
    clip = _clip(model, plan, other.frames, other.height, other.width)
    grids: list[tuple[int, ...]] = []
    hooks = [
        model.get_submodule(path).register_forward_hook(lambda *args: grids.append(tuple(args[2].shape[2:])))
        for path in plan.patch_embeds
        if not isinstance(model.get_submodule(path), nn.Linear)
    ]
    frames = f"{other.frames} frames of " if "t" in plan.layout else ""
    at = f"At {frames}{other.height} x {other.width} px"
    try:
        with _Resizes() as mode:
            outputs = _run(call, model, clip, f"{at} the forward failed", _ELSEWHERE)
    finally:
        for hook in hooks:
            hook.remove()
    _check_grids(grids, other, at)
    if mode.count > resizes:
        raise PlanError(
            f"{at} the model itself resizes a tensor (interpolate or grid_sample), which it "
            "does not at its base: a table is missing from the plan, or a size that the model compares with."
        )
    if not all(output.isfinite().all() for output in outputs if output.is_floating_point()):
        raise PlanError(f"{at} the forward gives values that are not finite.")


def _check_grids(grids: list[tuple[int, ...]], other: Geometry, at: str) -> None:
    for found in grids:
        expected = (other.steps, *other.grid) if len(found) == 3 else other.grid
        if found != expected:
            raise PlanError(
                f"{at} the patch embedding gives a grid of {times(found)}, and the plan expects "
                f"{times(expected)}: correct the patch, tubelet, overlap, stem or pads of its base."
            )


def _compare(expected: list[Tensor], found: list[Tensor], plan: Plan) -> None:
    same = len(expected) == len(found) and all(map(torch.equal, expected, found))
    if not same:
        raise PlanError(
            f"At its base of {plan.base.height} x {plan.base.width} px the flexible model gives other "
            "outputs than the plain one: a State whose value at the base is not what the model stores, or a "
            "model that gives other outputs at every call."
        )


def _base(plan: Plan) -> Geometry:
    base = plan.base
    frames = (base.frames or base.tubelet) if "t" in plan.layout else 1
    return Geometry(frames, base.height, base.width, base.patch, base.tubelet, base.overlap)


def _other(flex: Flex, plan: Plan, frames: int | None, size: int | tuple[int, int] | None) -> Geometry:
    base = _base(plan)
    if frames is None:
        frames = base.frames + base.tubelet if "t" in plan.layout else 1
    default = base.height + base.patch[0], base.width + 2 * base.patch[1]
    height, width = default if size is None else as_pair(size, what="size")
    return flex.policy.geometry(plan.base, frames, height, width)


def _clip(model: nn.Module, plan: Plan, frames: int, height: int, width: int) -> Tensor:
    parameter = next(model.parameters())
    layers = [model.get_submodule(path) for path in plan.patch_embeds]
    channels = plan.channels or getattr(layers[0], "in_channels", 3)
    sizes = {"b": 1, "c": channels, "t": frames, "h": height, "w": width}
    generator = torch.Generator().manual_seed(0)
    clip = torch.rand([sizes[letter] for letter in plan.layout], generator=generator)
    return clip.to(parameter.device, parameter.dtype)


def _shown(clip: Tensor, plan: Plan) -> str:
    return f"a clip of shape {tuple(clip.shape)} ({plan.layout})"


def _run(
    call: Callable[[nn.Module, Tensor], Any], model: nn.Module, clip: Tensor, failure: str, advice: str
) -> list[Tensor]:
    """Tensors that a call returns; an error of the model's own tells about the plan."""
    torch.manual_seed(0)
    try:
        return [leaf for leaf in tree_leaves(call(model, clip)) if isinstance(leaf, Tensor)]
    except FlexVideoError:
        raise
    except Exception as error:
        raise PlanError(f"{failure}: {type(error).__name__}: {error}. {advice}") from error


@contextmanager
def _dry(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, and afterwards the random state and the modes as before."""
    modes = {module: module.training for module in model.modules()}
    with torch.no_grad(), torch.random.fork_rng():
        model.eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training


class _Resizes(TorchFunctionMode):
    """Counts what the model resizes by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (nn.functional.interpolate, nn.functional.grid_sample)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class _Watched(Table):
    """A table that notes when it is read."""

    read: set[str] = field(default_factory=set)

    def follow(self, value: Tensor, **sizes: Any) -> Tensor:
        self.read.add(self.name)
        return super().follow(value, **sizes)
