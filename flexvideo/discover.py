"""Find what has to flex in a model: by its family, or by names and shapes; what is ambiguous is an error."""

import math
import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from typing import Any, get_args

from torch import nn

from flexvideo.active import flex_within
from flexvideo.candidates import StoredTensor, candidates, convolutions, position_tensors
from flexvideo.check import check_plain, check_plan
from flexvideo.errors import NothingToFlexError, PlanError, UnsupportedModelError
from flexvideo.families import FAMILIES, SizeFree, cached_sizes, conv_sizes, find
from flexvideo.geometry import Base, as_pair
from flexvideo.listing import times
from flexvideo.parts import one_of
from flexvideo.plan import Axes, ClassRow, Plan, Table
from flexvideo.resample import Rule
from flexvideo.unsettled import unsettled

_TIME = re.compile(r"temporal|time|frame", re.IGNORECASE)
_TIME_OUTSIDE = re.compile(r"temporal[^.]*\.|(^|[._])time(_[^.]*)?\.", re.IGNORECASE)  # of a module around it
_BY_HAND = "name the parts: make_flexible(model, plan=Plan(base=..., patch_embeds=..., tables=...))"


def plan_for(
    model: nn.Module,
    *,
    size: int | tuple[int, int] | None = None,
    frames: int | None = None,
    class_token: ClassRow | None = None,
    rule: str | Rule | dict[str, Any] | None = None,
) -> Plan:
    """Find what `make_flexible` would change; print the plan to see it.

    A model of a known family needs no argument. Any other is searched by names and shapes, where `size`,
    `frames` and `class_token` settle what the model does not say; giving one of them skips the families.

    Args:
        model: the model, which is left as it is; that of a flexible model is the plan that it follows.
        size: pixels of the frames that the model was built for.
        frames: frames of the clips that the model was built for.
        class_token: where tables that have one row more than the grid keep that of a class token.
        rule: how to resample; "auto" when None.

    Raises:
        PlanError: no patch embedding, several of them, or a table that fits nothing, listing what was seen.
        NothingToFlexError: a model that takes clips of any size as it is.
        UnsupportedModelError: a model that is wrapped, as torch.compile(model) is, scripted or parametrized,
            or an argument for one that is flexible already.

    Example:
        >>> from flexvideo import VideoMamba, plan_for
        >>> model = VideoMamba(img_size=32, depth=1, embed_dim=16, num_frames=4)
        >>> plan_for(model).parameters
        ('patch_embed.proj.weight', 'pos_embed', 'temporal_pos_embedding')
    """
    flex = flex_within(model)
    hinted = not (size is None and frames is None and class_token is None)
    if flex is not None:
        if hinted or rule is not None:
            raise UnsupportedModelError(
                f"{type(model).__name__} is flexible already, and `size`, `frames`, `class_token` and `rule` "
                "cannot change its plan: make_flexible(model, rule=...) changes the rule, and "
                "for the others restore(model) first."
            )
        return flex.plan
    check_plain(model)
    if class_token is not None:
        one_of(class_token, get_args(ClassRow), "class_token")
    plan = None if hinted else _by_family(model)
    if plan is None:
        try:
            plan = _by_shape(model, size=size, frames=frames, class_token=class_token)
        except PlanError as error:
            error.add_note(candidates(model))
            raise
    plan = plan if rule is None else replace(plan, rule=Rule.of(rule))
    check_plan(model, plan)
    return replace(plan, unknown=unsettled(model, plan))


def check_covered(model: nn.Module) -> None:
    """Refuse a model of which a part was made flexible by itself, and the rest would not follow the clip.

    Args:
        model: a flexible model, or one that holds it.

    Raises:
        UnsupportedModelError: naming the part, and what a family knows around it.
    """
    part = next(path for path, module in model.named_modules() if "_flex" in vars(module))
    for path in ["", *_ancestors(part)] if part else []:
        for family in FAMILIES.values():
            plan = family(model.get_submodule(path))
            names = plan.within(path).parameters if isinstance(plan, Plan) else ()
            if left := [name for name in names if not name.startswith(f"{part}.")]:
                raise UnsupportedModelError(
                    f"`{part}` of {type(model).__name__} was made flexible by itself, and {', '.join(left)} "
                    "would not follow the clip: restore(model) first, then make the whole flexible."
                )


def _by_family(model: nn.Module) -> Plan | None:
    """Plan of the one module in the model that a family recognises; None when there is none.

    Where a family knows a model as well as what is around it, the outermost counts.
    """
    known = {
        path: (name, answer)
        for path, module in model.named_modules()
        for name, family in FAMILIES.items()
        if (answer := family(module)) is not None
    }
    plans = {path for path, (_, answer) in known.items() if isinstance(answer, Plan)}
    found = [
        (name, path, plan)
        for path, (name, plan) in known.items()
        if isinstance(plan, Plan) and not plans & ({"", *_ancestors(path)} - {path})
    ]
    size_free = [(name, answer) for name, answer in known.values() if isinstance(answer, SizeFree)]
    if size_free and not found:
        name, answer = size_free[0]
        raise NothingToFlexError(
            f"{type(model).__name__} has nothing to make flexible, call it as it is: {name} {answer.reason}"
        )
    if len(found) > 1:
        seen = ", ".join(f"{name} at `{path or 'the model'}`" for name, path, _ in found)
        raise PlanError(
            f"{type(model).__name__} holds several models that could be made flexible: {seen}. Call "
            "make_flexible on each of them."
        )
    for name, path, plan in found:
        class_name = type(model.get_submodule(path)).__name__
        return replace(plan, family=f"{name} ({class_name})").within(path)
    return None


def _by_shape(
    model: nn.Module, *, size: int | tuple[int, int] | None, frames: int | None, class_token: ClassRow | None
) -> Plan:
    conv, rejected = _patch_embed(model)
    patch, tubelet = conv_sizes(model, conv) or ((1, 1), 1)
    owners = ["", *_ancestors(conv)]
    tensors = [tensor for tensor in position_tensors(model) if max(tensor.shape[:-1], default=1) > 1]
    if frames is None:
        frames = _frames(model, owners, tensors, tubelet)
    base = Base(frames, *_frame_size(model, owners, size), patch, tubelet)
    is_video = isinstance(find(model, conv), nn.Conv3d) or frames is not None
    tables = tuple(_table(tensor, base, class_token) for tensor in tensors)
    if frames is None:
        _check_none_over_time(tensors, base, is_video=is_video)
    return Plan(
        base=base,
        patch_embeds=(conv,),
        tables=tables,
        state=tuple(state for owner in owners for state in cached_sizes(model, owner, base)),
        entries=tuple(name for name in ("forward", "forward_features") if hasattr(model, name)),
        layout="bcthw" if is_video else "bchw",
        family=f"{type(model).__name__} (by names and shapes)",
        rejected=rejected,
    )


def _patch_embed(model: nn.Module) -> tuple[str, tuple[str, ...]]:
    """Path of the one convolution that can be a patch embedding, and why the others are not."""
    found, rejected = convolutions(model)
    if not found:
        seen = "; ".join(rejected[:8]) or "none"
        raise PlanError(
            f"No patch embedding found in {type(model).__name__}: looked for a Conv2d or Conv3d over 3 "
            f"channels whose stride is its kernel size. Convolutions present: {seen}. If it is something "
            f"else, {_BY_HAND}; a Linear over patches can be named too. Where a stem of several convolutions "
            "cuts the patches, give patch_embeds=() and channels=3: then the patch stays."
        )
    if len(found) > 1:
        raise PlanError(
            f"{type(model).__name__} has {len(found)} convolutions that could be the patch embedding: "
            f"{', '.join(found)}. To choose, {_BY_HAND}."
        )
    return found[0], tuple(rejected)


def _ancestors(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


def _frame_size(
    model: nn.Module, owners: Iterable[str], size: int | tuple[int, int] | None
) -> tuple[int, int]:
    if size is not None:
        return as_pair(size, what="size")
    for owner in owners:
        for name in ("img_size", "image_size"):
            stored = find(model, f"{owner}.{name}" if owner else name)
            if isinstance(stored, int | tuple | list):
                return as_pair(stored, what=name)
    raise PlanError(
        f"{type(model).__name__} does not say which frame size it was built for: looked for `img_size` and "
        "`image_size` on the model and beside its patch embedding. Give it, and the others where it has a "
        'table over time or a class token: plan_for(model, size=224, frames=16, class_token="first").'
    )


def _frames(model: nn.Module, owners: Iterable[str], tensors: list[StoredTensor], tubelet: int) -> int | None:
    for owner in owners:
        stored = find(model, f"{owner}.num_frames" if owner else "num_frames")
        if isinstance(stored, int):
            return stored
    for tensor in tensors:
        if _TIME.search(tensor.label) and len(tensor.shape) in (2, 3):
            return max(tensor.shape[:-1]) * tubelet
    return None


def _table(tensor: StoredTensor, base: Base, class_token: ClassRow | None) -> Table:
    """Return the one reading of a tensor that fits the base."""
    axes: list[Axes] = ["space"] if base.steps is None else ["time", "space", "joint"]
    if _TIME.search(tensor.label) and base.steps is not None:
        axes = ["time"]
    with_class_token: tuple[ClassRow, ...] = (class_token or "first",)
    found = [
        table
        for kind in axes
        for rows in ((), with_class_token)
        for dim in range(len(tensor.shape) - 1)
        if _fits(table := Table(tensor.name, axes=kind, dim=dim, class_rows=rows), tensor, base)
    ]
    grid = times(base.grid)
    if not found:
        in_time = (
            " and none in time, for its frames are unknown (give `frames`)"
            if base.steps is None
            else f" and {base.steps} in time"
        )
        raise PlanError(
            f"{tensor} has the name of a table of positions and fits no grid: looked for {grid} tokens in "
            f"space{in_time}, with and without one class token. {_spread(tensor, base)}Correct `size` and "
            f"`frames` of plan_for(model), or {_BY_HAND}."
        )
    if len(found) > 1:
        raise PlanError(
            f"{tensor} can be a table over {' or '.join(table.axes for table in found)} (grid {grid}, "
            f"{base.steps} steps). To choose, {_BY_HAND}."
        )
    if found[0].class_rows and class_token is None:
        raise PlanError(
            f"{tensor} has one row more than the {math.prod(found[0].size(base))} tokens it runs over, for a "
            'class token, and nothing says where: class_token="first", "middle" or "last", beside the other '
            "arguments of plan_for(model), makes a plan to give to make_flexible."
        )
    return found[0]


def _check_none_over_time(tensors: list[StoredTensor], base: Base, *, is_video: bool) -> None:
    """Refuse tables that fit a frame and may run over time, where as many frames as tokens are possible."""
    of_time = [tensor for tensor in tensors if _TIME_OUTSIDE.search(tensor.name)]
    if of_time or (is_video and len(tensors) > 1):
        seen = ", ".join(map(str, of_time or tensors))
        raise PlanError(
            f"{seen} would fit the {times(base.grid)} tokens of a frame, and may run over time instead, for "
            "nothing says how many frames the model was built for: give `frames` of plan_for(model), or "
            f"{_BY_HAND}."
        )


def _spread(tensor: StoredTensor, base: Base) -> str:
    """What to write where the axes of a table are dimensions of their own."""
    kinds: tuple[Axes, ...] = ("joint", "space")
    for axes, dim in product(kinds, range(len(tensor.shape) - 1)):
        lengths = Table(tensor.name, axes=axes, dim=dim, spread=True).lengths(base)
        if tensor.shape[dim : dim + len(lengths)] == lengths:
            return (
                f"Its axes are dimensions of their own, as in Table({tensor.name!r}, axes={axes!r}, "
                f"dim={dim}, spread=True). "
            )
    return ""


def _fits(table: Table, tensor: StoredTensor, base: Base) -> bool:
    others = [size for dim, size in enumerate(tensor.shape[:-1]) if dim != table.dim]
    return tensor.shape[table.dim] == table.rows(math.prod(table.size(base))) and set(others) <= {1}
