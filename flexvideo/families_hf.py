"""Models of Hugging Face transformers that are recognised, bare or with their classifier.

Their layers all hold the configuration; where one reads sizes from it, it is given a copy with those of the
clip. Tested with transformers 5.17 and 5.23; see `flexvideo.families` for what an entry is.
"""

import copy
import functools
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from flexvideo.families import (
    cached_sizes,
    conv_sizes,
    find,
    patch_size,
    register_family,
    step_count,
    those_stored,
)
from flexvideo.geometry import Base, Geometry, as_pair
from flexvideo.plan import ClassRow, Plan, State, Table

PATCHES = "embeddings.patch_embeddings"
POSITIONS = "embeddings.position_embeddings"
_SQUARES_ONLY = (
    "dinov2",
    "dinov2_with_registers",
    "beit",
    "clip",
    "siglip",
    "xclip",
    "timesformer",
    "vjepa2",
)


def class_named(host: nn.Module, package: str, *names: str) -> bool:
    """Whether a module is of one of the classes of a package, or of a subclass.

    Args:
        host: the module.
        package: name of the package or module that defines the classes.
        names: names of the classes.
    """
    return any(
        cls.__name__ in names and f"{cls.__module__}.".startswith(f"{package}.") for cls in type(host).__mro__
    )


def bare_or_within(
    host: nn.Module, bare: tuple[str, ...], around: tuple[str, ...], plan: Callable[[Any], Plan | None]
) -> Plan | None:
    """Plan of a model of transformers, or of the one that a model around it holds; all configurations stay.

    Args:
        host: the module that is asked about.
        bare: classes that the plan is for.
        around: classes that hold one of those, a classifier say.
        plan: makes the plan of a bare one; None for one that is built otherwise.
    """
    if not class_named(host, "transformers", *bare, *around):
        return None
    for path, part in host.named_modules():
        if class_named(part, "transformers", *bare) and (found := plan(part)) is not None:
            found = replace(found, baked=(State("config", configuration_built_for),)).within(path)
            following = {state.name for state in found.state}
            configurations = (name for name in _configurations(host) if name not in following)
            return replace(found, fixed=(*found.fixed, *configurations))
    return None


def _configurations(host: nn.Module) -> Iterator[str]:
    """Paths of the configuration, which every layer holds and few read sizes from."""
    for path, module in host.named_modules():
        if "config" in module.__dict__:
            yield f"{path}.config" if path else "config"


def configuration_built_for(geometry: Geometry, stored: Any) -> Any:
    """The configuration changed to that of a model built for a geometry; squares as one number."""
    squares_only = getattr(stored, "model_type", "").removesuffix("_vision_model") in _SQUARES_ONLY
    if squares_only and (geometry.height != geometry.width or geometry.patch[0] != geometry.patch[1]):
        _warn_of_loading(f"{type(stored).__name__} can say of square frames and patches only")
    sizes: dict[str, tuple[int, int]] = {
        **{"image_size": (geometry.height, geometry.width), "patch_size": geometry.patch},
        "crop_size": (geometry.height, geometry.width),  # V-JEPA 2's, which cannot say of other than squares
    }
    for name, (height, width) in sizes.items():
        if hasattr(stored, name) and (height == width or name != "crop_size"):
            one = height == width and isinstance(getattr(stored, name), int)
            setattr(stored, name, height if one else [height, width])
    for name in {"num_frames", "frames_per_clip"} & vars(stored).keys():
        setattr(stored, name, geometry.frames)
    if isinstance(getattr(stored, "tubelet_size", None), list | tuple):  # ViViT's, with the patch in it
        stored.tubelet_size = [geometry.tubelet, *geometry.patch]
    return stored


def _warn_of_loading(reason: str) -> None:
    warnings.warn(
        f"from_pretrained will not give the baked model again, for {reason}: save it whole, with torch.save.",
        stacklevel=5,  # of this function, the configuration's, State.follow and bake: the line that bakes
    )


def configuration_with_that_table(geometry: Geometry, stored: Any) -> Any:
    """The configuration, changed only where the grid stays: VideoMAE numbers its tokens anew by it."""
    rows, columns = (
        size // patch
        for size, patch in zip(
            as_pair(stored.image_size, what="image_size"), as_pair(stored.patch_size), strict=True
        )
    )
    same = (stored.num_frames // stored.tubelet_size, rows, columns) == (geometry.steps, *geometry.grid)
    if not same:
        _warn_of_loading(f"{type(stored).__name__} keeps its sizes, by which the table is numbered anew")
        return stored
    return configuration_built_for(geometry, stored)


def positions_as_they_are(geometry: Geometry, method: Any) -> Callable[..., Tensor]:
    """`interpolate_pos_encoding` for a table that follows the clip: transformers' own takes it for square."""
    return functools.partial(_positions, method.__self__)


def _positions(embeddings: Any, *_: Any) -> Tensor:
    return embeddings.position_embeddings


def patch_side(geometry: Geometry, stored: int) -> int | None:
    """Side of a patch that is square; None of any other, for a number that nothing may read by then."""
    return geometry.patch[0] if geometry.patch[0] == geometry.patch[1] else None


def grid_side(geometry: Geometry, stored: int) -> int | None:
    """Side of a grid that is square; None of any other, for a number that nothing may read by then."""
    return geometry.grid[0] if geometry.grid[0] == geometry.grid[1] else None


def stored_sizes(host: Any, owners: tuple[str, ...], base: Base) -> Iterator[State]:
    """Sizes that modules store; where one number stands for both sides of a patch, it is never read."""
    for owner in owners:
        for state in cached_sizes(host, owner, base):
            one_number = state.value is patch_size and isinstance(find(host, state.name), int)
            yield State(state.name, patch_side) if one_number else state


def _embedding_sizes(host: Any, base: Base) -> tuple[State, ...]:
    sizes = tuple(stored_sizes(host, (PATCHES, "embeddings"), base))
    resize = "embeddings.interpolate_pos_encoding"
    return sizes if find(host, resize) is None else (*sizes, State(resize, positions_as_they_are))


def _base(host: Any) -> Base:
    image, sizes = find(host, f"{PATCHES}.image_size"), conv_sizes(host, f"{PATCHES}.projection")
    assert sizes is not None
    height, width = as_pair(image, what="image_size")
    return Base(getattr(host.config, "num_frames", None), height, width, *sizes)


def image_encoder(host: Any) -> Plan:
    """Plan of an encoder with ViT's names, whose table has a first row for each of its class tokens, if any.

    Args:
        host: the encoder.
    """
    base, table = _base(host), find(host, POSITIONS)
    rows: tuple[ClassRow, ...] = () if table is None else ("first",) * (table.shape[1] - math.prod(base.grid))
    return Plan(
        base=base,
        patch_embeds=(f"{PATCHES}.projection",),
        tables=() if table is None else (Table(POSITIONS, axes="space", class_rows=rows),),
        state=_embedding_sizes(host, base),
        layout="bchw",
        fixed=those_stored(host, "embeddings.register_tokens"),
    )


@register_family("VideoMAE of transformers")
def videomae(host: nn.Module) -> Plan | None:
    """VideoMAE, its classifier and its pre-training, whose decoder paints patches of one size.

    Its table of sines is no parameter and numbers the tokens of the clip through; at another size each token
    has what its neighbours at the base have, interpolated. Numbered anew, as a model does that is built for
    that size, every token would be moved.

    Source: transformers, models/videomae/modeling_videomae.py.
    """
    around = ("VideoMAEForVideoClassification", "VideoMAEForPreTraining")
    found = bare_or_within(host, ("VideoMAEModel",), around, _videomae)
    if found is None:
        return None
    (configuration,) = found.baked
    found = replace(found, baked=(replace(configuration, value=configuration_with_that_table),))
    if not class_named(host, "transformers", "VideoMAEForPreTraining"):
        return found
    return replace(
        found,
        patch_embeds=(),
        channels=find(host, f"videomae.{PATCHES}.num_channels"),
        tables=(*found.tables, Table("position_embeddings", axes="joint")),
        entries=("forward", *found.entries),
    )


def _videomae(host: Any) -> Plan:
    base = _base(host)
    return Plan(
        base=base,
        patch_embeds=(f"{PATCHES}.projection",),
        tables=(Table(POSITIONS, axes="joint"),),
        state=_embedding_sizes(host, base),
        layout="btchw",
    )


@register_family("ViViT of transformers")
def vivit(host: nn.Module) -> Plan | None:
    """ViViT and its classifier: one table for the clip, which it cannot resize itself.

    Source: transformers, models/vivit/modeling_vivit.py.
    """
    return bare_or_within(host, ("VivitModel",), ("VivitForVideoClassification",), _vivit)


def _vivit(host: Any) -> Plan:
    return replace(_videomae(host), tables=(Table(POSITIONS, axes="joint", class_rows=("first",)),))


def timesformer_configuration(geometry: Geometry, stored: Any) -> Any:
    """Copy of the configuration with the frames of the clip, and the columns that its layers divide out."""
    sized = copy.copy(stored)
    sized.num_frames, sized.image_size, sized.patch_size = (
        geometry.frames,
        geometry.grid[1] * geometry.patch[1],
        geometry.patch[1],
    )
    return sized


@register_family("TimeSformer of transformers")
def timesformer(host: nn.Module) -> Plan | None:
    """TimeSformer and its classifier.

    Every layer divides the configuration's frame size by its patch for the number of columns. By itself the
    model resizes its tables to the nearest row, and then counts on the frames that it was built for.

    Source: transformers, models/timesformer/modeling_timesformer.py.
    """
    return bare_or_within(host, ("TimesformerModel",), ("TimesformerForVideoClassification",), _timesformer)


def _timesformer(host: Any) -> Plan:
    base, time = _base(host), "embeddings.time_embeddings"
    temporal = (Table(time, axes="time"),) if find(host, time) is not None else ()
    layers = tuple(
        State(f"encoder.layer.{index}.config", timesformer_configuration)
        for index in range(len(host.encoder.layer))
    )
    return Plan(
        base=base,
        patch_embeds=(f"{PATCHES}.projection",),
        tables=(Table(POSITIONS, axes="space", class_rows=("first",)), *temporal),
        state=(*_embedding_sizes(host, base), *layers),
        layout="btchw",
    )


def token_places(geometry: Geometry, method: Any) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """`get_position_ids` for any grid: step, row and column of each token; its own takes it for square."""
    return functools.partial(_places, method.__self__, *geometry.grid)


def _places(
    attention: Any, rows: int, columns: int, x: Tensor, masks: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    if masks is None:
        tokens = torch.arange(x.shape[1], device=x.device)
    else:
        tokens = masks[:, None].expand(-1, attention.num_attention_heads, -1)
    return tokens // (rows * columns), tokens % (rows * columns) // columns, tokens % columns


@register_family("V-JEPA 2 of transformers")
def vjepa2(host: nn.Module) -> Plan | None:
    """V-JEPA 2, encoder and predictor, and its classifier: rotary positions, which count rows and columns.

    More tokens are more positions, as its authors run it at other sizes; the angles are not stretched.

    Source: transformers, models/vjepa2/modeling_vjepa2.py.
    """
    return bare_or_within(host, ("VJEPA2Model",), ("VJEPA2ForVideoClassification",), _vjepa2)


def _vjepa2(host: Any) -> Plan:
    conv, config = "encoder.embeddings.patch_embeddings.proj", host.config
    sizes = conv_sizes(host, conv)
    assert sizes is not None
    base = Base(config.frames_per_clip, config.crop_size, config.crop_size, *sizes)
    owners = ("encoder.embeddings", "encoder.embeddings.patch_embeddings", "predictor.embeddings")
    layers = (
        f"{part}.layer.{index}.attention"
        for part in ("encoder", "predictor")
        for index in range(len(host.get_submodule(f"{part}.layer")))
    )
    places = (("get_position_ids", token_places), ("grid_size", grid_side), ("grid_depth", step_count))
    return Plan(
        base=base,
        patch_embeds=(conv,),
        state=(
            *stored_sizes(host, owners, base),
            *(State(f"{layer}.{name}", value) for layer in layers for name, value in places),
        ),
        layout="btchw",
    )
