"""Models of torchvision that are recognised; tested with torchvision 0.26 and 0.28.

See `flexvideo.families` for what an entry is.
"""

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from flexvideo.families import (
    conv_sizes,
    either_side,
    find,
    grid_size,
    patch_size,
    register_family,
    step_count,
)
from flexvideo.families_hf import class_named
from flexvideo.geometry import Base, Geometry
from flexvideo.plan import Plan, State, Table


@register_family("torchvision's MViT")
def mvit(host: nn.Module) -> Plan | None:
    """MViT v1 and v2: patches that overlap and stay; a class token with a position of its own.

    v1 has tables for space and time. v2 has relative ones in every block, which it resizes itself, linearly
    along each axis, to the grid that it is told.

    Source: torchvision, models/video/mvit.py.
    """
    if not class_named(host, "torchvision.models", "MViT"):
        return None
    conv, grid = find(host, "conv_proj"), find(host, "pos_encoding.spatial_size")
    tubelet, rows, columns = conv.stride
    steps = find(host, "pos_encoding.temporal_size")
    tables = (
        Table("pos_encoding.spatial_pos", axes="space", dim=0),
        Table("pos_encoding.temporal_pos", axes="time", dim=0),
    )
    return Plan(
        base=Base(steps * tubelet, grid[0] * rows, grid[1] * columns, (rows, columns), tubelet),
        patch_embeds=(),
        tables=tables if find(host, tables[0].name) is not None else (),
        state=(
            State("pos_encoding.spatial_size", grid_size),
            State("pos_encoding.temporal_size", step_count),
        ),
        channels=conv.in_channels,
        fixed=tuple(name for name, _ in host.named_parameters() if ".rel_pos_" in name),
    )


@register_family("torchvision's ViT")
def vit(host: nn.Module) -> Plan | None:
    """ViT: one number for both sides of a patch, which it divides by.

    Source: torchvision, models/vision_transformer.py.
    """
    sizes = conv_sizes(host, "conv_proj")
    if not class_named(host, "torchvision.models", "VisionTransformer") or sizes is None:
        return None
    side = find(host, "image_size")
    return Plan(
        base=Base(None, side, side, sizes[0]),
        patch_embeds=("conv_proj",),
        tables=(Table("encoder.pos_embedding", axes="space", class_rows=("first",)),),
        state=(State("image_size", either_side), State("patch_size", patch_size)),
        layout="bchw",
        fixed=("seq_length",),  # read when it is built only
    )


def kernel_size(geometry: Geometry, stored: tuple[int, int, int]) -> tuple[int, int, int]:
    """Frames, height and width of a patch."""
    return geometry.tubelet, *geometry.patch


def window_bias(geometry: Geometry, method: Any) -> Callable[[list[int]], Tensor]:
    """`get_relative_position_bias` for windows that a small grid cuts: the part of the window that is left.

    By itself the model takes the first of all its positions, which are another part unless only time is cut.
    """
    return functools.partial(_bias_of_part, method)


def _bias_of_part(method: Any, window: list[int]) -> Tensor:
    attention = method.__self__
    full = attention.window_size
    if window[1:] == full[1:]:
        return method(window)
    index = attention.relative_position_index.view(*full, *full)
    for axis, size in enumerate((*window, *window)):
        index = index.narrow(axis, 0, size)
    tokens = window[0] * window[1] * window[2]
    table = attention.relative_position_bias_table
    return table[index.flatten()].view(tokens, tokens, -1).permute(2, 0, 1).unsqueeze(0)


@register_family("torchvision's Swin3D")
def swin3d(host: nn.Module) -> Plan | None:
    """Video Swin: takes clips of any size, with tables for windows; its patch flexes.

    Where a grid is smaller than a window, relative positions are put right. It does not store the frame size
    that it was built for; all of its weights were trained at 224 px, which is where 56 x 56 tokens are.

    Source: torchvision, models/video/swin_transformer.py.
    """
    if not class_named(host, "torchvision.models", "SwinTransformer3d"):
        return None
    sizes = conv_sizes(host, "patch_embed.proj")
    assert sizes is not None
    layers = [path for path, module in host.named_modules() if hasattr(module, "relative_position_index")]
    fixed = ("window_size", "shift_size", "relative_position_index", "relative_position_bias_table")
    return Plan(
        base=Base(None, 224, 224, *sizes, pads=True),
        patch_embeds=("patch_embed.proj",),
        state=(
            State("patch_embed.tuple_patch_size", kernel_size),
            *(State(f"{layer}.get_relative_position_bias", window_bias) for layer in layers),
        ),
        fixed=tuple(f"{layer}.{name}" for layer in layers for name in fixed),
    )
