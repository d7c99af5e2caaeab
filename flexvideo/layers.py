"""Patch embeddings that resample their own kernel to the patch in force, and stride by it.

A host's layer takes one of these classes in place (`flexvideo.swap`), so that its parameters, names and hooks
stay what they are. At the base patch each runs the host's own forward.
"""

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from flexvideo.active import Flex
from flexvideo.errors import GeometryError
from flexvideo.geometry import Geometry
from flexvideo.patch import PatchConv3d, check_dtype, patch_conv3d
from flexvideo.plan import Plan
from flexvideo.resample import resample_kernel

PatchLayer = nn.Conv2d | nn.Conv3d | nn.Linear


def weight_at(layer: PatchLayer, geometry: Geometry, plan: Plan) -> Float[Tensor, "o ..."]:
    """Weight of a patch embedding at a geometry: the very same parameter where its patch does not change.

    Args:
        layer: patch embedding at the base of the plan.
        geometry: sizes to resample it to.
        plan: holds the rule, and for a Linear layer how a patch is flattened.

    Example:
        >>> from flexvideo import Base, Plan
        >>> plan = Plan(base=Base(None, 32, 32, (16, 16)), patch_embeds=("0",), linear_order="hwc")
        >>> weight_at(nn.Linear(3 * 16 * 16, 8), Geometry(1, 32, 32, (8, 8)), plan).shape
        torch.Size([8, 192])
    """
    if geometry.patch == plan.base.patch:
        return layer.weight
    if not isinstance(layer, nn.Linear):
        return resample_kernel(layer.weight, (*layer.kernel_size[:-2], *plan.kernel(geometry)), plan.rule)
    flat = {"chw": "o (c t h w)", "hwc": "o (t h w c)"}[plan.linear_order]
    tubelet, (height, width) = plan.base.tubelet, plan.base.patch
    kernel = rearrange(layer.weight, f"{flat} -> o c t h w", t=tubelet, h=height, w=width)
    return rearrange(resample_kernel(kernel, (tubelet, *geometry.patch), plan.rule), f"o c t h w -> {flat}")


def check_at_base(input: Float[Tensor, "... h w"], plan: Plan) -> None:
    """Refuse what an entry point would resize or resample for, where none is running.

    Args:
        input: what a patch embedding is called with; its frames are those of the clip, or padded.
        plan: holds the base and the entry points.

    Raises:
        GeometryError: for frames that are not those of the base.
    """
    base, size = plan.base, tuple(input.shape[-2:])
    if not base.pads and size != (base.height // base.stem, base.width // base.stem):
        raise GeometryError(
            f"A patch embedding of a flexible model is called with frames of {size[0]} x {size[1]} px "
            f"outside of {', '.join(plan.entries)}, where nothing follows the size of the clip: call the "
            "model by one of these, or add the method that you call to `entries` of its plan."
        )


class FlexibleConv2d(nn.Conv2d):
    """A `Conv2d` patch embedding of a flexible model."""

    _flex: Flex

    def forward(self, input: Float[Tensor, "*b c h w"]) -> Float[Tensor, "*b o h2 w2"]:
        """Embed the frames at the patch in force."""
        geometry, plan = self._flex.active.geometry, self._flex.plan
        check_dtype(input, self.weight, plan.layout)
        if geometry is None:
            check_at_base(input, plan)
        if geometry is None or geometry.patch == plan.base.patch:
            return super().forward(input)
        return F.conv2d(input, weight_at(self, geometry, plan), self.bias, stride=plan.stride(geometry))


class FlexibleConv3d(nn.Conv3d):
    """A `Conv3d` patch embedding of a flexible model; time keeps its kernel, stride and padding."""

    _flex: Flex

    def forward(self, input: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b o t2 h2 w2"]:
        """Embed the clip at the patch in force."""
        geometry, plan = self._flex.active.geometry, self._flex.plan
        check_dtype(input, self.weight, plan.layout)
        if geometry is None:
            check_at_base(input, plan)
        if geometry is None or geometry.patch == plan.base.patch:
            return super().forward(input)
        stride = (self.stride[0], *plan.stride(geometry))
        return F.conv3d(input, weight_at(self, geometry, plan), self.bias, stride, self.padding)


class FlexiblePatchConv3d(PatchConv3d):
    """A `PatchConv3d` patch embedding of a flexible model."""

    _flex: Flex

    def forward(self, input: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b o t2 h2 w2"]:
        """Embed the clip at the patch in force."""
        geometry, plan = self._flex.active.geometry, self._flex.plan
        check_dtype(input, self.weight, plan.layout)
        if geometry is None:
            check_at_base(input, plan)
            return super().forward(input)
        return patch_conv3d(input, weight_at(self, geometry, plan), self.bias)


class FlexibleLinear(nn.Linear):
    """A `Linear` patch embedding of a flexible model: its input holds flattened patches."""

    _flex: Flex

    def forward(self, input: Float[Tensor, "*b features"]) -> Float[Tensor, "*b o"]:
        """Embed flattened patches of the size in force."""
        geometry, plan = self._flex.active.geometry, self._flex.plan
        check_dtype(input, self.weight, plan.layout)
        if geometry is None:
            return super().forward(input)
        return F.linear(input, weight_at(self, geometry, plan), self.bias)


FLEXIBLE_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: FlexibleConv2d,
    nn.Conv3d: FlexibleConv3d,
    PatchConv3d: FlexiblePatchConv3d,
    nn.Linear: FlexibleLinear,
}
