"""Differentiable resampling of patch kernels, embedding tables and clips.

    resized[.., a, b, ..] = sum_jk A[a, j] B[b, k] x[.., j, k, ..]

with one small matrix per axis from `flexvideo.matrices`, multiplied in by `flexvideo.products`. A `Rule` says
which matrices.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from flexvideo.errors import ConfigError, GeometryError
from flexvideo.matrices import axis_matrix
from flexvideo.nearest import did_you_mean
from flexvideo.products import multiply_axes, prewarm

__all__ = [
    "RULES",
    "Rule",
    "axis_matrix",
    "prewarm",
    "resample_kernel",
    "resample_table",
    "resize_clip",
]

KernelRule = Literal["paper", "area", "pi", "adjoint", "auto"]


@dataclass(frozen=True)
class Rule:
    """How patch kernels and embedding tables are resampled: a property of the weights trained with it.

    Args:
        kernel: rule of the patch kernel, as listed in `flexvideo.matrices`.
        antialias: antialias the tables, and the kernel under "paper" and "area" ("pi", "adjoint" and "auto"
            always antialias the kernel).

    Raises:
        ConfigError: an unknown kernel rule, or an `antialias` that is not a bool.

    Example:
        >>> Rule.of("paper")
        Rule(kernel='paper', antialias=False)
    """

    kernel: KernelRule
    antialias: bool

    def __post_init__(self) -> None:
        if self.kernel not in get_args(KernelRule):
            raise ConfigError(
                f"Unknown kernel rule {self.kernel!r}. Known rules: {', '.join(get_args(KernelRule))}."
            )
        if not isinstance(self.antialias, bool):
            raise ConfigError(f"Rule's antialias must be true or false, got {self.antialias!r}.")

    @classmethod
    def of(cls, rule: "str | Rule | Mapping[str, Any]") -> "Rule":
        """Rule from its name, its configuration, or itself.

        Args:
            rule: a name in `RULES`, what `to_config` returned, or a `Rule`.

        Raises:
            ConfigError: anything else, listing the names.

        Example:
            >>> Rule.of({"kernel": "pi", "antialias": True}) == Rule.of("pi")
            True
        """
        if isinstance(rule, cls):
            return rule
        if isinstance(rule, str) and rule in RULES:
            return RULES[rule]
        if isinstance(rule, Mapping) and set(rule) == {"kernel", "antialias"}:
            return cls(**rule)
        instead = did_you_mean(rule, RULES) if isinstance(rule, str) else ""
        if isinstance(rule, Mapping) and (lacks := {"kernel", "antialias"} - set(rule)):
            instead = f" This one lacks {' and '.join(sorted(lacks))}."
        raise ConfigError(
            f"Unknown rule {rule!r}. Known rules: {', '.join(RULES)}; "
            f"or a mapping with the keys `kernel` and `antialias`.{instead}"
        )

    def to_config(self) -> dict[str, str | bool]:
        """Plain data from which `Rule.of` makes an equal rule.

        Example:
            >>> RULES["pi"].to_config()
            {'kernel': 'pi', 'antialias': True}
        """
        return asdict(self)

    @property
    def kernel_kind(self) -> str:
        """Kind of `axis_matrix` for every axis of a patch kernel."""
        return f"{self.kernel}-aa" if self.antialias and self.kernel in ("paper", "area") else self.kernel

    @property
    def spatial_kind(self) -> str:
        """Kind of `axis_matrix` for the rows and columns of a table."""
        return "bicubic-aa" if self.antialias else "bicubic"

    @property
    def temporal_kind(self) -> str:
        """Kind of `axis_matrix` for the time steps of a table."""
        return "linear-aa" if self.antialias else "linear"


RULES: dict[str, Rule] = {
    "paper": Rule("paper", antialias=False),
    "area": Rule("area", antialias=False),
    "pi": Rule("pi", antialias=True),
    "adjoint": Rule("adjoint", antialias=True),
    "auto": Rule("auto", antialias=True),
}


def resample_kernel(
    weight: Float[Tensor, "o i *size"], size: tuple[int, ...], rule: Rule
) -> Float[Tensor, "o i *new"]:
    """Patch kernel for another patch size, differentiable to the base kernel.

    Args:
        weight: kernel of a 2-D or 3-D patch convolution.
        size: patch size wanted, one number per axis of the kernel.
        rule: how to resample.

    Returns:
        The kernel at that size; the very same object if it has that size already.

    Raises:
        GeometryError: a size with another number of axes, or with one below 1.

    Example:
        >>> weight = torch.randn(192, 3, 1, 16, 16)
        >>> resample_kernel(weight, (1, 9, 9), Rule.of("auto")).shape
        torch.Size([192, 3, 1, 9, 9])
    """
    old = tuple(weight.shape[2:])
    if len(size) != len(old) or min(size) < 1:
        raise GeometryError(
            f"Cannot resample a patch kernel of size {old} to {size}: give {len(old)} numbers >= 1."
        )
    if size == old:
        return weight
    return multiply_axes(weight, first_axis=2, size=size, kinds=(rule.kernel_kind,) * len(size))


def _run_lengths(grid: tuple[int, ...], extra: tuple[int, ...]) -> list[int]:
    """Lengths of the alternating runs of a table: grid rows, one extra row, grid rows, ..., grid rows."""
    rows = math.prod(grid) + len(extra)
    edges = (0, *(edge for index in extra for edge in (index, index + 1)), rows)
    lengths = [stop - start for start, stop in pairwise(edges)]
    if min(lengths) < 0:
        raise GeometryError(
            f"Extra rows {extra} must be increasing indices below {rows}, the rows of the table."
        )
    return lengths


def resample_table(
    table: Float[Tensor, "..."],
    *,
    dim: int,
    old: tuple[int, ...],
    new: tuple[int, ...],
    kinds: tuple[str, ...],
    extra_old: tuple[int, ...] = (),
    extra_new: tuple[int, ...] = (),
) -> Float[Tensor, "..."]:
    """Embedding table for another grid, differentiable to the base table.

    Args:
        table: tensor whose dimension `dim` runs over the tokens: a row-major grid, and extra rows anywhere.
        dim: the token dimension.
        old: the table's grid: (h, w), (t,) or (t, h, w).
        new: the grid wanted, with as many axes.
        kinds: kind of `axis_matrix` for each axis.
        extra_old: indices of the rows outside the grid (class tokens) in the table, increasing.
        extra_new: their indices in the result, increasing; these rows are not resampled.

    Returns:
        The table at that grid; the very same object if nothing changes.

    Raises:
        GeometryError: grids, kinds or extra rows that do not fit each other or the table.

    Example:
        >>> table = torch.randn(1, 1 + 14 * 14, 192)
        >>> kinds = ("bicubic", "bicubic")
        >>> resample_table(
        ...     table, dim=1, old=(14, 14), new=(8, 20), kinds=kinds, extra_old=(0,), extra_new=(0,)
        ... ).shape
        torch.Size([1, 161, 192])
    """
    if old == new and extra_old == extra_new:
        return table
    dim %= table.ndim
    before = _run_lengths(old, extra_old)
    after = _run_lengths(new, extra_new)
    if not len(old) == len(new) == len(kinds) or len(before) != len(after) or sum(before) != table.shape[dim]:
        raise GeometryError(
            f"A table with {table.shape[dim]} rows cannot go from grid {old} and extra rows {extra_old} "
            f"to grid {new} and extra rows {extra_new} with {len(kinds)} kinds."
        )
    pieces = table.split(before, dim) if extra_old else [table]
    grid = _joined(pieces[::2], dim).unflatten(dim, old)
    grid = multiply_axes(grid, first_axis=dim, size=new, kinds=kinds).flatten(dim, dim + len(new) - 1)
    if not extra_new:
        return grid
    merged = [*pieces]
    merged[::2] = grid.split(after[::2], dim)
    return _joined(merged, dim)


def _joined(pieces: Sequence[Tensor], dim: int) -> Tensor:
    """The pieces in a row; the only one of them as it is."""
    pieces = [piece for piece in pieces if piece.shape[dim]]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)


def resize_clip(x: Float[Tensor, "b c t h w"], size: tuple[int, int]) -> Float[Tensor, "b c t H W"]:
    """Clip at another frame size, by antialiased bicubic interpolation.

    Args:
        x: clip.
        size: height and width wanted, in pixels.

    Returns:
        The resized clip; the very same object if it has that size already.

    Example:
        >>> resize_clip(torch.rand(1, 3, 8, 96, 96), (98, 98)).shape
        torch.Size([1, 3, 8, 98, 98])
    """
    if tuple(x.shape[3:]) == size:
        return x
    return multiply_axes(x, first_axis=3, size=size, kinds=("bicubic-aa", "bicubic-aa"))
