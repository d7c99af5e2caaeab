"""Make a model flexible in place and back: the only file that assigns `__class__`."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from flexvideo.active import Flex, flex_of, flex_within
from flexvideo.check import check_plain, check_plan, check_policy
from flexvideo.discover import check_covered, plan_for
from flexvideo.errors import UnsupportedModelError
from flexvideo.families import find
from flexvideo.geometry import ClipSpec
from flexvideo.hosts import flexible_class, takes_patch
from flexvideo.layers import FLEXIBLE_LAYERS, PatchLayer
from flexvideo.plan import Plan, State, Table
from flexvideo.policy import Policy, policy_of
from flexvideo.resample import Rule
from flexvideo.resample import prewarm as prewarm_matrices
from flexvideo.unsettled import check_settled

Model = TypeVar("Model", bound=nn.Module)
CLIP_KIND = "bicubic-aa"  # what resize_clip resizes with
_ORIGINAL = {flexible: plain for plain, flexible in FLEXIBLE_LAYERS.items()}


def make_flexible(
    model: Model,
    *,
    policy: str | Policy | Mapping[str, Any] | None = None,
    rule: str | Rule | Mapping[str, Any] | None = None,
    plan: Plan | None = None,
) -> Model:
    """Let a model run clips of any size, in place; parameters, their names and hooks stay what they are.

    Its patch embedding and tables of positions are resampled inside every forward, from the parameters as
    they are, so that gradients reach them at their own shapes; at the sizes that the model was built for,
    the forward is the original one to the bit. Entry points also take `patch=`, pixels, for that call.
    On a flexible model the call changes the policy or the rule and nothing else. `verify(model, plan=plan)`
    tries a plan out beforehand.

    To compile, compile the blocks: `for block in model.layers: block.compile(dynamic=True)` makes two or
    three graphs for all geometries. `torch.compile(model)` makes one graph a geometry and stops at its
    recompile limit.

    Args:
        model: the model, or one that holds it.
        policy: a policy, its name or its configuration; what the model has when None, and "static-tokens"
            at first.
        rule: how to resample: a rule, its name or its configuration; what the model or the plan has when
            None, and "auto" at first.
        plan: what to make flexible; `plan_for(model)` when None.

    Returns:
        The very same model.

    Raises:
        PlanError: nothing to make flexible was found, or the plan does not fit the model, or the policy
            finds nothing to change in it.
        NothingToFlexError: a model that takes clips of any size as it is.
        UnsupportedModelError: a model that is wrapped, as torch.compile(model) is and model.compile() is not,
            scripted or parametrized, or holds sizes of which nothing says whether they must follow the clip,
            or of which a part alone was made flexible, or a plan for one that is flexible already.
        ConfigError: an unknown policy or rule.
        GeometryError: a policy with frame counts that the model's tubelets do not divide.

    Example:
        >>> import torch
        >>> from flexvideo import VideoMamba, make_flexible
        >>> model = make_flexible(VideoMamba(img_size=32, depth=1, embed_dim=16, num_frames=4))
        >>> model(torch.rand(1, 3, 6, 48, 40)).shape
        torch.Size([1, 1000])
    """
    flex = flex_within(model)
    new_policy = None if policy is None else policy_of(policy)
    new_rule = None if rule is None else Rule.of(rule)
    if flex is None:
        plan = plan_for(model) if plan is None else plan
        check_plan(model, plan)
        check_settled(model, plan)
        plan = plan if new_rule is None else replace(plan, rule=new_rule)
        new_policy = new_policy or policy_of("static-tokens")
        check_policy(plan, new_policy)
        _swap(model, plan, new_policy)
        return model
    if plan is not None:
        raise UnsupportedModelError(
            f"{type(model).__name__} is flexible already: restore(model) first, then give it another plan."
        )
    check_covered(model)
    if new_policy is not None:
        check_policy(flex.plan, new_policy)
    flex.follow(new_policy or flex.policy, replace(flex.plan, rule=new_rule or flex.plan.rule))
    return model


def restore(model: Model) -> Model:
    """Give a flexible model its original classes back, in place; parameters stay as they are now.

    Args:
        model: a flexible model, or one that holds it.

    Returns:
        The very same model.

    Raises:
        UnsupportedModelError: a model that is not flexible, is a part of the one that was made so, or was
            wrapped, compiled or parametrized afterwards.

    Example:
        >>> from flexvideo import VideoMamba, make_flexible, restore
        >>> model = make_flexible(VideoMamba(img_size=32, depth=1, embed_dim=16, num_frames=4))
        >>> type(restore(model)) is VideoMamba
        True
    """
    for module in swapped(model).values():
        kind = type(module)
        module.__class__ = _ORIGINAL.get(kind) or vars(kind)["_flex_host"]
        del module.__dict__["_flex"]
        module.__dict__.pop("_flex_followers", None)
        module.__dict__.pop("_flex_stored", None)
    return model


def swapped(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that make_flexible gave another class, by their paths; that which holds them all comes first.

    Args:
        model: a flexible model, or one that holds it.

    Raises:
        UnsupportedModelError: as `restore`.
    """
    flex = flex_of(model)
    check_plain(model, making=False)
    found = {path: module for path, module in model.named_modules() if vars(module).get("_flex") is flex}
    if len(found) != flex.modules:
        raise UnsupportedModelError(
            f"{type(model).__name__} is a part of the model that was made flexible: restore the whole."
        )
    for module in found.values():
        check_plain(module, making=False)
    return dict(sorted(found.items(), key=lambda item: not {*found.values()} <= {*item[1].modules()}))


def flex_config(model: nn.Module) -> dict[str, Any]:
    """Policy and rule of a flexible model as JSON data: `make_flexible(other, **flex_config(model))`.

    Args:
        model: a flexible model, or one that holds it.

    Raises:
        UnsupportedModelError: a model that is not flexible.

    Example:
        >>> from flexvideo import VideoMamba, flex_config, make_flexible
        >>> model = make_flexible(VideoMamba(img_size=32, depth=1, embed_dim=16, num_frames=4), rule="pi")
        >>> flex_config(model)["rule"]
        {'kernel': 'pi', 'antialias': True}
    """
    flex = flex_of(model)
    return {"policy": flex.policy.to_config(), "rule": flex.plan.rule.to_config()}


def prewarm(model: nn.Module, specs: Iterable[ClipSpec] | None = None) -> None:
    """Build the resampling matrices ahead of the first forward at each size.

    Args:
        model: a flexible model, or one that holds it.
        specs: sizes of the clips to come; all that the policy's training draws when None.

    Raises:
        UnsupportedModelError: a model that is not flexible.
        GeometryError: a spec that the policy cannot run.

    Example:
        >>> from flexvideo import ClipSpec, VideoMamba, make_flexible, prewarm
        >>> model = make_flexible(VideoMamba(img_size=32, depth=1, embed_dim=16, num_frames=4))
        >>> prewarm(model, [ClipSpec(8, 48, 48, (24, 24))])
    """
    flex = flex_of(model)
    plan, base = flex.plan, flex.plan.base
    sizes: set[tuple[str, int, int]] = set()
    for spec in flex.policy.specs(base) if specs is None else specs:
        geometry = flex.policy.geometry(base, spec.frames, spec.height, spec.width, spec.patch)
        kernels = zip(plan.kernel(base), plan.kernel(geometry), strict=True)
        sizes.update((plan.rule.kernel_kind, *pair) for pair in kernels)
        sizes.update({(CLIP_KIND, spec.height, geometry.height), (CLIP_KIND, spec.width, geometry.width)})
        for table in plan.tables:
            sizes.update(zip(table.kinds(plan.rule), table.size(base), table.size(geometry), strict=True))
    wanted = [(kind, old, new) for kind, old, new in sizes if old != new]
    layers = [
        module for module in model.modules() if isinstance(module, PatchLayer) and "_flex" in vars(module)
    ]
    for dtype, device in {(layer.weight.dtype, layer.weight.device) for layer in layers}:
        prewarm_matrices(wanted, dtype=dtype, device=device)


def _swap(model: nn.Module, plan: Plan, policy: Policy) -> None:
    """Change the classes of a model that the plan was checked against."""
    followers: dict[str, dict[str, Table | State]] = {}
    entries: dict[str, list[str]] = {}
    for follower in (*plan.tables, *plan.state):
        path, _, name = follower.name.rpartition(".")
        followers.setdefault(path, {})[name] = follower
    for entry in plan.entries:
        path, _, name = entry.rpartition(".")
        entries.setdefault(path, []).append(name)
    # A model around the one that takes the clip hands `patch` on to it.
    carriers = ("forward",) if "" not in entries and not takes_patch(type(model).forward) else ()
    classes: dict[str, type[nn.Module]] = {
        path: flexible_class(
            type(model.get_submodule(path)),
            tuple(followers.get(path, ())),
            tuple(entries.get(path, ())),
            () if path else carriers,
        )
        for path in {*entries, *followers, ""}
    }
    layers = {path: FLEXIBLE_LAYERS[type(find(model, path))] for path in plan.patch_embeds}
    flex = Flex(plan, policy, channels=_channels(model, plan), modules=len(classes) + len(layers))
    for path, kind in (classes | layers).items():
        module = model.get_submodule(path)
        module.__dict__["_flex"] = flex
        if path in followers:
            module.__dict__["_flex_followers"] = followers[path]
            module.__dict__["_flex_stored"] = {name: vars(module).get(name) for name in followers[path]}
        module.__class__ = kind


def _channels(model: nn.Module, plan: Plan) -> int:
    if plan.channels is not None:
        return plan.channels
    layer = find(model, plan.patch_embeds[0])
    if isinstance(layer, nn.Linear):
        return layer.in_features // (plan.base.tubelet * math.prod(plan.base.patch))
    return layer.in_channels
