"""Models of timm and Hiera that are recognised; tested with timm 1.0.31 and hiera-transformer 0.1.4.

See `flexvideo.families` for what an entry is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from flexvideo.errors import GeometryError, UnsupportedModelError
from flexvideo.families import SizeFree, cached_sizes, conv_sizes, find, register_family
from flexvideo.families_hf import class_named
from flexvideo.geometry import Base, Geometry, as_pair
from flexvideo.plan import ClassRow, Plan, State, Table


@register_family("timm's ViT")
def timm_vit(host: nn.Module) -> Plan | None:
    """ViT of timm: DeiT, DINOv2, FlexiViT and all others of its class, with any class and register tokens.

    Its table may have rows for all of those or for none. With `dynamic_img_size` it would resize the table
    itself, and finds that it has the size already.

    Source: timm, models/vision_transformer.py and models/deit.py.
    """
    if not class_named(host, "timm.models", "VisionTransformer"):
        return None
    image, sizes = find(host, "patch_embed.img_size"), conv_sizes(host, "patch_embed.proj")
    tokens = find(host, "patch_embed.num_patches")
    if find(host, "patch_embed.backbone") is not None or sizes is None or image is None:
        raise UnsupportedModelError(
            f"{type(host).__name__} of timm cannot flex, because its patches come from another network "
            "(`patch_embed`), whose grid follows its own strides: make that network flexible, if it can be."
        )
    height, width = as_pair(image, what="img_size")
    # A patch embedding that takes any size asserts that the patch divides it, or pads.
    base = Base(None, height, width, sizes[0], pads=not find(host, "patch_embed.strict_img_size"))
    table = find(host, "pos_embed")
    rows: tuple[ClassRow, ...] = () if table is None else ("first",) * (table.shape[1] - tokens)
    counts = ("num_prefix_tokens", "num_reg_tokens", "feature_info")
    entries = ("forward", "forward_features", "forward_intermediates", "get_intermediate_layers")
    return Plan(
        base=base,
        patch_embeds=("patch_embed.proj",),
        tables=() if table is None else (Table("pos_embed", axes="space", class_rows=rows),),
        state=cached_sizes(host, "patch_embed", base),
        entries=tuple(name for name in entries if hasattr(host, name)),
        layout="bchw",
        fixed=counts,
    )


@register_family("timm's NaFlexViT")
def naflexvit(host: nn.Module) -> SizeFree | None:
    """NaFlexViT: takes images, or their patches with coordinates, and resizes its table to each.

    Source: timm, models/naflexvit.py.
    """
    if not class_named(host, "timm.models", "NaFlexVit"):
        return None
    return SizeFree(
        "takes images of any size and aspect as it is; its patch flexes where it takes patches instead of "
        "images (timm's `enable_patch_interpolator`)."
    )


@dataclass(frozen=True)
class MaskUnits:
    """Steps, rows and columns of tokens of a Hiera, which must be made of whole mask units.

    Args:
        part: "tokens", "units", or "schedule": what Hiera unrolls after each block, and the grid by then.
        grid: tokens at the base, without time where there is none.
        unit: tokens that must divide the grid, axis by axis.
        patch: pixels of a token along an axis of the frame, for the error.

    Raises:
        GeometryError: a grid of which a unit would be cut.

    Example:
        >>> units = MaskUnits("tokens", grid=(8, 56, 56), unit=(1, 8, 8), patch=4)
        >>> units(Geometry(16, 96, 128, (4, 4), tubelet=2), [8, 56, 56])
        [8, 24, 32]
    """

    part: str
    grid: tuple[int, ...]
    unit: tuple[int, ...]
    patch: int

    def __call__(self, geometry: Geometry, stored: Any) -> Any:
        """Return the sizes at a geometry."""
        grid = (geometry.steps, *geometry.grid)[-len(self.grid) :]
        if any(tokens % unit for tokens, unit in zip(grid, self.unit, strict=True)):
            raise GeometryError(
                f"Hiera works in units of {self.unit[-2]} x {self.unit[-1]} tokens, and cannot run a grid of "
                f"{geometry.grid[0]} x {geometry.grid[1]}: use frames whose sides are multiples of "
                f"{self.unit[-2] * self.patch} x {self.unit[-1] * self.patch} px."
            )
        if self.part == "schedule":
            return {block: (strides, self._scaled(size, grid)) for block, (strides, size) in stored.items()}
        return self._scaled(stored, grid)

    def _scaled(self, stored: Sequence[int], grid: tuple[int, ...]) -> list[int]:
        return [tokens * new // old for tokens, new, old in zip(stored, grid, self.grid, strict=True)]


@register_family("Hiera")
def hiera(host: nn.Module) -> Plan | None:
    """Hiera for images or video, of facebook's own package: a grid of whole mask units of any number.

    Its patches overlap and stay as they are. Its table learns a pattern that repeats in every unit, which
    interpolation blurs (Bolya et al. 2023, "Window attention is bugged"): expect to train it at other sizes.

    Source: facebookresearch/hiera, hiera/hiera.py and hiera/hiera_utils.py.
    """
    if not class_named(host, "hiera", "Hiera"):
        return None
    if class_named(host, "hiera", "MaskedAutoencoderHiera"):
        raise UnsupportedModelError(
            "MaskedAutoencoderHiera cannot flex, because its decoder is built for one grid: load its weights "
            "into a Hiera, and make that flexible."
        )
    grid, stride = tuple(find(host, "tokens_spatial_shape")), tuple(find(host, "patch_stride"))
    unrolled = [math.prod(axis) for axis in zip(*find(host, "unroll").schedule, strict=True)]
    unit = tuple(map(math.lcm, unrolled, find(host, "mask_unit_size")))
    steps, tubelet = (grid[0], stride[0]) if len(grid) == 3 else (1, 1)
    height, width = grid[-2] * stride[-2], grid[-1] * stride[-1]
    blocks = range(len(find(host, "blocks")))
    base = Base(steps * tubelet if len(grid) == 3 else None, height, width, stride[-2:], tubelet)
    parts = (
        ("tokens_spatial_shape", "tokens"),
        ("mask_spatial_shape", "units"),
        ("unroll.size", "tokens"),
        ("reroll.size", "tokens"),
        ("reroll.schedule", "schedule"),
    )
    return Plan(
        base=base,
        patch_embeds=(),
        tables=_hiera_tables(host, video=len(grid) == 3),
        state=tuple(State(name, MaskUnits(part, grid, unit, stride[-1])) for name, part in parts),
        layout="bcthw" if len(grid) == 3 else "bchw",
        channels=find(host, "patch_embed.proj").in_channels,
        # A unit keeps its tokens: other grids have more of them.
        fixed=("config", "mask_unit_size", "mu_size", *(f"blocks.{i}.attn.window_size" for i in blocks)),
    )


def _hiera_tables(host: nn.Module, *, video: bool) -> tuple[Table, ...]:
    if find(host, "sep_pos_embed"):
        return Table("pos_embed_spatial", axes="space"), Table("pos_embed_temporal", axes="time")
    return (Table("pos_embed", axes="joint" if video else "space"),)
