"""Cases of `flexvideo.families_transformers`, on stand-ins; see tests/cases.py."""

from typing import Any

from cases import Case, Probe, marks, space_table, time_table
from cases_packages import fill
from cases_ssm import by_place
from standins import attention
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
SIZE_FREE = {"UniFormer": attention.UniFormer, "Video Swin, Omnivore": attention.Omnivore}
