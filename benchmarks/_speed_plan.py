"""What the speed benchmark measures and in which order; the most telling first, as its time may run out."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

KERNELS, MODELS = ("scan", "conv", "norm"), ("tiny", "small", "middle")
BASELINES = ("official", "padded")
LONG = 512  # frames: 100,353 tokens
# frames x pixels: clips of a full batch, about 50,000 tokens a step where the clips are not tiny
FULL = {
    (16, 224): 16,
    (24, 224): 10,  # 4,705 and, below, 9,217 tokens: where a transformer of equal size should be overtaken
    (16, 384): 4,
    (8, 224): 32,
    (32, 224): 8,
    (64, 224): 4,
    (8, 96): 128,
}
SWEEP = (16, 32, 64, 128, 256, LONG)  # frames, with a batch of 512 / frames: 100,000 tokens a step each


@dataclass(frozen=True)
class Case:
    """One figure: what runs, on which clips, by which column, and which step of it is timed."""

    what: str
    frames: int
    size: int
    batch: int
    column: str
    step: str

    @property
    def tokens(self) -> int:
        """Tokens of a clip: patches of 16 pixels, and the class token."""
        return self.frames * (self.size // 16) ** 2 + 1

    def row(self) -> dict[str, object]:
        """The case as the results file holds it."""
        return {**asdict(self), "tokens": self.tokens}


def case_of(row: dict[str, object]) -> Case:
    """The case of a row of a results file."""
    return Case(**{name: row[name] for name in Case.__dataclass_fields__})


def plan(kind: str, backends: Sequence[str]) -> list[Case]:
    """All cases in order, each once.

    Args:
        kind: "quick" for what the targets need, "full", or "toy" for sizes that a CPU can run.
        backends: scan backends that run here, the one that `auto` takes first.
    """
    parts = {"quick": quick, "full": full, "toy": toy}[kind](list(backends))
    return list(dict.fromkeys(parts))


def quick(backends: list[str]) -> Iterator[Case]:
    """The targets, and what they are compared with."""
    ours = [f"ours {name}" for name in backends]
    yield from kernels(("scan",), (16, 1), ours)
    best, rivals = [*ours, "ours compiled"], ["vit", "vit compiled"]
    yield from cases("middle", (16, 224, 16), [*best, "official", *rivals], ("forward", "train"))
    yield from cases("middle", (16, 224, 1), [*ours, "ours graphed", "official", "vit", "vit graphed"])
    for frames, size in ((24, 224), (16, 384)):
        clip = (frames, size, FULL[frames, size])
        yield from cases("middle", clip, [ours[0], "ours compiled", *rivals], ("forward", "train"))
    yield from sweep(ours[:1])


def full(backends: list[str]) -> Iterator[Case]:
    """Every kernel, model, geometry and batch; baselines and variants where they tell something."""
    ours = [f"ours {name}" for name in backends]
    yield from quick(backends)
    yield from kernels(KERNELS, (16, 1), ours)
    yield from cases("middle", (16, 224, 16), [*ours, *BASELINES], ("forward", "train"))
    yield from cases("middle", (16, 224, 1), ["ours compiled", "vit compiled"], ("forward", "train"))
    for (frames, size), batch in FULL.items():
        best = [ours[0], "ours compiled", "official", "vit", "vit compiled"]
        yield from cases("middle", (frames, size, batch), best, ("forward", "train"))
        alone = [ours[0], "ours graphed", "official", "vit", "vit graphed"]
        yield from cases("middle", (frames, size, 1), alone, ("forward", "train"))
    yield from sweep([ours[0], "vit", "official"])
    for name in ("small", "tiny"):
        for (frames, size), batch in FULL.items():
            yield from cases(name, (frames, size, batch), [ours[0], "official"], ("forward", "train"))
            yield from cases(
                name, (frames, size, 1), [ours[0], "ours graphed", "official"], ("forward", "train")
            )


def toy(backends: list[str]) -> Iterator[Case]:
    """Every column at a size that a CPU runs in a second; no figure of it means anything."""
    ours = [f"ours {name}" for name in backends]
    columns = [*ours, "ours compiled", "ours graphed", *BASELINES, "vit", "vit compiled", "vit graphed"]
    for name in KERNELS:
        yield from kernel(name, (2, 32, 2), ours)
    yield from cases("toy", (2, 32, 2), columns, ("forward", "train"))
    yield from cases("toy", (4, 48, 2), [ours[0], "vit"], ("forward", "train"))
    yield from cases("toy", (8, 32, 1), ours[:1])


def kernels(names: Iterable[str], batches: Iterable[int], ours: list[str]) -> Iterator[Case]:
    """Kernels alone, at the tokens of 16 x 224 and the width of VideoMamba-M."""
    for name in names:
        for batch in batches:
            yield from kernel(name, (16, 224, batch), ours)


def kernel(name: str, clip: tuple[int, int, int], ours: list[str]) -> Iterator[Case]:
    """Forward and backward of one kernel; replayed as a graph, which leaves out what a launch costs."""
    baselines = BASELINES if name == "scan" else BASELINES[:1]
    for column in (*ours, *baselines, "floor"):
        for step in ("forward", "backward", "forward graphed"):
            if column != "floor" or step != "forward graphed":
                yield Case(name, *clip, column, step)


def cases(
    name: str, clip: tuple[int, int, int], columns: list[str], steps: tuple[str, ...] = ("forward",)
) -> Iterator[Case]:
    """A model on clips of one size: a column after the other, as the steps of one share the model."""
    for column in [*columns, "floor"]:
        for step in steps:
            if step != "train" or "graphed" not in column:
                yield Case(name, *clip, column, step)


def sweep(columns: list[str]) -> Iterator[Case]:
    """Longer and longer clips, fewer and fewer of them."""
    for frames in SWEEP:
        yield from cases("middle", (frames, 224, LONG // frames), columns)
