"""How large the evidence run is, and its two kinds of data: short clips, and long ones of ordered steps."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from _evidence_recipes import MocapRecipes

import flexvideo as fv
from flexvideo.data.mocap import MocapSet
from flexvideo.data.motion import MotionSet, RenderedSet
from flexvideo.evaluate import Cell, cells
from flexvideo.geometry import Base
from flexvideo.policy import Policy
from flexvideo.train.pretrain import Pretraining

# The actions of the Bandai-Namco set with takes of many styles; the others have one take a style.
ACTIONS = (
    *("walk", "run", "walk-turn-left", "walk-turn-right"),
    *(
        f"{what}-{side}"
        for what in ("raise-up", "wave")
        for side in ("left-hand", "right-hand", "both-hands")
    ),
)
UNSEEN = ("elderly", "youthful", "old", "happy", "tired")
SEEN = (
    *("active", "normal", "feminine", "masculine", "exhausted", "angry", "childish", "chimpira", "giant"),
    *("masculinity", "musical", "not-confident", "proud", "sad"),
)


@dataclass(frozen=True)
class Kind:
    """A kind of data: which clips, how they are held, and at which frame counts they are seen.

    Args:
        name: "short" or "long".
        per_class: clips of each class for training and for testing, where they are drawn and not given.
        held: frames of a clip in memory.
        lengths: frame counts of the grid, from which flexible training draws.
        beyond: cells outside the range of training.
    """

    name: str
    per_class: tuple[int, int]
    held: int
    lengths: tuple[int, ...]
    beyond: tuple[Cell, ...]


@dataclass(frozen=True)
class Scale:
    """Sizes of everything; the paper's, halved, for a model of base 112 px where the paper's has 224.

    Args:
        model: arguments of the model.
        native: pixels of a held frame.
        kinds: of data.
        drawn: frame sizes that flexible training draws from.
        sizes: frame sizes of the grid.
        flexivit: the one frame size of FlexiViT, and its patches.
        patches: smallest and largest patch of flex-all; a larger one would leave a frame of 48 px one token.
        epochs: of vanilla training; flexible training has a quarter.
        tokens: of an optimiser step of vanilla's.
        lr: highest, of every arm.
        queries: clips of each class that are asked for.
        gallery: clips of each class that are searched.
        start: recipe of the shared start.
        procedural: clips of each procedural action, and of each recipe, that the start sees besides.
    """

    model: dict[str, int] = field(
        default_factory=lambda: {
            "img_size": 112,
            "patch_size": 16,
            "num_frames": 16,
            "embed_dim": 192,
            "depth": 12,
        }
    )
    native: int = 128
    kinds: tuple[Kind, ...] = (
        Kind("short", (120, 40), 64, (4, 8, 16, 32), (Cell(64, 112), Cell(16, 288))),
        Kind("long", (150, 30), 96, (8, 16, 32, 64), (Cell(96, 112), Cell(16, 288))),
    )
    drawn: tuple[int, ...] = (48, 64, 112, 192)
    sizes: tuple[int, ...] = (48, 56, 64, 96, 112, 144, 192, 224)
    flexivit: tuple[int, tuple[int, ...]] = (120, (8, 10, 12, 15, 20, 24, 30, 40))
    patches: tuple[int, int] = (12, 32)
    epochs: int = 16
    tokens: int = 32 * 16 * 49
    lr: float = 7e-4
    queries: int = 40
    gallery: int = 30
    start: Pretraining = field(
        default_factory=lambda: Pretraining(steps=3000, lr=3e-3, warmup=200, bf16=True)
    )
    procedural: tuple[int, int] = (100, 10)

    @property
    def base(self) -> Base:
        """What the model is built for."""
        size, patch = self.model["img_size"], self.model["patch_size"]
        return Base(frames=self.model["num_frames"], height=size, width=size, patch=(patch, patch))

    @property
    def clips(self) -> int:
        """Clips of an optimiser step of vanilla's."""
        frames, size, patch = (self.model[name] for name in ("num_frames", "img_size", "patch_size"))
        return self.tokens // (frames * (size // patch) ** 2)

    def kind(self, name: str) -> Kind:
        return next(kind for kind in self.kinds if kind.name == name)

    def grid(self, kind: Kind) -> tuple[Cell, ...]:
        return (*cells(kind.lengths, self.sizes), *kind.beyond)

    def policy(self, name: str, kind: Kind) -> Policy:
        frames = kind.lengths
        size, patches = self.flexivit
        found: dict[str, Policy] = {
            "temporal": fv.Temporal(frames=frames),
            "static-patch": fv.StaticPatch(frames=frames, sizes=self.drawn),
            "static-tokens": fv.StaticTokens(frames=frames, sizes=self.drawn),
            "flexivit": fv.FlexiViT(frames=frames, sizes=(size,), patches=patches),
            "flex-all": fv.FlexAll(frames=frames, sizes=self.drawn, patch_range=self.patches),
        }
        return found[name]

    def seen(self, cell: Cell, kind: Kind) -> bool:
        """Whether flexible training draws a cell."""
        return cell.frames in kind.lengths and cell.size in self.drawn


FULL = Scale()
TOY = replace(
    FULL,
    model={"img_size": 32, "patch_size": 16, "num_frames": 4, "embed_dim": 16, "depth": 1},
    native=32,
    kinds=(
        Kind("short", (2, 1), 8, (2, 4), (Cell(8, 32),)),
        Kind("long", (2, 1), 8, (4, 8), (Cell(8, 48),)),
    ),
    drawn=(24, 32),
    sizes=(24, 32, 40),
    flexivit=(24, (8, 12)),
    patches=(12, 16),
    epochs=4,
    tokens=8 * 4 * 4,
    queries=1,
    gallery=2,
    start=Pretraining(steps=3, batch=2, warmup=1),
    procedural=(1, 1),
)


def drawn_set(scale: Scale, kind: Kind, split: str, mocap: Path | None) -> RenderedSet:
    """The clips of a split: of motion capture, where there is a file of it, or of the procedural set."""
    per_class = kind.per_class[split == "test"]
    if mocap is None:
        return MotionSet(split, kind="short" if kind.name == "short" else "long", per_class=per_class)
    styles = UNSEEN if split == "test" else SEEN
    if kind.name == "short":
        return MocapSet(mocap, actions=ACTIONS, styles=styles)
    takes = MocapSet(mocap, styles=styles)
    return MocapRecipes(takes.takes, fps=takes.fps, split=split, per_class=per_class)
