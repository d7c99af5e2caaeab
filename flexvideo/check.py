"""Refuse what cannot be made flexible, whole, before anything is touched."""

import math
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.utils import parametrize

from flexvideo.errors import PlanError, UnsupportedModelError, brief
from flexvideo.families import find
from flexvideo.hosts import takes_patch
from flexvideo.layers import FLEXIBLE_LAYERS
from flexvideo.plan import Plan, Table
from flexvideo.policy import Policy
from flexvideo.policybase import FRAMES

_WRAP_AFTERWARDS = "call make_flexible first, then wrap the model", "give the model inside (`.module`)"
_UNSHARD = "load its full state dict into a flexible model that is not sharded, and give that one"
_WRAPPERS = {  # what to do to make it flexible, and what to take that back or to bake it
    "OptimizedModule": (
        "call make_flexible on the model inside (`._orig_mod`), or before torch.compile",
        "give the model inside (`._orig_mod`)",
    ),
    "DistributedDataParallel": _WRAP_AFTERWARDS,
    "DataParallel": _WRAP_AFTERWARDS,
    "FullyShardedDataParallel": ("call make_flexible first, then wrap the model", _UNSHARD),
    "FSDPModule": ("call make_flexible first, then fully_shard", _UNSHARD),
    "ScriptModule": (
        "call make_flexible on the model before torch.jit.script or torch.jit.trace",
        "give the model that was scripted",
    ),
}


def check_plain(model: nn.Module, path: str = "", *, making: bool = True) -> None:
    """Refuse a model that is wrapped, or hidden behind a `forward` of its own instance, on the way to a path.

    Args:
        model: the model given by the user.
        path: dotted path of a module in it.
        making: whether it is to be made flexible, or is so, and is to be restored or baked.

    Raises:
        UnsupportedModelError: naming the wrapper and the order to do things in.
    """
    parts = path.split(".") if path else []
    for depth in range(len(parts) + 1):
        module = model.get_submodule(".".join(parts[:depth])) if depth else model  # a ScriptModule finds none
        where = f"`{'.'.join(parts[:depth])}`" if depth else "The model"
        for cls in type(module).__mro__:
            if cls.__name__ in _WRAPPERS and cls.__module__.startswith("torch"):
                remedy = _WRAPPERS[cls.__name__][0 if making else 1]
                raise UnsupportedModelError(f"{where} is wrapped in {cls.__name__}: {remedy}.")
        if parametrize.is_parametrized(module):
            raise UnsupportedModelError(
                f"{where} has parametrized tensors: remove the parametrizations first "
                "(torch.nn.utils.parametrize.remove_parametrizations)."
            )
        if "forward" in module.__dict__:
            raise UnsupportedModelError(
                f"{where} ({_class(module)}) has a `forward` of its own instance, which would hide the "
                "flexible one (torch.compile(model.forward) and accelerate leave one): delete it, or call "
                "make_flexible before it is made."
            )


def check_plan(model: nn.Module, plan: Plan) -> None:
    """Refuse a plan that does not fit the model.

    Args:
        model: a model that is not flexible yet.
        plan: what would be made flexible.

    Raises:
        PlanError: a name that is not there, or a tensor of another size than the plan says.
        UnsupportedModelError: a wrapped or parametrized model.
    """
    if not isinstance(plan, Plan):
        raise PlanError(f"`plan` must be a Plan, as plan_for(model) returns it; got {brief(plan)}.")
    check_plain(model)
    if not plan.entries or not (plan.patch_embeds or plan.channels):
        raise PlanError(
            "A plan needs at least one patch embedding and one entry point. For a model whose patch cannot "
            "change, give the number of `channels` instead of a patch embedding."
        )
    for path in plan.patch_embeds:
        _check_patch_embed(model, path, plan)
    for follower in (*plan.tables, *plan.state):
        owner = _owner(model, follower.name)
        check_plain(model, owner)
        if owner in plan.patch_embeds:
            raise PlanError(f"`{follower.name}` belongs to a patch embedding, which follows by itself.")
        if find(model, follower.name) is None:
            raise PlanError(
                f"{_class(model)} stores nothing at `{follower.name}`; {_there(model, follower.name)}."
            )
    for table in plan.tables:
        _check_table(model, table, plan)
    for name in plan.fixed:
        if not _is_stored(model, name):
            raise PlanError(
                f"{_class(model)} stores nothing at `{name}`, which is in the plan's fixed; "
                f"{_there(model, name)}."
            )
    for entry in plan.entries:
        _check_entry(model, entry)


def check_policy(plan: Plan, policy: Policy) -> None:
    """Refuse a policy that finds nothing to change in a model, or was given frame counts that it cannot run.

    Args:
        plan: what is made flexible.
        policy: chooses the geometries.

    Raises:
        PlanError: naming the policies that apply.
        GeometryError: naming frame counts that the tubelets divide.
    """
    if policy.name not in plan.policies:
        lacks = "a patch that can change" if policy.changes_patch else "an axis of time"
        raise PlanError(
            f"Policy {policy.name!r} does not apply to {plan.family}, which lacks {lacks}: choose from "
            f"{', '.join(map(repr, plan.policies))}."
        )
    if policy.frames != FRAMES:  # the default is of use without them, to run a model and not train it
        policy.check_frames(plan.base)


def _check_patch_embed(model: nn.Module, path: str, plan: Plan) -> None:
    layer = find(model, path)
    if not isinstance(layer, nn.Module):
        raise PlanError(f"{_class(model)} has no module `{path}`; {_there(model, path)}.")
    check_plain(model, path)
    kind = type(layer)
    if kind not in FLEXIBLE_LAYERS:
        raise UnsupportedModelError(
            f"`{path}` is a {kind.__name__}; a patch embedding must be exactly one of "
            f"{', '.join(known.__name__ for known in FLEXIBLE_LAYERS)}: a subclass may compute something "
            "else."
        )
    if layer._parameters.get("weight") is None:
        raise UnsupportedModelError(
            f"The weight of `{path}` is computed by a hook (weight_norm, spectral_norm or pruning): remove "
            "the hook first, then call make_flexible."
        )
    problem = _linear_problem(layer, plan) if isinstance(layer, nn.Linear) else _conv_problem(layer, plan)
    if problem:
        raise PlanError(f"`{path}` is no patch embedding of {_times(plan.base.patch)} px: {problem}.")


def _linear_problem(layer: nn.Linear, plan: Plan) -> str | None:
    pixels = plan.base.tubelet * math.prod(plan.base.patch)
    if plan.base.overlap * plan.base.stem > 1:
        return "a Linear one takes patches that do not overlap, of the frame itself"
    if layer.in_features % pixels:
        return f"its {layer.in_features} input features are no multiple of the {pixels} pixels of a patch"
    return None


def _conv_problem(layer: nn.Module, plan: Plan) -> str | None:
    assert isinstance(layer, nn.Conv2d | nn.Conv3d)
    if layer.kernel_size[-2:] != plan.kernel(plan.base):
        return f"its kernel is {_times(layer.kernel_size[-2:])}"
    if layer.stride[-2:] != plan.stride(plan.base):
        return f"its stride is {_times(layer.stride[-2:])}, so patches overlap or leave gaps"
    if layer.padding != "valid" and (isinstance(layer.padding, str) or layer.padding[-2:] != (0, 0)):
        return f"it pads the frame by {layer.padding}"
    if set(layer.dilation) != {1} or layer.groups != 1 or layer.padding_mode != "zeros":
        return (
            f"dilation {layer.dilation}, groups {layer.groups} and padding mode {layer.padding_mode!r} "
            "are not those of a plain convolution"
        )
    if isinstance(layer, nn.Conv3d) and layer.stride[0] != plan.base.tubelet:
        return f"its stride in time is {layer.stride[0]}, and the plan's tubelet {plan.base.tubelet}"
    return None


def _check_table(model: nn.Module, table: Table, plan: Plan) -> None:
    value, size = find(model, table.name), table.size(plan.base)
    if not isinstance(value, Tensor):
        raise PlanError(f"`{table.name}` is a {type(value).__name__}, not a tensor of positions.")
    if 0 in size:
        raise PlanError(
            f"`{table.name}` runs over time, and the plan's base has no frames: give its `frames`."
        )
    shape, dim, wanted = tuple(value.shape), table.dim, table.lengths(plan.base)
    if shape[dim : dim + len(wanted)] != wanted:
        rows = f" and {len(table.class_rows)} class-token rows" if table.class_rows else ""
        raise PlanError(
            f"`{table.name}` of shape {shape} does not fit its place in the plan: {table.axes} of "
            f"{_times(size)} tokens{rows} needs {_times(wanted)} in dimension {dim}. Correct the plan's "
            "base, or the table's dim and class_rows."
        )


def _check_entry(model: nn.Module, entry: str) -> None:
    path, _, name = entry.rpartition(".")
    owner = find(model, path) if path else model
    method = getattr(type(owner), name, None) if isinstance(owner, nn.Module) else None
    if not callable(method):
        raise PlanError(f"{_class(model)} has no method `{entry}`; {_there(model, entry)}.")
    check_plain(model, path)
    if takes_patch(method):
        raise PlanError(
            f"`{entry}` of {type(owner).__name__} has an argument `patch` of its own, which flexvideo needs "
            "for the patch size of a call: rename it."
        )


def _owner(model: nn.Module, path: str) -> str:
    """Path of the nearest module above a dotted name, the model itself at the last."""
    owner = path.rpartition(".")[0]
    while owner and not isinstance(find(model, owner), nn.Module):
        owner = owner.rpartition(".")[0]
    return owner


def _is_stored(model: nn.Module, path: str) -> bool:
    """Whether a module stores an attribute, or an entry of a configuration in one, whatever its value."""
    owner = _owner(model, path)
    name, _, key = path.removeprefix(f"{owner}.").partition(".")
    module = model.get_submodule(owner)
    if not key:
        return name in {*vars(module), *_stored_names(module)}
    inside = vars(module).get(name)
    return key in (inside if isinstance(inside, dict) else getattr(inside, "__dict__", {}))


def _there(model: nn.Module, path: str) -> str:
    """What is stored beside a name that was not found, the nearest thing to a hint."""
    owner = _owner(model, path)
    names = list(_stored_names(model.get_submodule(owner)))
    return f"`{owner or 'the model'}` holds {', '.join(names[:12]) or 'nothing'}"


def _stored_names(module: nn.Module) -> Iterator[str]:
    yield from module._parameters
    yield from module._buffers
    yield from module._modules


def _class(model: nn.Module) -> str:
    return type(model).__name__


def _times(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))
