"""Cases of `flexvideo.families_hf`, `families_timm` and `families_torchvision`, on the packages."""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from cases import Case, Probe, joint_table, marks, space_table, time_table
from cases_ssm import by_place, first, in_order
from packages import package
from torch import Tensor, nn

import flexvideo as fv

DIM, FRAMES, IMAGE, PATCH = 24, 4, 32, 8
BASE = (FRAMES, IMAGE, IMAGE)
GRID = (IMAGE // PATCH, IMAGE // PATCH)
SIZES = ((8, 48, 32), (2, 24, 56), (6, 64, 40))
IMAGES = tuple((1, *size[1:]) for size in SIZES)
STEPS = FRAMES // 2
HF = {"hidden_size": DIM, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
HF |= {"image_size": IMAGE, "patch_size": PATCH}
TIMM = {
    "img_size": IMAGE,
    "patch_size": PATCH,
    "embed_dim": DIM,
    "depth": 1,
    "num_heads": 2,
    "num_classes": 5,
}


def fill(**tables: Tensor) -> Callable[[Any], None]:
    """Write tables into attributes, `__` for a dot, whatever shape of the same size those have."""

    def write(model: nn.Module) -> None:
        for name, table in tables.items():
            owner, _, attribute = name.replace("__", ".").rpartition(".")
            stored = getattr(model.get_submodule(owner), attribute)
            stored.copy_(table.reshape(stored.shape))

    return write


def checked(name: str) -> str:
    """Name and version of a package; its name alone where it is not installed: its tests are skipped."""
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return name


# transformers


def hf(model: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    """Build a model of transformers from a configuration, the tiny one but for some options."""

    def make() -> nn.Module:
        transformers = package("transformers")
        settings = {name: value for name, value in (HF | options).items() if value is not None}
        return getattr(transformers, model)(getattr(transformers, config)(**settings))

    return make


def output(model: nn.Module, clip: Tensor, **options: Any) -> Tensor:
    """First tensor of what a model of transformers returns, which is no tuple."""
    return model(clip, **options)[0]


def by_keyword(model: nn.Module, clip: Tensor, **options: Any) -> Tensor:
    return model(pixel_values=clip, **options)[0]


def features(model: nn.Module, clip: Tensor, **options: Any) -> Tensor:
    return model(clip, **options).feature_maps[0]


def predicted(model: nn.Module, clip: Tensor, **options: Any) -> Tensor:
    found = model(pixel_values_videos=clip, **options)
    return torch.cat((found.last_hidden_state, found.predictor_output.last_hidden_state), dim=1)


def every_second_masked(model: Any, clip: Tensor, **options: Any) -> Tensor:
    size = (clip.shape[1], *clip.shape[3:])
    if "_flex" in vars(model):
        geometry = model._flex.policy.geometry(fv.plan_for(model).base, *size, options.get("patch"))
        size = (geometry.frames, geometry.height, geometry.width)
    tokens = size[0] // 2 * (size[1] // 4) * (size[2] // 4)
    mask = torch.arange(tokens).remainder(2).bool().expand(len(clip), -1)
    return model(clip, bool_masked_pos=mask, **options).logits


def unmasked(model: Any, clip: Tensor, **options: Any) -> Tensor:
    """All tokens in their own order, which noise decides on."""
    rows, columns = clip.shape[2] // PATCH, clip.shape[3] // PATCH
    if "_flex" in vars(model):
        plan, patch = fv.plan_for(model), options.get("patch")
        rows, columns = model._flex.policy.geometry(plan.base, 1, *clip.shape[2:], patch).grid
    return model(clip, noise=torch.arange(float(rows * columns)).expand(len(clip), -1), **options)[0]


def visible_then_masked(tokens: Tensor, geometry: Any) -> tuple[Tensor, Tensor]:
    return tokens.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1), tokens[:0]


def with_registers(tokens: Tensor, geometry: Any) -> tuple[Tensor, Tensor]:
    return in_order(tokens, geometry, cls=tuple(range(5)))


def hf_image(name: str, model: str, config: str, prefix: str = "", **options: Any) -> Case:
    """A ViT of transformers: its table has a row for the class token, and none for registers."""
    registers, count = options.pop("registers", False), options.pop("class_tokens", 1)
    table = f"{prefix}__embeddings__{options.pop('table', 'position_embeddings')}".lstrip("_")
    cls = torch.cat((marks(count), torch.zeros(4, 4))) if registers else marks(count)
    places = tuple(range(count))
    probe = Probe(
        fill(**{table: space_table(*GRID, DIM, cls=places)}),
        f"{prefix}.{options.pop('at', 'embeddings.dropout')}".lstrip("."),
        "rc",
        with_registers if registers else lambda tokens, geometry: in_order(tokens, geometry, cls=places),
        lambda _: cls,
    )
    return Case(
        f"{name} (transformers)",
        hf(model, config, **options.pop("settings", {})),
        options.pop("family", f"{name} of transformers")
        .replace(" with registers", "")
        .replace(", backbone", ""),
        (1, IMAGE, IMAGE),
        IMAGES,
        6,
        options.pop("flexes", "patch kernel, table"),
        layout="bchw",
        checked=checked("transformers"),
        probes=(probe,) if options.pop("probed", True) else (),
        **{"call": output, **options},
    )


def hf_video(name: str, model: str, config: str, flexes: str, probe: Probe | None, **options: Any) -> Case:
    return Case(
        f"{name} (transformers)",
        hf(model, config, **({"num_frames": FRAMES} | options.pop("settings", {}))),
        options.pop("family", f"{name} of transformers"),
        BASE,
        SIZES,
        options.pop("patch", 6),
        flexes,
        layout="btchw",
        checked=checked("transformers"),
        probes=() if probe is None else (probe,),
        **{"call": output, **options},
    )


JEPA = {
    **{"image_size": None, "num_frames": None, "crop_size": IMAGE, "frames_per_clip": FRAMES},
    **{"intermediate_size": None, "num_pooler_layers": 1, "pred_hidden_size": DIM},
    **{"pred_num_attention_heads": 2, "pred_num_hidden_layers": 1},
}
DECODER = {
    **{"patch_size": 4, "decoder_hidden_size": 12, "decoder_num_attention_heads": 2},
    **{"decoder_num_hidden_layers": 1, "decoder_intermediate_size": 12},
}
VIT_LIKE = "DeiT, MSN, MAE, I-JEPA of transformers"
CLIP = {"table": "position_embedding__weight", "at": "pre_layrnorm"}
CLIP |= {"family": "CLIP, SigLIP of transformers"}
NO_SIZES = dict.fromkeys(HF)
TEXT = {"hidden_size": DIM, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
TOWERS = {**NO_SIZES, "vision_config": HF, "text_config": {**TEXT, "vocab_size": 50_000}}
X_CLIP = {"num_frames": 1, "mit_hidden_size": DIM, "mit_num_attention_heads": 2}
TRANSFORMERS = [
    hf_image("ViT", "ViTForImageClassification", "ViTConfig", "vit", call=by_keyword),
    hf_image("DINOv2", "Dinov2ForImageClassification", "Dinov2Config", "dinov2"),
    hf_image(
        "DINOv2, backbone",
        "Dinov2Backbone",
        "Dinov2Config",
        settings={"out_features": ["stage1"]},
        call=features,
    ),
    hf_image(
        "DINOv2 with registers",
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        registers=True,
        settings={"num_register_tokens": 4},
    ),
    hf_image("DeiT", "DeiTForImageClassification", "DeiTConfig", "deit", class_tokens=2, family=VIT_LIKE),
    hf_image("MSN", "ViTMSNForImageClassification", "ViTMSNConfig", "vit", family=VIT_LIKE),
    hf_image(
        "I-JEPA", "IJepaForImageClassification", "IJepaConfig", "ijepa", class_tokens=0, family=VIT_LIKE
    ),
    hf_image(
        "MAE's encoder",
        "ViTMAEModel",
        "ViTMAEConfig",
        at="layers.0",
        family=VIT_LIKE,
        settings={"mask_ratio": 0.0},
        call=unmasked,
    ),
    hf_image(
        "BEiT",
        "BeitForImageClassification",
        "BeitConfig",
        "beit",
        settings={"use_absolute_position_embeddings": True},
    ),
    hf_image(
        "BEiT, relative positions",
        "BeitForImageClassification",
        "BeitConfig",
        family="BEiT of transformers",
        settings={"use_relative_position_bias": True},
        flexes="patch kernel",
        notes="square patches; resizes its relative tables itself, linearly, also when baked",
        square_patch=True,
        probed=False,
    ),
    hf_image(
        "DINOv3",
        "DINOv3ViTModel",
        "DINOv3ViTConfig",
        flexes="patch kernel",
        notes="rotary positions span every frame alike",
        settings={"num_register_tokens": 4},
        probed=False,
    ),
    hf_image("CLIP", "CLIPForImageClassification", "CLIPConfig", "vision_model", **CLIP, settings=TOWERS),
    hf_image(
        "SigLIP",
        "SiglipForImageClassification",
        "SiglipConfig",
        "vision_model",
        class_tokens=0,
        **(CLIP | {"at": "encoder.layers.0"}),
        settings={**NO_SIZES, "vision_config": HF},
    ),
    hf_image(
        "X-CLIP, frames",
        "XCLIPVisionModel",
        "XCLIPVisionConfig",
        **(CLIP | {"at": "pre_layernorm"}),
        settings=X_CLIP,
        notes="the number of frames stays",
    ),
    hf_video(
        "VideoMAE",
        "VideoMAEForVideoClassification",
        "VideoMAEConfig",
        "patch kernel, joint table of sines",
        Probe(
            fill(videomae__embeddings__position_embeddings=joint_table(STEPS, *GRID, DIM)),
            "videomae.encoder",
            "trc",
            in_order,
        ),
        call=by_keyword,
    ),
    hf_video(
        "VideoMAE, pre-training",
        "VideoMAEForPreTraining",
        "VideoMAEConfig",
        "both joint tables of sines",
        Probe(
            fill(position_embeddings=joint_table(STEPS, 8, 8, 12)),
            "decoder",
            "trc",
            visible_then_masked,
        ),
        family="VideoMAE of transformers",
        patch=None,
        call=every_second_masked,
        notes="the patch stays, for the decoder paints it; the mask must have the clip's number of tokens",
        settings=DECODER,
    ),
    hf_video(
        "TimeSformer",
        "TimesformerForVideoClassification",
        "TimesformerConfig",
        "patch kernel, both tables",
        Probe(
            fill(
                timesformer__embeddings__position_embeddings=space_table(*GRID, DIM, cls=(0,)),
                timesformer__embeddings__time_embeddings=time_table(FRAMES, DIM),
            ),
            "timesformer.encoder",
            "trc",
            by_place,
            lambda _: marks(1),
        ),
        notes="its own resizing is by the nearest row, and leaves the layers at the base",
    ),
    hf_video(
        "ViViT",
        "VivitForVideoClassification",
        "VivitConfig",
        "patch kernel, joint table",
        Probe(
            fill(vivit__embeddings__position_embeddings=joint_table(STEPS, *GRID, DIM, cls=(0,))),
            "vivit.embeddings.dropout",
            "trc",
            first,
            lambda _: marks(1),
        ),
        settings={"patch_size": None, "tubelet_size": [2, PATCH, PATCH]},
        notes="its own interpolate_pos_encoding fails",
    ),
    hf_video(
        "V-JEPA 2",
        "VJEPA2Model",
        "VJEPA2Config",
        "patch kernel",
        None,
        settings=JEPA,
        call=predicted,
        notes="rotary positions count the tokens of the clip; frames need not be square",
    ),
    hf_video(
        "V-JEPA 2, classifier",
        "VJEPA2ForVideoClassification",
        "VJEPA2Config",
        "patch kernel",
        None,
        family="V-JEPA 2 of transformers",
        settings=JEPA,
    ),
]

# timm and Hiera


def timm_vit(**options: Any) -> Callable[[], nn.Module]:
    return lambda: package("timm.models.vision_transformer").VisionTransformer(**(TIMM | options))


def timm_case(
    name: str,
    cls: int,
    *,
    rows: bool = True,
    make: Any = None,
    family: str = "timm's ViT",
    probed: bool = True,
    **options: Any,
) -> Case:
    """A ViT of timm with so many class and register tokens, whose table has rows for all of them or none."""
    at = tuple(range(cls))
    probe = Probe(
        fill(pos_embed=space_table(*GRID, DIM, cls=at if rows else ())),
        "blocks.0",
        "rc",
        lambda tokens, geometry: in_order(tokens, geometry, cls=at),
        lambda _: marks(cls) if rows else torch.zeros(cls, 4),
    )
    return Case(
        f"{name} (timm)",
        make or timm_vit(**options),
        family,
        (1, IMAGE, IMAGE),
        IMAGES,
        6,
        "patch kernel, table" if probed else "patch kernel",
        layout="bchw",
        notes="" if family != "timm's Eva" else "rotary positions as by its set_input_size",
        checked=checked("timm"),
        probes=(probe,) if probed else (),
    )


def eva(**options: Any) -> Callable[[], nn.Module]:
    return lambda: package("timm.models.eva").Eva(**(TIMM | options))


def beit() -> nn.Module:
    return package("timm.models.beit").Beit(**TIMM, use_abs_pos_emb=True)


def distilled() -> nn.Module:
    return package("timm.models.deit").VisionTransformerDistilled(**TIMM)


def flexivit() -> nn.Module:
    sizes = {**TIMM, "patch_size": PATCH}
    return package("timm").create_model("flexivit_small", **sizes)


def hiera(**options: Any) -> Callable[[], nn.Module]:
    tiny = {"embed_dim": 8, "stages": (1, 1, 1, 1), "num_classes": 5, "head_init_scale": 1.0}
    return lambda: package("hiera").Hiera(**(tiny | options))


VIDEO_HIERA = {
    **{"input_size": (FRAMES, 64, 64), "q_stride": (1, 2, 2), "mask_unit_size": (1, 8, 8)},
    **{"patch_kernel": (3, 7, 7), "patch_stride": (2, 4, 4), "patch_padding": (1, 3, 3)},
}
UNITS = ((8, 96, 64), (2, 32, 64), (6, 64, 96))
UNITS_NOTE = "sides in multiples of 32 px; its table learns units, which resampling blurs: train it on"


def hiera_case(name: str, probe: Probe, flexes: str, **options: Any) -> Case:
    image = "input_size" not in options
    return Case(
        name,
        hiera(**({"input_size": (64, 64)} if image else {}), **options),
        "Hiera",
        (1, 64, 64) if image else (FRAMES, 64, 64),
        tuple((1, *size[1:]) for size in UNITS) if image else UNITS,
        None,
        flexes,
        layout="bchw" if image else "bcthw",
        notes=UNITS_NOTE,
        checked=checked("hiera-transformer"),
        probes=(probe,),
    )


TIMM_AND_HIERA = [
    timm_case("ViT", 1),
    timm_case("ViT, dynamic_img_size", 1, dynamic_img_size=True),
    timm_case("ViT, padded frames", 1, dynamic_img_size=True, dynamic_img_pad=True),
    timm_case("ViT, registers with positions", 5, reg_tokens=4, dynamic_img_size=True),
    timm_case("ViT, registers without positions", 5, rows=False, reg_tokens=4, no_embed_class=True),
    timm_case("ViT, no class token", 0, class_token=False, global_pool="avg"),
    timm_case("DeiT, distilled", 2, make=distilled),
    timm_case("FlexiViT", 1, rows=False, make=flexivit),
    timm_case("EVA-02", 1, make=eva(use_rot_pos_emb=True, ref_feat_shape=4), family="timm's Eva"),
    timm_case("EVA, mixed RoPE", 1, make=eva(use_rot_pos_emb=True, rope_type="mixed"), family="timm's Eva"),
    timm_case(
        "DINOv3",
        5,
        make=eva(
            use_rot_pos_emb=True,
            rope_type="dinov3",
            use_abs_pos_emb=False,
            num_reg_tokens=4,
            dynamic_img_size=True,
        ),
        family="timm's Eva",
        probed=False,
    ),
    timm_case("BEiT", 1, make=beit, family="timm's BEiT"),
    hiera_case(
        "Hiera, video",
        Probe(
            fill(pos_embed_spatial=space_table(16, 16, 8), pos_embed_temporal=time_table(STEPS, 8)),
            "unroll",
            "trc",
            in_order,
        ),
        "both tables",
        sep_pos_embed=True,
        **VIDEO_HIERA,
    ),
    hiera_case(
        "Hiera, video, joint table",
        Probe(fill(pos_embed=joint_table(STEPS, 16, 16, 8)), "unroll", "trc", in_order),
        "joint table",
        **VIDEO_HIERA,
    ),
    hiera_case(
        "Hiera, images",
        Probe(fill(pos_embed=space_table(16, 16, 8)), "unroll", "rc", in_order),
        "table",
    ),
]

# torchvision


def mvit(*, relative: bool) -> nn.Module:
    """MViT v1, or v2 with `relative` positions: two blocks, the second at half the size."""
    module = package("torchvision.models.video.mvit")
    block, dims = module.MSBlockConfig, ((8, 8), (8, 16)) if relative else ((8, 16), (16, 16))
    settings = [
        block(1, *dims[0], [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 2, 2]),
        block(2, *dims[1], [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 1, 1]),
    ]
    return module.MViT(
        (IMAGE, IMAGE),
        FRAMES,
        settings,
        residual_pool=relative,
        residual_with_cls_embed=not relative,
        rel_pos_embed=relative,
        proj_after_attn=relative,
        num_classes=5,
    )


def swin3d() -> nn.Module:
    module = package("torchvision.models.video.swin_transformer")
    return module.SwinTransformer3d([2, 4, 4], 4, [2, 2], [1, 2], [2, 7, 7], num_classes=5)


def tv_vit() -> nn.Module:
    model = package("torchvision.models.vision_transformer")
    return model.VisionTransformer(IMAGE, PATCH, 1, 2, DIM, 32, num_classes=5)


TORCHVISION = [
    Case(
        "ViT (torchvision)",
        tv_vit,
        "torchvision's ViT",
        (1, IMAGE, IMAGE),
        IMAGES,
        6,
        "patch kernel, table",
        layout="bchw",
        notes="square patches",
        checked=checked("torchvision"),
        probes=(
            Probe(
                fill(encoder__pos_embedding=space_table(*GRID, DIM, cls=(0,))),
                "encoder.dropout",
                "rc",
                first,
                lambda _: marks(1),
            ),
        ),
        square_patch=True,
    ),
    Case(
        "MViT v1 (torchvision)",
        lambda: mvit(relative=False),
        "torchvision's MViT",
        BASE,
        SIZES,
        None,
        "both tables",
        notes="the patch stays: its windows overlap",
        checked=checked("torchvision"),
        probes=(
            Probe(
                fill(
                    pos_encoding__spatial_pos=space_table(8, 8, 8),
                    pos_encoding__temporal_pos=time_table(STEPS, 8),
                    pos_encoding__class_pos=marks(1).repeat(1, 2) * torch.arange(8).less(4),
                ),
                "blocks.0",
                "trc",
                first,
                lambda _: marks(1),
            ),
        ),
    ),
    Case(
        "MViT v2 (torchvision)",
        lambda: mvit(relative=True),
        "torchvision's MViT",
        BASE,
        SIZES,
        None,
        "nothing to resample: the grid that it is told",
        notes="the patch stays; it resizes its relative tables itself, linearly",
        checked=checked("torchvision"),
    ),
    Case(
        "Swin3D (torchvision)",
        swin3d,
        "torchvision's Swin3D",
        (FRAMES, 224, 224),
        ((8, 64, 56), (2, 88, 64), (6, 56, 72)),
        6,
        "patch kernel",
        notes="takes any size itself, and misplaces tokens where a grid is smaller than a window: put right",
        checked=checked("torchvision"),
    ),
]
CASES = [*TRANSFORMERS, *TIMM_AND_HIERA, *TORCHVISION]


def naflexvit() -> nn.Module:
    return package("timm.models.naflexvit").NaFlexVit(**TIMM)


SIZE_FREE = {"NaFlexViT (timm)": naflexvit}
SIZE_FREE_CHECKED = checked("timm")
