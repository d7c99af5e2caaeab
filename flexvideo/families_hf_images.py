"""Image encoders of transformers that are recognised, bare or within other models.

Tested with transformers 5.23; see `flexvideo.families_hf`.
"""

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from flexvideo.errors import UnsupportedModelError
from flexvideo.families import (
    columns_of_grid,
    conv_sizes,
    either_side,
    find,
    patch_size,
    register_family,
    rows_of_grid,
    those_stored,
)
from flexvideo.families_hf import (
    bare_or_within,
    class_named,
    image_encoder,
    patch_side,
    stored_sizes,
)
from flexvideo.geometry import Base, Geometry, as_pair
from flexvideo.plan import ClassRow, Plan, State, Table


@register_family("ViT of transformers")
def vit(host: nn.Module) -> Plan | None:
    """ViT for images, its classifier too.

    Source: transformers, models/vit/modeling_vit.py.
    """
    if class_named(host, "transformers", "ViTForMaskedImageModeling"):
        raise UnsupportedModelError(
            "ViTForMaskedImageModeling cannot flex, because it takes its own frames for square ones of one "
            "size when it puts pixels back together: make its encoder flexible, `model.vit`."
        )
    return bare_or_within(host, ("ViTModel",), ("ViTForImageClassification",), image_encoder)


def patch_configuration(geometry: Geometry, stored: Any) -> Any:
    """Copy of the configuration with the patch in force, by which a backbone gives its maps their shape."""
    sized = copy.copy(stored)
    sized.patch_size = geometry.patch if patch_side(geometry, 0) is None else geometry.patch[0]
    return sized


@register_family("DINOv2 of transformers")
def dinov2(host: nn.Module) -> Plan | None:
    """DINOv2 for images, with registers or without, its classifiers and backbones too.

    Register tokens have no rows in the table. DINOv2 itself resizes as rule "paper" does, DINOv2 with
    registers with antialiasing, as rule "auto" does.

    Source: transformers, models/dinov2 and models/dinov2_with_registers.
    """
    kinds = ("Dinov2", "Dinov2WithRegisters")
    bare = tuple(f"{kind}{part}" for kind in kinds for part in ("Model", "Backbone"))
    around = tuple(f"{kind}ForImageClassification" for kind in kinds)
    return bare_or_within(host, bare, around, _dinov2)


def _dinov2(host: Any) -> Plan:
    plan = image_encoder(host)
    if not class_named(host, "transformers", "Dinov2Backbone", "Dinov2WithRegistersBackbone"):
        return plan
    return replace(plan, state=(*plan.state, State("config", patch_configuration)))


VIT_LIKE = ("DeiTModel", "ViTMSNModel", "IJepaModel", "ViTMAEModel")
AROUND_VIT_LIKE = (
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
    "ViTMSNForImageClassification",
    "IJepaForImageClassification",
)
PAINTERS = ("DeiTForMaskedImageModeling", "ViTMAEForPreTraining")


@register_family("DeiT, MSN, MAE, I-JEPA of transformers")
def vit_like(host: nn.Module) -> Plan | None:
    """Encoders with the parts of ViT: DeiT has two class tokens, I-JEPA none; MAE's leaves tokens out.

    Source: transformers, models/deit, models/vit_msn, models/vit_mae and models/ijepa.
    """
    if class_named(host, "transformers", *PAINTERS):
        encoder = "deit" if class_named(host, "transformers", PAINTERS[0]) else "vit"
        raise UnsupportedModelError(
            f"{type(host).__name__} cannot flex, because it takes its own frames for square ones of one size "
            f"when it puts pixels back together: make its encoder flexible, `model.{encoder}`."
        )
    return bare_or_within(host, VIT_LIKE, AROUND_VIT_LIKE, image_encoder)


def configuration_of_squares(geometry: Geometry, stored: Any) -> Any:
    """Copy of the configuration with the patch in force, for a host that divides by one number.

    Raises:
        GeometryError: when the patch is not square.
    """
    patch_size(geometry, stored.patch_size)
    return patch_configuration(geometry, stored)


@register_family("BEiT of transformers")
def beit(host: nn.Module) -> Plan | None:
    """BEiT: its relative tables it resizes itself, linearly, to the grid that it divides out.

    Source: transformers, models/beit/modeling_beit.py.
    """
    around = ("BeitForImageClassification", "BeitForMaskedImageModeling")
    found = bare_or_within(host, ("BeitModel",), around, _beit)
    if found is None or not any(name.endswith("relative_position_bias_table") for name in found.fixed):
        return found
    return replace(found, baked=())  # its relative tables stay those of the base, and so does what it says


def _beit(host: Any) -> Plan:
    plan, parts = image_encoder(host), dict(host.named_modules())
    layers = [path for path, part in parts.items() if class_named(part, "transformers", "BeitLayer")]
    biases = [path for path in parts if path.endswith(("relative_position_bias", "shared_position_bias"))]
    if biases and plan.base.grid[0] != plan.base.grid[1]:
        raise UnsupportedModelError(
            f"{type(host).__name__} built for {plan.base.height} x {plan.base.width} px cannot flex, because "
            "transformers takes the rows of its relative positions for columns when it resizes them: it can "
            "when it is built for square frames."
        )
    shared = "shared_position_bias" in biases
    built_with = ("window_size", "relative_position_bias_table")
    return replace(
        plan,
        state=(
            *plan.state,
            *(State(f"{layer}.patch_size", patch_size if biases else patch_side) for layer in layers),
            *((State("config", configuration_of_squares),) if shared else ()),
        ),
        fixed=tuple(f"{bias}.{name}" for bias in biases for name in built_with),
    )


CLIP_LIKE = tuple(
    f"{kind}Vision{part}"
    for kind in ("CLIP", "Siglip", "MetaClip2", "AltCLIP", "ChineseCLIP", "XCLIP")
    for part in ("Model", "Transformer")
)
AROUND_CLIP_LIKE = tuple(
    f"{kind}{part}"
    for kind in ("CLIP", "Siglip", "MetaClip2")
    for part in ("VisionModelWithProjection", "ForImageClassification", "Model")
)


def as_many(geometry: Geometry, stored: Tensor) -> Tensor:
    """Numbers of the rows of a table without a class token, as an embedding is looked up by: (1, rows)."""
    return _numbers(stored, math.prod(geometry.grid))


def one_more(geometry: Geometry, stored: Tensor) -> Tensor:
    """Numbers of the rows of a table with a class token: (1, rows)."""
    return _numbers(stored, math.prod(geometry.grid) + 1)


def positions_of_numbers(geometry: Geometry, method: Any) -> Callable[..., Tensor]:
    """`interpolate_pos_encoding` for a table that follows the clip: transformers' own takes it for square."""
    return functools.partial(_looked_up, method.__self__)


def _looked_up(embeddings: Any, *_: Any) -> Tensor:
    return embeddings.position_embedding(embeddings.position_ids)


def _numbers(stored: Tensor, count: int) -> Tensor:
    if stored.shape[1] == count:
        return stored
    return torch.arange(count, device=stored.device, dtype=stored.dtype)[None]


@register_family("CLIP, SigLIP of transformers")
def clip(host: nn.Module) -> Plan | None:
    """The image encoders of CLIP, SigLIP and their kin, also within the model that compares with texts.

    X-CLIP's takes the frames of a clip as a batch, and keeps their number.

    Source: transformers, models/clip, models/siglip, models/metaclip_2, models/altclip, models/chinese_clip
    and models/x_clip.
    """
    return bare_or_within(host, CLIP_LIKE, AROUND_CLIP_LIKE, _clip)


def _clip(host: Any) -> Plan | None:
    conv, table = "embeddings.patch_embedding", "embeddings.position_embedding.weight"
    sizes, image = conv_sizes(host, conv), find(host, "embeddings.image_size")
    if sizes is None or image is None:
        return None  # a model around the encoder in earlier versions, which is asked about itself
    base = Base(None, *as_pair(image, what="image_size"), sizes[0])
    rows: tuple[ClassRow, ...] = ("first",) * (len(find(host, table)) - math.prod(base.grid))
    image_size = "embeddings.image_size"
    return Plan(
        base=base,
        patch_embeds=(conv,),
        tables=(Table(table, axes="space", dim=0, class_rows=rows),),
        state=(
            *(state for state in stored_sizes(host, ("embeddings",), base) if state.name != image_size),
            State(image_size, either_side),
            State("embeddings.position_ids", one_more if rows else as_many),
            State("embeddings.interpolate_pos_encoding", positions_of_numbers),
        ),
        layout="bchw",
        fixed=("embeddings.num_positions",),  # read when it is built only
    )


@register_family("DINOv3 of transformers")
def dinov3(host: nn.Module) -> Plan | None:
    """DINOv3, its classifier and its backbone: rotary positions that span every frame alike.

    It takes frames of any size as it is; what flexes is the patch, which it reads from its configuration.

    Source: transformers, models/dinov3_vit/modeling_dinov3_vit.py.
    """
    bare = ("DINOv3ViTModel", "DINOv3ViTBackbone")
    return bare_or_within(host, bare, ("DINOv3ViTForImageClassification",), _dinov3)


def _dinov3(host: Any) -> Plan:
    conv, rope = "embeddings.patch_embeddings", "rope_embeddings"
    sizes = conv_sizes(host, conv)
    assert sizes is not None
    backbone = class_named(host, "transformers", "DINOv3ViTBackbone")
    return Plan(
        base=Base(None, *as_pair(host.config.image_size, what="image_size"), sizes[0]),
        patch_embeds=(conv,),
        state=(
            State(f"{rope}.config", patch_configuration),
            State(f"{rope}.num_patches_h", rows_of_grid),
            State(f"{rope}.num_patches_w", columns_of_grid),
            *((State("config", patch_configuration),) if backbone else ()),
        ),
        layout="bchw",
        fixed=those_stored(host, "embeddings.register_tokens"),
    )
