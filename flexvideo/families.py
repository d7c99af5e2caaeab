"""Models that are recognised: where each keeps its patch embedding, its tables, and what else must follow.

An entry looks at one module and returns the plan for it, with names relative to that module, or None when the
module is of another kind. It recognises by structure, and says no where two kinds cannot be told apart.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from flexvideo.errors import GeometryError
from flexvideo.geometry import Base, Geometry, as_pair
from flexvideo.hosts import own_value
from flexvideo.plan import Plan, State, Table


@dataclass(frozen=True)
class SizeFree:
    """What a family returns for a model that takes frames of any size as it is.

    Args:
        reason: why there is nothing to make flexible, and what to do instead; a sentence or two.
    """

    reason: str


Family = Callable[[nn.Module], Plan | SizeFree | None]
FAMILIES: dict[str, Family] = {}


def register_family(name: str) -> Callable[[Family], Family]:
    """Make `plan_for` ask a function about every module of a model.

    Where several recognise the same module, the one that was registered last has its way.

    Args:
        name: what the kind of model is called; registering a name again replaces the entry.

    Example:
        >>> @register_family("SkyNet")
        ... def skynet(host):
        ...     if type(host).__name__ != "SkyNet":
        ...         return None
        ...     base = Base(frames=8, height=112, width=112, patch=(16, 16))
        ...     return Plan(base=base, patch_embeds=("stem",), tables=(Table("positions", axes="joint"),))
        >>> FAMILIES.pop("SkyNet") is skynet
        True
    """

    def register(family: Family) -> Family:
        FAMILIES[name] = family
        return family

    return register


def find(host: nn.Module, path: str) -> Any:
    """Return what a module stores at a dotted path, past any property of a class, or None."""
    owner, _, name = path.rpartition(".")
    try:
        module = host.get_submodule(owner)
        return module._modules[name] if name in module._modules else own_value(module, name)
    except AttributeError:
        return None


def those_stored(host: nn.Module, *names: str) -> tuple[str, ...]:
    """Those of some dotted paths at which a module stores anything, for the `fixed` of a plan."""
    return tuple(name for name in names if find(host, name) is not None)


def as_stored(stored: Any, pair: tuple[int, int]) -> Any:
    """Return a pair in the form in which a host stores one: a tuple, a list, or one number for both.

    Args:
        stored: what the host stores at the base.
        pair: (height, width) or (rows, columns).

    Raises:
        GeometryError: when the host has one number for both and they differ.
    """
    if not isinstance(stored, int):
        return type(stored)(pair)
    if pair[0] != pair[1]:
        raise GeometryError(
            f"This model keeps one number for both sides of a frame and cannot take {pair[0]} x {pair[1]}: "
            "use square clips and patches."
        )
    return pair[0]


@dataclass(frozen=True, eq=False)
class EitherSide:
    """What stands for both sides of a frame that is not square: equal to each, for a host that only compares.

    Args:
        height: pixels.
        width: pixels.

    Example:
        >>> side = EitherSide(48, 32)
        >>> side == 48, 32 != side, side == 40
        (True, False, False)
    """

    height: int
    width: int

    def __eq__(self, other: object) -> bool:
        return other in (self.height, self.width)


def either_side(geometry: Geometry, stored: int) -> int | EitherSide:
    """Side of a frame for a host that has one number for both, and only compares it with each."""
    if geometry.height == geometry.width:
        return geometry.height
    return EitherSide(geometry.height, geometry.width)


def frame_size(geometry: Geometry, stored: Any) -> Any:
    """Height and width in pixels."""
    return as_stored(stored, (geometry.height, geometry.width))


def patch_size(geometry: Geometry, stored: Any) -> Any:
    """Height and width of a patch in pixels, overlaps included."""
    return as_stored(stored, geometry.window)


def grid_size(geometry: Geometry, stored: Any) -> Any:
    """Rows and columns of tokens."""
    return as_stored(stored, geometry.grid)


@dataclass(frozen=True)
class KeptGrid:
    """What a host with relative positions of one grid has for that grid, and for no other.

    Args:
        grid: rows and columns of tokens at the base.

    Raises:
        GeometryError: when the grid is another.
    """

    grid: tuple[int, int]

    def __call__(self, geometry: Geometry, stored: Any) -> Any:
        """Return what the host stores."""
        if geometry.grid != self.grid:
            raise GeometryError(
                f"This model has relative positions for a grid of {self.grid[0]} x {self.grid[1]} tokens "
                f"only, and cannot run {geometry.grid[0]} x {geometry.grid[1]}: use the policy static-tokens "
                "or frames of its own size."
            )
        return stored


def rows_of_grid(geometry: Geometry, stored: int) -> int:
    """Rows of tokens."""
    return geometry.grid[0]


def columns_of_grid(geometry: Geometry, stored: int) -> int:
    """Columns of tokens."""
    return geometry.grid[1]


def frame_tokens(geometry: Geometry, stored: Any) -> int:
    """Tokens of one time step, class token not counted."""
    return geometry.grid[0] * geometry.grid[1]


def clip_tokens(geometry: Geometry, stored: Any) -> int:
    """Tokens of the clip, class token not counted."""
    return geometry.tokens


def frame_count(geometry: Geometry, stored: Any) -> int:
    """Frames of the clip."""
    return geometry.frames


def step_count(geometry: Geometry, stored: Any) -> int:
    """Tokens along time."""
    return geometry.steps


def constructor_sizes(geometry: Geometry, stored: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments `img_size`, `patch_size` and `num_frames`, in a copy of the mapping."""
    pairs = {"img_size": (geometry.height, geometry.width), "patch_size": geometry.patch}
    sizes = {
        name: pair[0] if isinstance(stored[name], int) and pair[0] == pair[1] else pair
        for name, pair in pairs.items()
    }
    return stored | sizes | {"num_frames": geometry.frames}


_CACHED: tuple[tuple[str, Callable[[Geometry, Any], Any]], ...] = (
    ("img_size", frame_size),
    ("image_size", frame_size),
    ("patch_size", patch_size),
    ("grid_size", grid_size),
    ("token_size", grid_size),
    ("patch_resolution", grid_size),
    ("init_input_size", frame_size),
    ("init_out_size", grid_size),
    ("patches_per_frame", frame_tokens),
    ("num_patches", frame_tokens),
    ("num_patches", clip_tokens),
    ("num_frames", frame_count),
)


def cached_sizes(host: nn.Module, path: str, base: Base) -> tuple[State, ...]:
    """State for the sizes that a module stores under the names in use everywhere, if they are the base's.

    Args:
        host: the model.
        path: dotted path of the module in it.
        base: sizes that the model was built for.
    """
    frames = base.frames or base.tubelet
    at_base = Geometry(frames, base.height, base.width, base.patch, base.tubelet, base.overlap)
    found: dict[str, State] = {}
    for name, value in _CACHED:
        stored = find(host, f"{path}.{name}" if path else name)
        if isinstance(stored, int | tuple | list) and _agrees(value, at_base, stored):
            found.setdefault(name, State(f"{path}.{name}" if path else name, value))
    return tuple(found.values())


def _agrees(value: Callable[[Geometry, Any], Any], at_base: Geometry, stored: Any) -> bool:
    try:
        return value(at_base, stored) == stored
    except GeometryError:  # one number for both sides of a base that is not square
        return False


def conv_sizes(host: nn.Module, path: str) -> tuple[tuple[int, int], int] | None:
    """(height, width) of the patch of a convolution and its tubelet; None when there is none at the path."""
    conv = find(host, path)
    if isinstance(conv, nn.Conv2d):
        return (conv.kernel_size[0], conv.kernel_size[1]), 1
    if isinstance(conv, nn.Conv3d):
        return (conv.kernel_size[1], conv.kernel_size[2]), conv.stride[0]
    return None


@register_family("VideoMamba")
def videomamba(host: nn.Module) -> Plan | None:
    """VideoMamba for video: ours, the official one, its masked and multimodal variants, and VideoMambaPro.

    Source: OpenGVLab/VideoMamba, videomamba/video_sm/models/videomamba.py, and videomamba_pretrain.py beside
    it; videomamba/video_mm/models/backbones/videomamba/videomamba.py; hotfinda/VideoMambaPro.
    """
    time, sizes = find(host, "temporal_pos_embedding"), conv_sizes(host, "patch_embed.proj")
    image = find(host, "patch_embed.img_size")
    if sizes is None or image is None or not isinstance(time, Tensor) or not _has_class_token(host):
        return None
    (height, width), (patch, tubelet) = as_pair(image, what="img_size"), sizes
    config = find(host, "config")
    ours = isinstance(config, dict) and {"img_size", "patch_size", "num_frames"} <= config.keys()
    base = Base(time.shape[1] * tubelet, height, width, patch, tubelet)
    return Plan(
        base=base,
        patch_embeds=("patch_embed.proj",),
        tables=(
            Table("pos_embed", axes="space", class_rows=("first",)),
            Table("temporal_pos_embedding", axes="time"),
            *_decoder_tables(host),
        ),
        state=cached_sizes(host, "patch_embed", base)
        + ((State("config", constructor_sizes),) if ours else ()),
        entries=("forward", "forward_features", "embed") if ours else ("forward", "forward_features"),
    )


@register_family("VideoMamba for images")
def videomamba_image(host: nn.Module) -> Plan | None:
    """VideoMamba for images: no time, and its patch embedding asserts the size of the frame.

    Vim and Mamba-Reg have the same names and keep class tokens elsewhere; `if_cls_token` and
    `num_cls_tokens` tell them.

    Source: OpenGVLab/VideoMamba, videomamba/image_sm/models/videomamba.py.
    """
    image, conv = find(host, "patch_embed.img_size"), find(host, "patch_embed.proj")
    sizes = conv_sizes(host, "patch_embed.proj")
    stranger = not _has_class_token(host) or hasattr(host, "if_cls_token") or hasattr(host, "num_cls_tokens")
    time = find(host, "temporal_pos_embedding")
    if sizes is None or image is None or stranger or time is not None or not isinstance(conv, nn.Conv2d):
        return None
    height, width = as_pair(image, what="img_size")
    base = Base(None, height, width, sizes[0])
    return Plan(
        base=base,
        patch_embeds=("patch_embed.proj",),
        tables=(Table("pos_embed", axes="space", class_rows=("first",)),),
        state=cached_sizes(host, "patch_embed", base),
        entries=("forward", "forward_features"),
        layout="bchw",
    )


def _decoder_tables(host: nn.Module) -> tuple[Table, ...]:
    """Sine-cosine tables that the masked variants add to what they decode: plain tensors, not parameters."""
    tables = (
        Table("clip_pos_embed", axes="joint", class_rows=("first",)),
        Table("clip_img_pos_embed", axes="space", class_rows=("first",)),
    )
    return tuple(table for table in tables if find(host, table.name) is not None)


def _has_class_token(host: nn.Module) -> bool:
    """Whether a module has VideoMamba's blocks and the table whose first row is the class token's."""
    tensors = (find(host, "cls_token"), find(host, "pos_embed"))
    return all(isinstance(tensor, Tensor) for tensor in tensors) and isinstance(
        find(host, "layers"), nn.ModuleList
    )
