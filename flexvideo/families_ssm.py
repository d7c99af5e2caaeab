"""State-space models for images and video that are recognised beside VideoMamba.

The facts of each are in the file that its docstring names; see `flexvideo.families` for what an entry is.
"""

from typing import Any, Literal

from torch import Tensor, nn

from flexvideo.errors import GeometryError
from flexvideo.families import (
    SizeFree,
    cached_sizes,
    conv_sizes,
    find,
    register_family,
)
from flexvideo.geometry import Base, Geometry, as_pair
from flexvideo.plan import ClassRow, Plan, State, Table
from flexvideo.rebuilt import Registers, Rotary, rotary_steps


def _is_table(host: nn.Module, name: str, dimensions: int = 3) -> bool:
    table = find(host, name)
    return isinstance(table, Tensor) and table.ndim == dimensions


def _image_base(host: nn.Module, conv: str, frames: int | None = None, *, pads: bool = False) -> Base | None:
    """Base of a model of the Vim kind: a Conv2d, perhaps with overlapping patches, beside an `img_size`."""
    sizes, image, layer = conv_sizes(host, conv), find(host, "patch_embed.img_size"), find(host, conv)
    if sizes is None or image is None or not isinstance(layer, nn.Conv2d):
        return None
    height, width = as_pair(image, what="img_size")
    stride = (layer.stride[0], layer.stride[1])
    return Base(frames, height, width, stride, overlap=max(1, sizes[0][0] // stride[0]), pads=pads)


def _rotary(host: nn.Module, base: Base, *, parity: bool) -> tuple[State, ...]:
    """State for the tables of a rotary embedding at `rope`, where there is one."""
    cosines, sines = find(host, "rope.freqs_cos"), find(host, "rope.freqs_sin")
    if cosines is None or sines is None:
        return ()
    steps = rotary_steps(cosines, sines, base.grid)
    parts: tuple[Literal["cos", "sin"], ...] = ("cos", "sin")
    return tuple(State(f"rope.freqs_{part}", Rotary(part, base.grid, steps, parity)) for part in parts)


@register_family("Vim")
def vim(host: nn.Module) -> Plan | None:
    """Vim: its class token in the middle, first, at both ends or absent; patches may overlap.

    A class token at a random place (an argument of its forward, for an experiment of its authors) has no row
    of its own in the table, and trained weights are taken to have it where the model has it by default.

    Source: hustvl/Vim, vim/models_mamba.py and vim/rope.py.
    """
    base = _image_base(host, "patch_embed.proj")
    other = hasattr(host, "token_size") or hasattr(host, "temporal_embedding")
    if base is None or not hasattr(host, "if_cls_token") or not hasattr(host, "if_abs_pos_embed") or other:
        return None
    rows: tuple[ClassRow, ...] = ("first",)
    if not find(host, "if_cls_token"):
        rows = ()
    elif find(host, "use_double_cls_token"):
        rows = ("first", "last")
    elif find(host, "use_middle_cls_token"):
        rows = ("middle",)
    return Plan(
        base=base,
        patch_embeds=("patch_embed.proj",),
        tables=(Table("pos_embed", axes="space", class_rows=rows),) if _is_table(host, "pos_embed") else (),
        state=(*cached_sizes(host, "patch_embed", base), *_rotary(host, base, parity=True)),
        entries=("forward", "forward_features"),
        layout="bchw",
    )


@register_family("ViViM")
def vivim(host: nn.Module) -> Plan | None:
    """ViViM: Vim over frames, a class token in the middle of each, or one in the middle of the clip.

    Its temporal table is (frames, 1, channels), and absent in a model built for one frame.

    Source: OpenGVLab/video-mamba-suite, action-recognition/models/vivim.py and
    egocentric-understanding/avion/models/vimamba.py.
    """
    if not hasattr(host, "temporal_embedding") or not hasattr(host, "if_cls_token"):
        return None
    time = find(host, "temporal_embedding")
    base = _image_base(host, "patch_embed.proj", None if time is None else time.shape[0])
    if base is None or not _is_table(host, "pos_embed"):
        return None
    temporal = () if time is None else (Table("temporal_embedding", axes="time", dim=0),)
    return Plan(
        base=base,
        patch_embeds=("patch_embed.proj",),
        tables=(Table("pos_embed", axes="space", class_rows=("middle",)), *temporal),
        state=cached_sizes(host, "patch_embed", base),
        entries=("forward", "forward_features"),
    )


@register_family("TimeMamba")
def timemamba(host: nn.Module) -> Plan | None:
    """TimeMamba: no temporal table, but a frame count that it asserts, and its own nearest resize.

    `forward_features` takes (batch, frames, channels, height, width), and is no entry point for that reason.

    Source: OpenGVLab/video-mamba-suite, egocentric-understanding/avion/models/timemamba.py.
    """
    frames, per_frame = find(host, "patch_embed.num_frames"), find(host, "patches_per_frame")
    if not isinstance(frames, int) or not isinstance(per_frame, int) or hasattr(host, "temporal_embed"):
        return None  # the last is the transformer that TimeMamba was made from
    base = _image_base(host, "patch_embed.proj", frames)
    if base is None or not _is_table(host, "pos_embed"):
        return None
    return Plan(
        base=base,
        patch_embeds=("patch_embed.proj",),
        tables=(Table("pos_embed", axes="space", class_rows=("first",)),),
        state=(*cached_sizes(host, "", base), *cached_sizes(host, "patch_embed", base)),
    )


def clip_size(geometry: Geometry, stored: Any) -> tuple[int, int, int]:
    """Frames, height and width of the clip."""
    return geometry.frames, geometry.height, geometry.width


def square_clip_grid(geometry: Geometry, stored: Any) -> tuple[int, int, int]:
    """Steps, rows and columns of tokens, for a host that takes the rows for the columns.

    Raises:
        GeometryError: when there are not as many rows as columns.
    """
    rows, columns = geometry.grid
    if rows != columns:
        raise GeometryError(
            f"This model takes the number of rows for that of columns, and cannot run a grid of {rows} x "
            f"{columns}: use square clips and patches."
        )
    return geometry.steps, rows, columns


def steps_and_rows(geometry: Geometry, stored: Any) -> tuple[int, int]:
    """Steps and rows of tokens: what mmcv's two-dimensional patch embedding makes of a clip."""
    return geometry.steps, geometry.grid[0]


@register_family("Mamba-ND")
def mamba_nd(host: nn.Module) -> Plan | None:
    """Mamba-ND for video: one joint table; its class token ends the sequence, and has a first, unused row.

    Source: jacklishufan/Mamba-ND, video_pretraining/models/mamband.py (and mmcv's PatchEmbed).
    """
    sizes, grid = conv_sizes(host, "patch_embed.projection"), find(host, "patch_resolution")
    clip, embed = find(host, "img_size"), find(host, "patch_embed.projection")
    if sizes is None or not isinstance(embed, nn.Conv3d) or not _is_table(host, "pos_embed"):
        return None
    if not isinstance(grid, tuple) or len(grid) != 3 or not isinstance(clip, tuple) or len(clip) != 3:
        return None
    extra = find(host, "pos_embed").shape[1] - grid[0] * grid[1] * grid[2]
    states = (
        ("img_size", clip_size),
        ("patch_resolution", square_clip_grid),
        ("patch_embed.init_input_size", clip_size),
        ("patch_embed.init_out_size", steps_and_rows),
    )
    rows: tuple[ClassRow, ...] = ("first",) * extra
    return Plan(
        base=Base(*clip, *sizes),
        patch_embeds=("patch_embed.projection",),
        tables=(Table("pos_embed", axes="joint", class_rows=rows),),
        state=tuple(State(name, value) for name, value in states if find(host, name) is not None),
    )


@register_family("LocalMamba's Vim")
def local_vim(host: nn.Module) -> Plan | None:
    """LocalMamba's Vim: Vim with windowed scans, which every block keeps the grid for; frames are padded.

    Source: hunto/LocalMamba, classification/lib/models/local_vim.py and mamba/multi_mamba.py.
    """
    layers = find(host, "layers")
    if not hasattr(host, "token_size") or not hasattr(host, "if_cls_token") or layers is None:
        return None
    base = _image_base(host, "patch_embed.proj", pads=True)
    if base is None:
        return None
    rows: tuple[ClassRow, ...] = ("first",) if find(host, "if_cls_token") else ()
    scans = [f"layers.{i}.mixer{inner}" for i in range(len(layers)) for inner in ("", ".multi_scan")]
    owners = ("", "patch_embed", *scans)
    return Plan(
        base=base,
        patch_embeds=("patch_embed.proj",),
        tables=(Table("pos_embed", axes="space", class_rows=rows),) if _is_table(host, "pos_embed") else (),
        state=(
            *(state for owner in owners for state in cached_sizes(host, owner, base)),
            *_rotary(host, base, parity=False),
        ),
        entries=("forward", "forward_features"),
        layout="bchw",
    )


def stem_patch(geometry: Geometry, stored: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a patch as PlainMamba's stem, which halves the frame, leaves it."""
    return geometry.patch[0] // 2, geometry.patch[1] // 2


@register_family("PlainMamba")
def plain_mamba(host: nn.Module) -> Plan | None:
    """PlainMamba: a stem halves the frame, and the patch embedding after it is what flexes.

    It would resize its table itself, and never has to. The scanning orders that its blocks keep for the base
    grid are looked up by the grid, and stay.

    Source: ChenhongyiYang/PlainMamba, mmcls/plain_mamba_dev/models.
    """
    sizes, image = conv_sizes(host, "patch_embed.projection"), find(host, "img_size")
    stem, layers = find(host, "patch_embed.stem.0"), find(host, "layers")
    if sizes is None or image is None or layers is None or not isinstance(stem, nn.Conv2d):
        return None
    (height, width), (rows, columns) = as_pair(image, what="img_size"), sizes[0]
    pads = find(host, "patch_embed.adaptive_padding") is not None
    base = Base(None, height, width, (rows * 2, columns * 2), stem=2, pads=pads)
    padding = [f"patch_embed.adaptive_padding.{name}" for name in ("kernel_size", "stride")] if pads else []
    return Plan(
        base=base,
        patch_embeds=("patch_embed.projection",),
        tables=(Table("pos_embed", axes="space"),) if _is_table(host, "pos_embed") else (),
        state=(
            *cached_sizes(host, "", base),
            *cached_sizes(host, "patch_embed", base),
            *(State(name, stem_patch) for name in padding),
        ),
        layout="bchw",
        channels=stem.in_channels,
        fixed=tuple(f"layers.{i}.mamba.default_hw_shape" for i in range(len(layers))),
    )


@register_family("Mamba-Reg")
def mamba_reg(host: nn.Module) -> Plan | None:
    """Mamba-Reg: register tokens, spread evenly over the sequence, with a table of their own.

    Source: wangf3014/Mamba-Reg, models_mamba.py and utils.py.
    """
    registers, order = find(host, "num_cls_tokens"), find(host, "token_idx")
    base = _image_base(host, "patch_embed.proj")
    if base is None or not isinstance(registers, int) or not _is_table(host, "pos_embed"):
        return None
    spread = (
        State("token_idx", Registers("order", registers)),
        State("cls_positions", Registers("places", registers)),
    )
    return Plan(
        base=base,
        patch_embeds=("patch_embed.proj",),
        tables=(Table("pos_embed", axes="space"),),
        state=(*cached_sizes(host, "patch_embed", base), *(() if order is None else spread)),
        entries=("forward", "forward_features"),
        layout="bchw",
    )


@register_family("VMamba")
def vmamba(host: nn.Module) -> Plan | SizeFree | None:
    """VMamba: at most one table, (1, channels, rows, columns), which alone says what size it is built for.

    Its first patch embedding is one convolution; the second, of two that overlap, has a patch that stays.

    Source: MzeroMiko/VMamba, classification/models/vmamba.py (`posembed`, `patchembed_version`).
    """
    first, second = find(host, "patch_embed.0"), find(host, "patch_embed.5")
    parts = isinstance(find(host, "layers.0.blocks"), nn.Sequential) and find(host, "classifier") is not None
    if not isinstance(first, nn.Conv2d) or not parts:
        return None
    overlapping = isinstance(second, nn.Conv2d)
    if not _is_table(host, "pos_embed", dimensions=4):
        patch = "" if overlapping else " Its patch flexes under a Plan by hand, which says its frame size."
        return SizeFree(f"without a table of positions takes frames of any size.{patch}")
    patch = (4, 4) if overlapping else (first.stride[0], first.stride[1])
    rows, columns = find(host, "pos_embed").shape[2:]
    return Plan(
        base=Base(None, rows * patch[0], columns * patch[1], patch),
        patch_embeds=() if overlapping else ("patch_embed.0",),
        tables=(Table("pos_embed", axes="space", dim=2, spread=True),),
        layout="bchw",
        channels=first.in_channels,
    )


@register_family("MambaVision")
def mambavision(host: nn.Module) -> SizeFree | None:
    """MambaVision: convolutions for patches, no positions, windows padded and cut in its forward.

    Source: NVlabs/MambaVision, mambavision/models/mamba_vision.py.
    """
    if find(host, "patch_embed.conv_down") is None or find(host, "levels") is None:
        return None
    return SizeFree("has no table of positions, and takes frames of any size.")


@register_family("VSSD")
def vssd(host: nn.Module) -> SizeFree | None:
    """VSSD: positions by depthwise convolutions; the grid is handed from layer to layer.

    Source: YuHengsss/VSSD, classification/models/mamba2.py.
    """
    if find(host, "layers.0.blocks.0.cpe1") is None or find(host, "patch_embed.patches_resolution") is None:
        return None
    return SizeFree("has no table of positions, and takes frames whose sides are multiples of 32.")
