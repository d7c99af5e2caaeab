"""Cases of `flexvideo.families` and `flexvideo.families_ssm`, on stand-ins; see tests/cases.py."""

from typing import Any

import hosts
import torch
from cases import Case, Probe, centres, joint_table, marks, space_table, time_table
from standins import image, video, vim
from standins.parts import DIM, FRAMES, IMAGE
from torch import Tensor

import flexvideo as fv

BASE = (FRAMES, IMAGE, IMAGE)
SIZES = ((8, 48, 32), (3, 24, 56), (5, 64, 40))
EVEN = ((1, 48, 32), (1, 24, 64), (1, 56, 48))
SQUARES = ((8, 48, 48), (3, 24, 24), (5, 64, 64))
LARGE = ((1, 96, 64), (1, 48, 112), (1, 80, 80))


def resampled(old: int, new: int, mode: str) -> Tensor:
    """The coordinates of an axis at another length, by torch itself."""
    line = centres(old).double().expand(1, 1, 2, -1)
    return torch.nn.functional.interpolate(line, (2, new), mode=mode, antialias=True)[0, 0, 0].float()


def times(geometry: Any) -> Tensor:
    return resampled(FRAMES, geometry.steps, "bilinear")


def in_order(tokens: Tensor, geometry: Any, *, cls: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """Frame by frame, row by row, class tokens at indices."""
    keep = [index for index in range(len(tokens)) if index not in cls]
    return tokens[keep], tokens[list(cls)]


def first(tokens: Tensor, geometry: Any) -> tuple[Tensor, Tensor]:
    return in_order(tokens, geometry, cls=(0,))


def last(tokens: Tensor, geometry: Any) -> tuple[Tensor, Tensor]:
    return in_order(tokens, geometry, cls=(len(tokens) - 1,))


def middle(tokens: Tensor, geometry: Any) -> tuple[Tensor, Tensor]:
    return in_order(tokens, geometry, cls=((len(tokens) - 1) // 2,))


def both_ends(tokens: Tensor, geometry: Any) -> tuple[Tensor, Tensor]:
    return in_order(tokens, geometry, cls=(0, len(tokens) - 1))


def middle_of_frames(tokens: Tensor, geometry: Any) -> tuple[Tensor, Tensor]:
    frame = len(tokens) // geometry.steps
    at = tuple(step * frame + (frame - 1) // 2 for step in range(geometry.steps))
    return in_order(tokens, geometry, cls=at)


def by_place(tokens: Tensor, geometry: Any) -> tuple[Tensor, Tensor]:
    """TimeMamba's order: the frames of one place after each other."""
    rest = tokens[1:].unflatten(0, (-1, geometry.steps)).transpose(0, 1).flatten(0, 1)
    return rest, tokens[:1]


def registers(tokens: Tensor, geometry: Any) -> tuple[Tensor, Tensor]:
    apart = (len(tokens) - 3) // 4
    return in_order(tokens, geometry, cls=(apart, 2 * apart + 1, 3 * apart + 2))


def pixels(tokens: Tensor, geometry: Any) -> tuple[Tensor, Tensor]:
    return in_order(tokens.flatten(0, 1), geometry)


def fill(**tables: Tensor) -> Any:
    """Write tables into attributes of the same names, whatever shape of the same size those have."""

    def write(model: Any) -> None:
        for name, table in tables.items():
            stored = getattr(model, name)
            stored.copy_(table.reshape(stored.shape))

    return write


def masked(model: Any, clip: Tensor, **options: Any) -> Tensor:
    """Nothing masked: every token is decoded, whose number follows the geometry."""
    return model(clip, mask=nothing_masked(model, clip, options), **options)


def multimodal(model: Any, clip: Tensor, **options: Any) -> Tensor:
    _, pooled, decoded = model(clip, mask=nothing_masked(model, clip, options), **options)
    return torch.cat((pooled, decoded[0]), dim=1)


def nothing_masked(model: Any, clip: Tensor, options: dict[str, Any]) -> Tensor:
    plan = fv.plan_for(model)
    size = (clip.shape[2], *clip.shape[3:])
    tokens = plan.base.steps * plan.base.grid[0] * plan.base.grid[1]
    if "_flex" in vars(model):
        tokens = model._flex.policy.geometry(plan.base, *size, options.get("patch")).tokens
    return torch.zeros(len(clip), tokens + 1, dtype=torch.bool)


def vim_case(name: str, probe: Probe, **options: Any) -> Case:
    return Case(
        name,
        lambda: vim.Vim(**options),
        "Vim",
        BASE,
        EVEN if options.get("if_rope") else SIZES,
        6,
        "patch kernel" + (", table" if options.get("if_abs_pos_embed", True) else ""),
        layout="bchw",
        notes="RoPE follows; an even number of tokens" if options.get("if_rope") else "",
        probes=(probe,) if options.get("if_abs_pos_embed", True) and not options.get("if_rope") else (),
    )


GRID = (4, 4)
BOTH = "patch kernel, both tables"
VIDEO_TABLES = {
    "pos_embed": space_table(*GRID, DIM, cls=(0,)),
    "temporal_pos_embedding": time_table(FRAMES, DIM),
}
VIDEO = Probe(fill(**VIDEO_TABLES), "layers.0", "trc", first, lambda _: marks(1))
DECODER = Probe(
    fill(clip_pos_embed=joint_table(FRAMES, *GRID, DIM, cls=(0,))),
    "clip_decoder.0",
    "trc",
    first,
    lambda _: marks(1),
)
VIM_MIDDLE = Probe(
    fill(pos_embed=space_table(*GRID, DIM, cls=(8,))), "layers.0", "rc", middle, lambda _: marks(1)
)
VIVIM = fill(pos_embed=space_table(*GRID, DIM, cls=(8,)), temporal_embedding=time_table(FRAMES, DIM))


def official() -> hosts.VisionMamba:
    return hosts.VisionMamba(embed_dim=DIM, num_frames=FRAMES)


def ours() -> fv.VideoMamba:
    return fv.VideoMamba(
        img_size=IMAGE,
        patch_size=8,
        depth=1,
        embed_dim=DIM,
        num_classes=5,
        num_frames=FRAMES,
        drop_path_rate=0.0,
        scan_backend="reference",
    )


CASES = [
    Case(
        "VideoMamba, ours",
        ours,
        "VideoMamba",
        BASE,
        SIZES,
        6,
        BOTH,
        checked="flexvideo",
    ),
    Case(
        "VideoMamba, VideoMambaPro",
        official,
        "VideoMamba",
        BASE,
        SIZES,
        6,
        BOTH,
        probes=(VIDEO,),
    ),
    Case(
        "VideoMamba, masked pretraining",
        video.MaskedVideoMamba,
        "VideoMamba",
        BASE,
        SIZES,
        6,
        "patch kernel, both tables, the decoder's table",
        notes="the mask must have the clip's number of tokens",
        call=masked,
        probes=(VIDEO, DECODER),
    ),
    Case(
        "VideoMamba, multimodal",
        video.MultimodalVideoMamba,
        "VideoMamba",
        BASE,
        SIZES,
        6,
        "patch kernel, both tables, the decoder's tables",
        notes="the mask must have the clip's number of tokens",
        call=multimodal,
        probes=(VIDEO, DECODER),
    ),
    Case(
        "VideoMamba for images",
        lambda: hosts.ImageMamba(embed_dim=DIM),
        "VideoMamba for images",
        BASE,
        SIZES,
        6,
        "patch kernel, table",
        layout="bchw",
        probes=(
            Probe(
                fill(pos_embed=space_table(*GRID, DIM, cls=(0,))), "layers.0", "rc", first, lambda _: marks(1)
            ),
        ),
    ),
    vim_case("Vim, class token in the middle", VIM_MIDDLE),
    vim_case(
        "Vim, class token first",
        Probe(fill(pos_embed=space_table(*GRID, DIM, cls=(0,))), "layers.0", "rc", first, lambda _: marks(1)),
        use_middle_cls_token=False,
    ),
    vim_case(
        "Vim, class tokens at both ends",
        Probe(
            fill(pos_embed=space_table(*GRID, DIM, cls=(0, 17))),
            "layers.0",
            "rc",
            both_ends,
            lambda _: marks(2),
        ),
        use_double_cls_token=True,
    ),
    vim_case(
        "Vim without a class token",
        Probe(fill(pos_embed=space_table(*GRID, DIM)), "layers.0", "rc", in_order),
        if_cls_token=False,
    ),
    vim_case(
        "Vim, overlapping patches",
        Probe(fill(pos_embed=space_table(3, 3, DIM, cls=(4,))), "layers.0", "rc", middle, lambda _: marks(1)),
        patch_size=16,
        stride=8,
    ),
    vim_case("Vim with RoPE", VIM_MIDDLE, if_rope=True),
    vim_case("Vim with RoPE alone", VIM_MIDDLE, if_rope=True, if_abs_pos_embed=False),
    Case(
        "ViViM",
        vim.ViViM,
        "ViViM",
        BASE,
        SIZES,
        6,
        BOTH,
        probes=(Probe(VIVIM, "layers.0", "trc", middle_of_frames, lambda at: marks(at.steps, times(at))),),
    ),
    Case(
        "ViViM, one class token",
        lambda: vim.ViViM(frame_mid_cls_token=False),
        "ViViM",
        BASE,
        SIZES,
        6,
        BOTH,
        probes=(Probe(VIVIM, "layers.0", "trc", middle, lambda _: marks(1)),),
    ),
    Case(
        "TimeMamba",
        video.TimeMamba,
        "TimeMamba",
        BASE,
        SIZES,
        6,
        "patch kernel, table",
        notes="no temporal table; more frames than it was built for run",
        probes=(
            Probe(
                fill(pos_embed=space_table(*GRID, DIM, cls=(0,))),
                "blocks.0",
                "rc",
                by_place,
                lambda _: marks(1),
            ),
        ),
    ),
    Case(
        "Mamba-ND",
        video.Mamba3DModel,
        "Mamba-ND",
        BASE,
        SQUARES,
        6,
        "patch kernel, joint table",
        notes="square clips and patches only",
        probes=(Probe(fill(pos_embed=joint_table(FRAMES, *GRID, DIM)), "layers.0", "trc", in_order),),
    ),
    Case(
        "Mamba-ND with a class token",
        lambda: video.Mamba3DModel(with_cls_token=True),
        "Mamba-ND",
        BASE,
        SQUARES,
        6,
        "patch kernel, joint table",
        notes="square clips and patches only",
        probes=(
            # The class token ends the sequence, and the row that it has in the table is cut off.
            Probe(
                fill(pos_embed=joint_table(FRAMES, *GRID, DIM, cls=(0,))),
                "layers.0",
                "trc",
                last,
                lambda _: torch.zeros(1, 4),
            ),
        ),
    ),
    Case(
        "Mamba-ND, tubelets",
        lambda: video.Mamba3DModel(patch_size_temporal=2),
        "Mamba-ND",
        BASE,
        ((8, 48, 48), (2, 24, 24), (4, 64, 64)),
        6,
        "patch kernel, joint table",
        notes="square clips and patches only",
    ),
    Case(
        "LocalMamba's Vim",
        lambda: vim.LocalVim(if_rope=False),
        "LocalMamba's Vim",
        BASE,
        SIZES,
        6,
        "patch kernel, table",
        layout="bchw",
        notes="square patches only",
        square_patch=True,
        probes=(Probe(fill(pos_embed=space_table(*GRID, DIM)), "layers.0", "rc", in_order),),
    ),
    Case(
        "LocalMamba's Vim with RoPE",
        vim.LocalVim,
        "LocalMamba's Vim",
        BASE,
        SIZES,
        6,
        "patch kernel, table",
        layout="bchw",
        notes="square patches only; RoPE follows",
        square_patch=True,
    ),
    Case(
        "PlainMamba",
        image.PlainMamba,
        "PlainMamba",
        (1, 64, 64),
        LARGE,
        12,
        "projection after the stem, table",
        layout="bchw",
        notes="even patches only",
        probes=(Probe(fill(pos_embed=space_table(*GRID, DIM)), "layers.0", "rc", in_order),),
    ),
    Case(
        "Mamba-Reg",
        vim.MambaReg,
        "Mamba-Reg",
        BASE,
        SIZES,
        6,
        "patch kernel, table",
        layout="bchw",
        notes="registers are spread anew",
        probes=(
            Probe(
                fill(
                    pos_embed=space_table(*GRID, DIM),
                    pos_embed_cls=torch.nn.functional.pad(marks(3), (0, DIM - 4)),
                ),
                "layers.0",
                "rc",
                registers,
                lambda _: marks(3),
            ),
        ),
    ),
    Case(
        "VMamba, patch v1",
        image.VSSM,
        "VMamba",
        BASE,
        SIZES,
        3,
        "patch kernel, 4-D table",
        layout="bchw",
        probes=(
            Probe(fill(pos_embed=space_table(8, 8, DIM).T.contiguous()), "layers.0.blocks.0", "rc", pixels),
        ),
    ),
    Case(
        "VMamba, patch v2",
        lambda: image.VSSM(patchembed_version="v2"),
        "VMamba",
        BASE,
        SIZES,
        None,
        "4-D table",
        layout="bchw",
        notes="the patch cannot change",
        probes=(
            Probe(fill(pos_embed=space_table(8, 8, DIM).T.contiguous()), "layers.0.blocks.0", "rc", pixels),
        ),
    ),
]

SIZE_FREE = {
    "VMamba without a table": lambda: image.VSSM(posembed=False),
    "VMamba without a table, patch v2": lambda: image.VSSM(posembed=False, patchembed_version="v2"),
    "MambaVision": image.MambaVision,
    "VSSD": image.VMAMBA2,
}
"""Models with nothing to make flexible, which `make_flexible` refuses with the reason."""
