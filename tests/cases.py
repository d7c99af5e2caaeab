"""One case a kind of model: how to build it, which clips it takes, and what each of its tokens must receive.

Tests of families, the gallery and the support matrix (support_matrix.py) run over lists of these.
What a case knows of token order and of rows of class tokens is written here by hand, from the model's own
source, and never taken from a plan. Add a list of your own in a file like this one, and name it in `sources`.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

POLICIES = ("temporal", "static-patch", "static-tokens", "flexivit", "flex-all")
MARK = 7.0
"""What a class token's row is filled with in the second channel from the last."""

Size = tuple[int, int, int]
sources = ("cases_ssm", "cases_packages", "cases_transformers")
"""Modules with a list CASES; one that is not there yet adds nothing."""


@dataclass(frozen=True)
class Probe:
    """Tables filled with coordinates, and where in the forward to look for them.

    Args:
        fill: writes (time, row, column) into the first three channels of the model's tables.
        at: module whose first argument the tokens are; all parameters are zero but for the filled ones.
        axes: the coordinates that the tables hold.
        read: from those tokens (of one clip) and the geometry, the coordinates in order of time, row and
            column, and the class tokens.
        cls: what the class tokens must be, from the geometry.
    """

    fill: Callable[[Any], None]
    at: str
    axes: str
    read: Callable[[Tensor, Any], tuple[Tensor, Tensor]]
    cls: Callable[[Any], Tensor] = lambda geometry: torch.zeros(0, 4)


def _call(model: nn.Module, clip: Tensor, **options: Any) -> Tensor:
    return model(clip, **options)


@dataclass(frozen=True)
class Case:
    """A kind of model that can be made flexible.

    Args:
        name: the row's name in the support matrix.
        make: builds the model, small, with random weights.
        family: name of the entry that recognises it.
        base: frames, height and width that it is built for.
        sizes: three other clips.
        patch: a patch for one call, other than the base's; None where the patch cannot change.
        layout: dimensions of a clip.
        flexes: what is resampled, in a few words.
        notes: what a user must know.
        checked: "stand-in", or the package and its version.
        call: runs a clip, and returns one tensor; takes `patch` too.
        probes: see `Probe`.
        plan: what to make flexible, for a model of no family.
        square_patch: whether the model has one number for both sides of a patch.
    """

    name: str
    make: Callable[[], nn.Module]
    family: str
    base: Size
    sizes: tuple[Size, Size, Size]
    patch: int | None
    flexes: str
    layout: Literal["bcthw", "btchw", "bchw"] = "bcthw"
    notes: str = ""
    checked: str = "stand-in"
    call: Callable[..., Tensor] = _call
    probes: tuple[Probe, ...] = ()
    plan: Any = None
    square_patch: bool = False

    def sizes_under(self, policy: str) -> tuple[Size, ...]:
        """Three clips that the model can run under a policy; static tokens makes patches as long as clips."""
        if policy == "static-tokens" and self.square_patch:
            return tuple((frames, height, height) for frames, height, _ in self.sizes)
        return self.sizes

    def clip(self, size: Size, batch: int = 2) -> Tensor:
        """A clip of a size in the layout of the model; an image model's has no frames."""
        generator = torch.Generator().manual_seed(sum(size))
        x = torch.rand(batch, 3, *size, generator=generator)
        return {"bcthw": x, "btchw": x.transpose(1, 2), "bchw": x[:, :, 0]}[self.layout]

    def build(self) -> nn.Module:
        """The model in eval mode, with no parameter at a value that would hide a mistake."""
        torch.manual_seed(0)
        model = self.make().eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        return model


def all_cases() -> Iterator[Case]:
    """The cases of all sources whose packages are installed."""
    for source in sources:
        if importlib.util.find_spec(source) is not None:
            yield from importlib.import_module(source).CASES


def all_size_free() -> Iterator[tuple[str, Callable[[], nn.Module], str]]:
    """Name, constructor and what it was checked on, of models that take any size as they are."""
    for source in sources:
        if importlib.util.find_spec(source) is not None:
            module = importlib.import_module(source)
            checked = getattr(module, "SIZE_FREE_CHECKED", "stand-in")
            yield from ((name, make, checked) for name, make in module.SIZE_FREE.items())


def centres(count: int) -> Tensor:
    """Where the middle of each cell lies on an axis from 0 to 1."""
    return (torch.arange(count) + 0.5) / count


def space_table(rows: int, columns: int, dim: int, cls: tuple[int, ...] = ()) -> Tensor:
    """(tokens, dim): row and column in channels 1 and 2, marked rows of class tokens put in at indices."""
    row, column = torch.meshgrid(centres(rows), centres(columns), indexing="ij")
    table = torch.zeros(rows * columns, dim)
    table[:, 1], table[:, 2] = row.flatten(), column.flatten()
    return with_marks(table, cls)


def joint_table(steps: int, rows: int, columns: int, dim: int, cls: tuple[int, ...] = ()) -> Tensor:
    """(tokens, dim): time, row and column in channels 0 to 2, marked rows of class tokens put in."""
    table = space_table(rows, columns, dim).repeat(steps, 1)
    table[:, 0] = centres(steps).repeat_interleave(rows * columns)
    return with_marks(table, cls)


def time_table(steps: int, dim: int) -> Tensor:
    """(steps, dim): time in channel 0."""
    table = torch.zeros(steps, dim)
    table[:, 0] = centres(steps)
    return table


def with_marks(table: Tensor, cls: tuple[int, ...]) -> Tensor:
    """Put marked rows in at indices of the result, in increasing order."""
    for index in cls:
        mark = torch.zeros(1, table.shape[1])
        mark[0, 3] = MARK
        table = torch.cat((table[:index], mark, table[index:]))
    return table


def marks(count: int, times: Tensor | None = None) -> Tensor:
    """First four channels of class tokens: the mark, and times where those are added to them."""
    expected = torch.zeros(count, 4)
    expected[:, 3] = MARK
    if times is not None:
        expected[:, 0] = times
    return expected
