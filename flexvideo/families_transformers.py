"""Video transformers from repositories without packages that are recognised.

The facts of each are in the file that its docstring names; see `flexvideo.families` for what an entry is.
"""

import math
from dataclasses import replace

from torch import Tensor, nn

from flexvideo.errors import GeometryError, UnsupportedModelError
from flexvideo.families import (
    KeptGrid,
    SizeFree,
    cached_sizes,
    clip_tokens,
    conv_sizes,
    find,
    frame_count,
    frame_tokens,
    patch_size,
    register_family,
    rows_of_grid,
)
from flexvideo.geometry import Base, Geometry, as_pair
from flexvideo.plan import Plan, State, Table


@register_family("TimeSformer")
def timesformer(host: nn.Module) -> Plan | None:
    """TimeSformer, and the module around it that its repository builds.

    By itself it resizes its tables to the nearest row; flexible, they have the clip's size already.

    Source: facebookresearch/TimeSformer, timesformer/models/vit.py.
    """
    if find(host, "model.attention_type") is not None and isinstance(find(host, "num_patches"), int):
        return _around(host, _timesformer(find(host, "model")))
    return _timesformer(host)


def _around(host: nn.Module, inner: Plan | None) -> Plan | None:
    if inner is None:
        return None
    plan = inner.within("model")
    return replace(plan, state=(*plan.state, *cached_sizes(host, "", plan.base)))


def _timesformer(host: nn.Module) -> Plan | None:
    image, sizes = find(host, "patch_embed.img_size"), conv_sizes(host, "patch_embed.proj")
    if find(host, "attention_type") is None or sizes is None or image is None:
        return None
    time = find(host, "time_embed")
    base = Base(None if time is None else time.shape[1], *as_pair(image, what="img_size"), sizes[0])
    return Plan(
        base=base,
        patch_embeds=("patch_embed.proj",),
        tables=(
            Table("pos_embed", axes="space", class_rows=("first",)),
            *(() if time is None else (Table("time_embed", axes="time"),)),
        ),
        state=cached_sizes(host, "patch_embed", base),
        entries=("forward", "forward_features"),
    )


@register_family("AIM")
def aim(host: nn.Module) -> Plan | None:
    """AIM: CLIP's image encoder over frames, whose temporal table is added to the class tokens too.

    Source: taoyang1122/adapt-image-models, mmaction/models/backbones/vit_clip.py.
    """
    sizes, time = conv_sizes(host, "conv1"), find(host, "temporal_embedding")
    frames, side = find(host, "num_frames"), find(host, "input_resolution")
    if sizes is None or not isinstance(time, Tensor) or frames is None or side is None:
        return None
    blocks = range(len(find(host, "transformer.resblocks")))
    owners = ("", *(f"transformer.resblocks.{index}." for index in blocks))
    return Plan(
        base=Base(frames, side, side, sizes[0]),
        patch_embeds=("conv1",),
        tables=(
            Table("positional_embedding", axes="space", dim=0, class_rows=("first",)),
            Table("temporal_embedding", axes="time"),
        ),
        state=tuple(State(f"{owner}num_frames", frame_count) for owner in owners),
        fixed=("input_resolution",),  # read when it is built only
    )


def frame_height(geometry: Geometry, stored: int) -> int:
    """Height in pixels."""
    return geometry.height


def frame_width(geometry: Geometry, stored: int) -> int:
    """Width in pixels."""
    return geometry.width


def steps_of_squares(geometry: Geometry, stored: int) -> int:
    """Tokens along time, for a host that takes the root of the tokens of a step for its rows.

    Raises:
        GeometryError: when there are not as many rows as columns.
    """
    rows, columns = geometry.grid
    if rows != columns:
        raise GeometryError(
            f"This model takes every grid for a square one, and cannot run {rows} x {columns} tokens: use "
            "square clips and patches."
        )
    return geometry.steps


@register_family("UniFormerV2")
def uniformerv2(host: nn.Module) -> Plan | None:
    """UniFormerV2: CLIP's image encoder with convolutions over time; square grids.

    Source: OpenGVLab/UniFormerV2, slowfast/models/uniformerv2_model.py.
    """
    sizes, steps = conv_sizes(host, "conv1"), find(host, "transformer.T")
    side = find(host, "input_resolution")
    if sizes is None or not isinstance(steps, int) or side is None:
        return None
    patch, tubelet = sizes
    return Plan(
        base=Base(steps * tubelet, side, side, patch, tubelet),
        patch_embeds=("conv1",),
        tables=(Table("positional_embedding", axes="space", dim=0, class_rows=("first",)),),
        state=(State("transformer.T", steps_of_squares),),
        fixed=("input_resolution",),  # read when it is built only
    )


@register_family("UniFormer")
def uniformer(host: nn.Module) -> SizeFree | None:
    """UniFormer: positions by depthwise convolutions, which are called `pos_embed`.

    Source: Sense-X/UniFormer, video_classification/slowfast/models/uniformer.py.
    """
    convolution = find(host, "blocks1.0.pos_embed")
    if not isinstance(convolution, nn.Module) or conv_sizes(host, "patch_embed4.proj") is None:
        return None
    return SizeFree("has no table of positions, and takes clips of any size.")


@register_family("Video Swin, Omnivore")
def video_swin(host: nn.Module) -> SizeFree | None:
    """Video Swin and Omnivore's trunk: tables for windows, which a small grid cuts.

    Source: SwinTransformer/Video-Swin-Transformer, mmaction/models/backbones/swin_transformer.py;
    facebookresearch/omnivore, models/swin_transformer_3d.py.
    """
    index, window = "layers.0.blocks.0.attn.relative_position_index", find(host, "window_size")
    if find(host, index) is None or not isinstance(window, tuple | list) or len(window) != 3:
        return None
    return SizeFree(
        "takes clips of any size, and places tokens rightly where the grid of its last stage, a 32nd of the "
        f"frame, is no smaller than its window of {window[1]} x {window[2]} tokens: use larger frames, or "
        "torchvision's Swin3D, which flexvideo puts right."
    )


@register_family("CAST")
def cast(host: nn.Module) -> Plan | None:
    """CAST: CLIP over every second frame and VideoMAE over all, with tables for both in every block.

    Source: KHU-VLL/CAST, models/bidir_modeling_crossattn.py.
    """
    image, sizes = find(host, "patch_embed.img_size"), conv_sizes(host, "patch_embed.proj")
    if conv_sizes(host, "clip_conv1") is None or sizes is None or image is None:
        return None
    base = Base(find(host, "num_frames"), *as_pair(image, what="img_size"), *sizes)
    blocks = tuple(f"blocks.{index}" for index in range(len(find(host, "blocks"))))
    kinds = ("clip", "vmae")
    return Plan(
        base=base,
        patch_embeds=("patch_embed.proj", "clip_conv1"),
        tables=(
            Table("clip_positional_embedding", axes="space", dim=0, class_rows=("first",)),
            Table("pos_embed", axes="joint"),
            *(
                Table(f"{b}.s2t_cross.{kind}_space_pos", axes="space", dim=0)
                for b in blocks
                for kind in kinds
            ),
            *(Table(f"{b}.t2s_cross.{kind}_time_pos", axes="time", dim=0) for b in blocks for kind in kinds),
        ),
        state=(
            *cached_sizes(host, "", base),
            *cached_sizes(host, "patch_embed", base),
            *(State(f"{b}.{part}_cross.num_frames", frame_count) for b in blocks for part in ("s2t", "t2s")),
        ),
        entries=("forward", "forward_features"),
    )


@register_family("EVL")
def evl(host: nn.Module) -> Plan | None:
    """EVL: a decoder over the frames that CLIP encodes; with cross attention, of one grid.

    Source: OpenGVLab/efficient-video-recognition, model.py and vision_transformer.py.
    """
    backbone, layers = find(host, "backbone"), find(host, "decoder.decoder_layers")
    if layers is None or backbone is None:
        return None
    if isinstance(backbone, list):
        raise UnsupportedModelError(
            f"{type(host).__name__} keeps its frozen backbone in a list, where its parts have no names: take "
            "it out first, `model.backbone = model.backbone[0]`, which its forward understands."
        )
    patch, table = find(host, "backbone.patch_embed.patch_size"), find(host, "backbone.pos_embed")
    if patch is None or table is None:
        return None
    side = math.isqrt(len(table) - 1)
    attention = [f"decoder.cross_attention.{index}" for index in range(len(layers))]
    attention = attention if find(host, "decoder.cross_attention") is not None else []
    grid = find(host, f"{attention[0]}.spatial_size") if attention else (side, side)
    times = find(host, "decoder.temporal_pos_embed")
    frames = None if times is None else len(times[0])
    return Plan(
        base=Base(frames, grid[0] * patch[0], grid[1] * patch[1], patch, pads=True),
        patch_embeds=("backbone.patch_embed.proj",),
        tables=(
            Table("backbone.pos_embed", axes="space", dim=0, class_rows=("first",)),
            *(
                Table(f"decoder.temporal_pos_embed.{index}", axes="time", dim=0)
                for index in range(len(times or ()))
            ),
        ),
        state=(
            State("backbone.patch_embed.patch_size", patch_size),
            *(State(f"{layer}.spatial_size", KeptGrid((grid[0], grid[1]))) for layer in attention),
        ),
        fixed=(
            "backbone.num_patches",  # read when it is built only
            *(f"{layer}.{name}" for layer in attention for name in ("w1", "w2", "idx_tensor")),
        ),
    )


def side_of_grid(geometry: Geometry, stored: int) -> int:
    """Rows of tokens, for a host that takes the grid for a square one of so many.

    Raises:
        GeometryError: when there are not as many rows as columns.
    """
    steps_of_squares(geometry, stored)
    return geometry.grid[0]


@register_family("V-JEPA 2")
def vjepa2(host: nn.Module) -> Plan | None:
    """V-JEPA 2's encoder, for clips or images: rotary positions, or a table of sines for the whole clip.

    Its layers are handed the grid with `handle_nonsquare_inputs`, and else take it for the square one that
    they were built with. Rotary positions are counted on. By itself the model resizes its table linearly, and
    cuts it short for fewer frames.

    Source: facebookresearch/vjepa2, src/models/vision_transformer.py and src/models/utils/modules.py.
    """
    conv, height, width = find(host, "patch_embed.proj"), find(host, "img_height"), find(host, "img_width")
    sizes, handed = conv_sizes(host, "patch_embed.proj"), find(host, "handle_nonsquare_inputs")
    if sizes is None or handed is None or not isinstance(height, int) or not isinstance(width, int):
        return None
    video = isinstance(conv, nn.Conv3d)
    base = Base(find(host, "num_frames") if video else None, height, width, *sizes)
    layers = [f"blocks.{index}.attn.grid_size" for index in range(len(find(host, "blocks")))]
    names = (("img_height", frame_height), ("img_width", frame_width), ("patch_size", patch_size))
    return Plan(
        base=base,
        patch_embeds=("patch_embed.proj",),
        tables=(Table("pos_embed", axes="joint" if video else "space"),)
        if find(host, "pos_embed") is not None
        else (),
        state=(
            *(State(name, value) for name, value in names),
            State("num_patches", clip_tokens if video else frame_tokens),
            *((State("num_frames", frame_count),) if video else ()),
            *cached_sizes(host, "patch_embed", base),
            *(
                State(layer, rows_of_grid if handed else side_of_grid)
                for layer in layers
                if find(host, layer) is not None
            ),
        ),
        layout="bcthw" if video else "bchw",
    )


@register_family("SlowFast's MViT")
def slowfast_mvit(host: nn.Module) -> Plan | None:
    """MViT as SlowFast has it, which torchvision has too.

    Source: facebookresearch/SlowFast, slowfast/models/video_model_builder.py.
    """
    parts = ("patch_dims", "patch_stride", "cls_embed_on", "sep_pos_embed")
    if any(find(host, part) is None for part in parts):
        return None
    raise UnsupportedModelError(
        f"{type(host).__name__} of SlowFast cannot flex, because its forward takes a list of pathways and no "
        "clip: use torchvision's MViT, which flexes."
    )
