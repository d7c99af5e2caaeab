"""Cells of a grid of geometries: what a clip is, what the model makes of it, and what that costs."""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flexvideo.active import flex_within
from flexvideo.discover import plan_for
from flexvideo.errors import ConfigError
from flexvideo.evaluate.native import NativeSize
from flexvideo.geometry import Geometry

# Counting takes seconds, and queries and gallery want the same. By the model's text, for it may be changed.
_known: "WeakKeyDictionary[nn.Module, dict[tuple[str, Cell], Cost]]" = WeakKeyDictionary()


@dataclass(frozen=True, order=True)
class Cell:
    """A frame count, a frame size, and the patch to run it at.

    Args:
        frames: of a clip.
        size: short side in pixels; a clip is the square in the centre, or one of several squares.
        patch: side in pixels; the policy's own when None.

    Raises:
        ConfigError: a number below 1.

    Example:
        >>> str(Cell(16, 224)), str(Cell(16, 240, patch=24))
        ('16x224', '16x240p24')
    """

    frames: int
    size: int
    patch: int | None = None

    def __post_init__(self) -> None:
        if min(self.frames, self.size, 1 if self.patch is None else self.patch) < 1:
            patch = "" if self.patch is None else f", patch {self.patch}"
            raise ConfigError(
                "A clip needs at least 1 frame, and 1 pixel of size and patch; got "
                f"{self.frames} frames of {self.size} px{patch}."
            )

    def __str__(self) -> str:
        return f"{self.frames}x{self.size}" + (f"p{self.patch}" if self.patch else "")


@dataclass(frozen=True)
class Cost:
    """What the model sees of a clip, and what one forward pass of it takes.

    Args:
        height: pixels that the model sees, after its own resize.
        width: likewise.
        patch: (height, width) of a patch in pixels.
        grid: rows and columns of tokens.
        tokens: of the clip, a class token included.
        gflops: 2 x multiply-accumulate in 1e9; None where the model cannot be run without its values, as
            counting does.
    """

    height: int
    width: int
    patch: tuple[int, int]
    grid: tuple[int, int]
    tokens: int
    gflops: float | None


def cells(
    frames: Sequence[int], sizes: Sequence[int], patches: Sequence[int | None] = (None,)
) -> tuple[Cell, ...]:
    """List the cells of a grid.

    Args:
        frames: frame counts.
        sizes: frame sizes in pixels.
        patches: sides of patches in pixels; None is the policy's own.

    Raises:
        ConfigError: no cell at all, or a number below 1.

    Example:
        >>> [str(cell) for cell in cells((8, 16), (96, 224))]
        ['8x96', '8x224', '16x96', '16x224']
    """
    listed = tuple(Cell(t, r, p) for p in patches for t in frames for r in sizes)
    if not listed:
        raise ConfigError(
            "A grid needs at least one frame count, one size and one patch (None is the policy's own)."
        )
    return tuple(dict.fromkeys(listed))


def geometry_of(model: nn.Module, cell: Cell) -> Geometry:
    """The geometry at which a model runs a cell.

    Args:
        model: flexible, `NativeSize`, or plain: then the geometry is the one it was built for.
        cell: of the grid.

    Raises:
        GeometryError: the policy of the model cannot run it.
    """
    flex = None if isinstance(model, NativeSize) else flex_within(model)
    if flex is None:
        base = model.base if isinstance(model, NativeSize) else plan_for(model).base
        frames = base.frames or cell.frames
        return Geometry(frames, base.height, base.width, base.patch, base.tubelet, base.overlap)
    return flex.policy.geometry(flex.plan.base, cell.frames, cell.size, cell.size, cell.patch)


def costs_of(model: nn.Module, grid: Sequence[Cell]) -> dict[Cell, Cost]:
    """Work out what every cell costs, without arithmetic.

    Args:
        model: as for `geometry_of`.
        grid: the cells.

    Example:
        >>> from flexvideo import VideoMamba, make_flexible
        >>> model = make_flexible(VideoMamba(img_size=32, patch_size=8, depth=1, embed_dim=16, num_frames=4))
        >>> costs_of(model, [Cell(4, 24)])[Cell(4, 24)].tokens
        65
    """
    flex = None if isinstance(model, NativeSize) else flex_within(model)
    code = f"{model}" if flex is None else f"{model} {flex.policy} {flex.plan}"
    known = _known.setdefault(model, {})
    if missing := [cell for cell in grid if (code, cell) not in known]:
        shadow = _without_values(model).eval()
        for cell in missing:
            known[code, cell] = _cost(geometry_of(model, cell), _gflops(shadow, cell))
    return {cell: known[code, cell] for cell in grid}


def _cost(geometry: Geometry, gflops: float | None) -> Cost:
    return Cost(
        height=geometry.height,
        width=geometry.width,
        patch=geometry.patch,
        grid=geometry.grid,
        tokens=1 + geometry.tokens,
        gflops=gflops,
    )


def _without_values(model: nn.Module) -> nn.Module:
    """A copy on the meta device, for which no value is copied on the way."""
    empty: dict[int, Any] = {
        id(value): nn.Parameter(torch.empty_like(value, device="meta"), requires_grad=False)
        for value in model.parameters()
    }
    empty |= {id(value): torch.empty_like(value, device="meta") for value in model.buffers()}
    return copy.deepcopy(model, empty)


@torch.inference_mode()
def _gflops(shadow: nn.Module, cell: Cell) -> float | None:
    clip = torch.empty(1, 3, cell.frames, cell.size, cell.size, device="meta")
    options = {} if cell.patch is None else {"patch": cell.patch}
    try:
        with FlopCounterMode(display=False) as counter:
            shadow(clip.to(next(shadow.parameters()).dtype), **options)
    # As which torch reports whatever an operator of others lacks: a meta kernel (NotImplementedError is one),
    # a GPU under its tensors, values to decide on.
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        warnings.warn(
            f"GFLOPs are left out: {type(shadow).__name__} does not run without values ({reason})",
            stacklevel=3,
        )
        return None
    return counter.get_total_flops() / 1e9
