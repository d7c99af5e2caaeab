"""Cases of `flexvideo.families_transformers`, on stand-ins; see tests/cases.py."""

from typing import Any

from cases import Case, Probe, joint_table, marks, space_table, time_table
from cases_packages import fill
from cases_ssm import by_place, in_order
from standins import attention, jepa
from standins.parts import DIM, FRAMES, IMAGE, PATCH

BASE = (FRAMES, IMAGE, IMAGE)
SIZES = ((8, 48, 32), (4, 24, 56), (2, 64, 40))
SQUARES = ((8, 48, 48), (4, 24, 24), (2, 64, 64))
GRID = (IMAGE // PATCH, IMAGE // PATCH)
FRAME = space_table(*GRID, DIM, cls=(0,))
TIME = time_table(FRAMES, DIM)


def case(name: str, make: Any, family: str, flexes: str, *probes: Probe, **options: Any) -> Case:
    return Case(name, make, family, BASE, options.pop("sizes", SIZES), 6, flexes, probes=probes, **options)


TIMESFORMER = Probe(
    fill(model__pos_embed=FRAME, model__time_embed=TIME),
    "model.blocks.0",
    "trc",
    by_place,
    lambda _: marks(1),
)
CASES = [
    case(
        "TimeSformer",
        attention.TimeSformer,
        "TimeSformer",
        "patch kernel, both tables",
        TIMESFORMER,
        notes="its own resizing is by the nearest row",
    ),
    case("AIM", attention.AIM, "AIM", "patch kernel, both tables"),
    case(
        "UniFormerV2",
        attention.UniFormerV2,
        "UniFormerV2",
        "patch kernel, table",
        sizes=SQUARES,
        notes="square clips",
    ),
    case(
        "UniFormerV2, every frame",
        lambda: attention.UniFormerV2(temporal_downsample=False),
        "UniFormerV2",
        "patch kernel, table",
        sizes=SQUARES,
        notes="square clips",
    ),
    case("CAST", attention.CAST, "CAST", "both patch kernels, both tables, those of all blocks"),
    case(
        "EVL without cross attention",
        lambda: attention.EVL(cross_attention=False),
        "EVL",
        "patch kernel (Linear), both tables",
        notes="a frozen backbone must be taken out of its list",
    ),
]
CASES += [
    case(
        "V-JEPA 2",
        jepa.VJEPA2,
        "V-JEPA 2",
        "patch kernel",
        notes="square patches; rotary positions count the tokens of the clip",
        square_patch=True,
    ),
    case(
        "V-JEPA 2, table",
        lambda: jepa.VJEPA2(rope=False),
        "V-JEPA 2",
        "patch kernel, joint table",
        Probe(fill(pos_embed=joint_table(FRAMES // 2, *GRID, DIM)), "blocks.0", "trc", in_order),
        notes="square patches",
        square_patch=True,
    ),
    Case(
        "V-JEPA 2, images",
        lambda: jepa.VJEPA2(rope=False, frames=1),
        "V-JEPA 2",
        (1, IMAGE, IMAGE),
        tuple((1, *size[1:]) for size in SIZES),
        6,
        "patch kernel, table",
        layout="bchw",
        notes="square patches",
        probes=(Probe(fill(pos_embed=FRAME[1:]), "blocks.0", "rc", in_order),),
        square_patch=True,
    ),
]
SIZE_FREE = {"UniFormer": attention.UniFormer, "Video Swin, Omnivore": attention.Omnivore}
