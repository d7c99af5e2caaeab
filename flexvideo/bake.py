"""Fix a flexible model at one geometry: the host's own class again, its parameters resampled for good."""

import copy
import warnings

import torch
from torch import Tensor, nn

from flexvideo.active import Patch, flex_of
from flexvideo.errors import GeometryError
from flexvideo.families import find
from flexvideo.geometry import Geometry, as_pair
from flexvideo.layers import PatchLayer, weight_at
from flexvideo.plan import Plan
from flexvideo.swap import Model, restore, swapped


def bake(model: Model, *, frames: int, size: int | tuple[int, int], patch: Patch | None = None) -> Model:
    """Make a plain model of one geometry, to export and to ship: a copy, of the host's own class.

    Its outputs are those of the flexible model to the bit, and its state dict loads into a model built for
    that geometry; a warning says of a table that is in no state dict. Where the policy resizes the clip, the
    baked model takes the resized one, and a warning says of which size.

    Args:
        model: a flexible model, or one that holds it; left as it is.
        frames: frames of a clip.
        size: pixels of a frame, one number or (height, width).
        patch: pixels of a patch, one number or (height, width); the policy's when None.

    Raises:
        UnsupportedModelError: a model that is not flexible, or was wrapped afterwards.
        GeometryError: sizes that the policy cannot run.

    Example:
        >>> from flexvideo import VideoMamba, bake, make_flexible
        >>> model = make_flexible(VideoMamba(img_size=32, depth=1, embed_dim=16, num_frames=4))
        >>> small = bake(model, frames=2, size=16)
        >>> type(small), small(torch.rand(1, 3, 2, 16, 16)).shape
        (<class 'flexvideo.models.videomamba.VideoMamba'>, torch.Size([1, 1000]))
    """
    flex = flex_of(model)
    if type(frames) is not int:
        raise GeometryError(f"`frames` must be a whole number, got {frames!r}.")
    height, width = as_pair(size, what="size")
    geometry = flex.policy.geometry(flex.plan.base, frames, height, width, patch)
    path = next(iter(swapped(model)))  # of the model that the names of the plan are of
    baked = restore(copy.deepcopy(model))
    host = baked.get_submodule(path)
    with torch.no_grad():
        for name in flex.plan.patch_embeds:
            _bake_patch_embed(find(host, name), geometry, flex.plan)
        for follower in (*flex.plan.tables, *flex.plan.state, *flex.plan.baked):
            stored = find(host, follower.name)
            value = follower.follow(stored, base=flex.plan.base, geometry=geometry, rule=flex.plan.rule)
            _store(host, follower.name, value)
    resized = {table.name for table in flex.plan.tables if table.size(flex.plan.base) != table.size(geometry)}
    unsaved = resized - host.state_dict().keys()
    if unsaved:
        warnings.warn(
            f"A state dict of the baked model lacks {', '.join(sorted(unsaved))}, and a model built for that "
            "size may have another there: save the baked model whole, or these tensors too.",
            stacklevel=2,
        )
    if (geometry.height, geometry.width) != (height, width):
        warnings.warn(
            f"The baked model takes clips of {frames} frames of {geometry.height} x {geometry.width} px: at "
            f"{height} x {width} px the policy {flex.policy.name!r} resizes the clip to that size, and the "
            "baked model resizes nothing.",
            stacklevel=2,
        )
    return baked


def _bake_patch_embed(layer: PatchLayer, geometry: Geometry, plan: Plan) -> None:
    weight = weight_at(layer, geometry, plan)
    if weight is layer.weight:
        return
    layer.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    if isinstance(layer, nn.Linear):
        layer.in_features = weight.shape[1]
        return
    layer.kernel_size = (*layer.kernel_size[:-2], *plan.kernel(geometry))
    layer.stride = (*layer.stride[:-2], *plan.stride(geometry))


def _store(model: nn.Module, name: str, value: object) -> None:
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    stored = module._parameters.get(attribute)
    if stored is not None and isinstance(value, Tensor) and value is not stored:
        value = nn.Parameter(value, requires_grad=stored.requires_grad)
    setattr(module, attribute, value)
