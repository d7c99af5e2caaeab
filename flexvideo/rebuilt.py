"""Tensors that a model computes from its grid when it is built, computed anew for a geometry.

Each class is the `value` of a `State`: called with a geometry and the tensor that the model has at its base.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flexvideo.errors import GeometryError
from flexvideo.geometry import Geometry


@dataclass(frozen=True)
class Rotary:
    """Cosines or sines of a rotary embedding over rows, in the first half of the channels, and columns.

    Another grid spreads its tokens over the same range of angles, as the models themselves do when they are
    built for another frame size: position r of R is r * base / R.

    Args:
        part: which of the two tables.
        grid: rows and columns at the base.
        steps: angle between neighbouring positions at the base, in radians, one a channel.
        parity: whether the host takes an odd number of tokens to mean that the first is a class token.

    Raises:
        GeometryError: an odd number of tokens, when the host counts on an even one.

    Example:
        >>> rotary = Rotary("cos", grid=(2, 2), steps=(math.pi, math.pi / 2), parity=False)
        >>> rotary(Geometry(1, 32, 64, (16, 16)), torch.ones(4, 2))[:, 1].acos() / math.pi
        tensor([0.0000, 0.2500, 0.5000, 0.7500, 0.0000, 0.2500, 0.5000, 0.7500])

    Source: hustvl/Vim, vim/rope.py, after EVA-02.
    """

    part: Literal["cos", "sin"]
    grid: tuple[int, int]
    steps: tuple[float, ...]
    parity: bool

    def __call__(self, geometry: Geometry, stored: Float[Tensor, "n d"]) -> Float[Tensor, "n2 d"]:
        """Return the table at a geometry."""
        rows, columns = geometry.grid
        if self.parity and rows * columns % 2:
            raise GeometryError(
                "This model tells its class token by the number of tokens being odd, and cannot run a grid "
                f"of {rows} x {columns}: use an even number of rows or columns."
            )
        if geometry.grid == self.grid:
            return stored
        step = torch.tensor(self.steps, dtype=torch.float64, device=stored.device)
        row, column = (
            torch.arange(count, dtype=torch.float64, device=stored.device)[:, None] * (built / count) * part
            for count, built, part in zip((rows, columns), self.grid, step.chunk(2), strict=True)
        )
        angles = torch.cat(
            (row[:, None].expand(-1, columns, -1), column[None].expand(rows, -1, -1)), dim=-1
        ).flatten(0, 1)
        return (angles.cos() if self.part == "cos" else angles.sin()).to(stored.dtype)


def rotary_steps(
    cosines: Float[Tensor, "n d"], sines: Float[Tensor, "n d"], grid: tuple[int, int]
) -> tuple[float, ...]:
    """Angles between neighbouring positions of a rotary embedding, read off its tables.

    Args:
        cosines: table of cosines over the grid, rows in the first half of the channels, columns in the other.
        sines: the table of sines.
        grid: rows and columns of the tables.

    Example:
        >>> angles = torch.tensor([[0.0, 0.0], [0.0, 0.5], [0.25, 0.0], [0.25, 0.5]])
        >>> [round(step, 3) for step in rotary_steps(angles.cos(), angles.sin(), (2, 2))]
        [0.25, 0.5]
    """
    half = cosines.shape[-1] // 2
    angles = torch.atan2(sines.double(), cosines.double())
    return (*angles[grid[1], :half].tolist(), *angles[1, half:].tolist())


@dataclass(frozen=True)
class Registers:
    """Where register tokens stand, spread evenly among the others.

    Args:
        part: "order": index of each token of the sequence in the tokens followed by the registers; "places":
            index of each register in the sequence.
        count: number of registers.

    Raises:
        GeometryError: fewer tokens than it takes to keep the registers apart.

    Example:
        >>> at = Geometry(1, 32, 48, (16, 16))
        >>> Registers("order", 2)(at, torch.zeros(0, dtype=torch.long))
        tensor([0, 1, 6, 2, 3, 7, 4, 5])
        >>> Registers("places", 2)(at, torch.zeros(0, dtype=torch.long))
        tensor([2, 5])

    Source: wangf3014/Mamba-Reg, utils.py.
    """

    part: Literal["order", "places"]
    count: int

    def __call__(self, geometry: Geometry, stored: Int[Tensor, "n"]) -> Int[Tensor, "n2"]:
        """Return the indices at a geometry."""
        tokens = math.prod(geometry.grid)
        apart = tokens // (self.count + 1)
        if not apart:
            raise GeometryError(
                f"{tokens} tokens cannot keep {self.count} register tokens apart: it takes {self.count + 1}."
            )
        places = torch.arange(self.count, device=stored.device) * (apart + 1) + apart
        if self.part == "places":
            return places
        order = torch.zeros(tokens + self.count, dtype=torch.long, device=stored.device)
        order[places] = torch.arange(tokens, tokens + self.count, device=stored.device)
        others = torch.ones_like(order, dtype=torch.bool).index_fill(0, places, False)
        order[others] = torch.arange(tokens, device=stored.device)
        return order
