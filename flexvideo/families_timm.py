"""Models of timm and Hiera that are recognised; tested with timm 1.0.31 and hiera-transformer 0.1.4.

See `flexvideo.families` for what an entry is.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from flexvideo.errors import GeometryError, UnsupportedModelError
from flexvideo.families import (
    KeptGrid,
    SizeFree,
    cached_sizes,
    conv_sizes,
    find,
    register_family,
    those_stored,
)
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
    return _vit(host) if class_named(host, "timm.models", "VisionTransformer") else None


def size_built_with(geometry: Geometry, stored: dict[str, Any]) -> dict[str, Any]:
    """What timm says that a model was built with, changed as its own `set_input_size` changes it."""
    sizes = {"img_size": (geometry.height, geometry.width)}
    return stored | sizes | ({"patch_size": geometry.patch} if "patch_size" in stored else {})


def _vit(host: nn.Module) -> Plan:
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
    counts = ("num_prefix_tokens", "num_reg_tokens", "feature_info", "reg_token")
    entries = ("forward", "forward_features", "forward_intermediates", "get_intermediate_layers")
    recorded = (name for name in ("_traits", "_model_args") if find(host, name) is not None)
    return Plan(
        base=base,
        patch_embeds=("patch_embed.proj",),
        tables=() if table is None else (Table("pos_embed", axes="space", class_rows=rows),),
        state=cached_sizes(host, "patch_embed", base),
        entries=tuple(name for name in entries if hasattr(host, name)),
        layout="bchw",
        fixed=those_stored(host, *counts),
        baked=tuple(State(name, size_built_with) for name in recorded),
    )


def rotary_at_grid(geometry: Geometry, method: Any) -> Callable[..., Tensor]:
    """`get_embed` of a rotary embedding that was built for one grid, for another, as timm rebuilds it."""
    return functools.partial(_embed_at, method, geometry.grid)


def _embed_at(
    method: Any, grid: tuple[int, int], shape: Any = None, dtype: torch.dtype | None = None
) -> Tensor:
    rope = method.__self__
    if shape is not None or grid == tuple(rope.feat_shape):
        return method(shape, dtype)
    if not hasattr(rope, "_build_embed_cat"):
        return method(list(grid), dtype)
    augment = rope.training and rope.aug_active
    return rope._build_embed_cat(list(grid), rope.bands, dtype=dtype, augment=augment)


@register_family("timm's Eva")
def eva(host: nn.Module) -> Plan | None:
    """EVA, EVA-02, DINOv3 and others of timm's class Eva: rotary positions, a table, or both.

    Rotary positions at another grid are what timm's `set_input_size` makes them: counted on, or stretched
    where the model says of which grid it was (`ref_feat_shape`), or stretched always (DINOv3).

    Source: timm, models/eva.py and layers/pos_embed_sincos.py.
    """
    if not class_named(host, "timm.models", "Eva"):
        return None
    plan = _vit(host)
    sizes = ("feat_shape", "ref_feat_shape", "pos_embed", "pos_embed_cached", "t_x", "t_y")
    built = find(host, "rope.feat_shape") is not None  # else it is asked for the grid at hand
    return replace(
        plan,
        state=(*plan.state, *((State("rope.get_embed", rotary_at_grid),) if built else ())),
        fixed=(*plan.fixed, *those_stored(host, *(f"rope.{name}" for name in sizes))),
    )


@register_family("timm's BEiT")
def beit(host: nn.Module) -> Plan | None:
    """BEiT and BEiT v2 of timm: with relative positions, their grid stays; see BEiT of transformers.

    Source: timm, models/beit.py.
    """
    if not class_named(host, "timm.models", "Beit"):
        return None
    plan = _vit(host)
    index = "relative_position_index"
    owners = [path for path, _ in host.named_modules() if find(host, f"{path}.{index}") is not None]
    built_with = ("relative_position_bias_table", "window_size", "window_area")
    return replace(
        plan,
        state=(*plan.state, *(State(f"{owner}.{index}", KeptGrid(plan.base.grid)) for owner in owners)),
        fixed=(*plan.fixed, *those_stored(host, *(f"{o}.{name}" for o in owners for name in built_with))),
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
