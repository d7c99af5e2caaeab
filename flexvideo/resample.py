"""Differentiable resampling of patch kernels, embedding tables and clips: one small matrix per axis.

    resized[.., a, b, ..] = sum_jk A[a, j] B[b, k] x[.., j, k, ..]

with A and B from `flexvideo.matrices`. Nothing but matrix products, so that a resize is deterministic on
CUDA (the backward of `interpolate` is not), differentiable twice, exportable, and the same in every dtype: it
is worked in the wider of float32 and the tensor's dtype, with autocast off, and rounded once at the end.
(Whether CUDA works float32 products in TF32 stays what `torch.set_float32_matmul_precision` says.)
"""

import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal, get_args, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor
from torch._subclasses import FakeTensor

from flexvideo.errors import ConfigError, GeometryError
from flexvideo.matrices import axis_matrix

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
        raise ConfigError(
            f"Unknown rule {rule!r}. Known rules: {', '.join(RULES)}; "
            "or a mapping with the keys `kernel` and `antialias`."
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


# Matrices by (kind, old, new, dtype, device). A plain dict, never buffers: derived data belongs in no state
# dict, no DDP broadcast and no deepcopy.
_CACHE: dict[tuple[str, int, int, torch.dtype, torch.device], Tensor] = {}
_CACHE_LIMIT = 1024


@torch.library.custom_op(
    "flexvideo::resize_matrix",
    mutates_args=(),
    schema="(str kind, SymInt old, SymInt new, ScalarType dtype, Device device) -> Tensor",
)
def _resize_matrix(
    kind: str, old: int, new: int, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "new old"]:
    # The body of an operator runs below every tracer and transform, so the cache only holds plain tensors.
    key = (kind, old, new, dtype, device)
    matrix = _CACHE.get(key)
    if matrix is None:
        if len(_CACHE) >= _CACHE_LIMIT:
            _CACHE.clear()
        with torch.inference_mode(False):
            matrix = _CACHE[key] = axis_matrix(kind, old, new).to(device, dtype)
    return matrix.clone()  # a compiled graph owns, and may overwrite, what an operator returns


@_resize_matrix.register_fake
def _(kind: str, old: int, new: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "new old"]:
    return torch.empty(new, old, dtype=dtype, device=device)


def _matrix(kind: str, old: int, new: int, x: Tensor) -> Float[Tensor, "new old"]:
    if not (torch.compiler.is_compiling() or isinstance(x, FakeTensor)):
        matrix = _CACHE.get((kind, old, new, x.dtype, x.device))
        if matrix is not None:
            return matrix
    return _resize_matrix(kind, old, new, x.dtype, x.device)


def prewarm(
    matrices: Iterable[tuple[str, int, int]], *, dtype: torch.dtype, device: torch.device | str
) -> None:
    """Build matrices ahead of their first use.

    Args:
        matrices: (kind, old, new) of each.
        dtype: dtype of the tensors to be resampled.
        device: device of the tensors to be resampled.

    Example:
        >>> prewarm([("auto", 16, 24), ("linear-aa", 8, 16)], dtype=torch.float32, device="cpu")
    """
    like = torch.empty(0, dtype=_working_dtype(dtype), device=device)
    for kind, old, new in matrices:
        _matrix(kind, old, new, like)


def _working_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _autocast_off(device_type: str) -> AbstractContextManager[Any]:
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()  # the meta device has no autocast, not even to turn off


def _multiply(x: Tensor, matrix: Float[Tensor, "new old"], axis: int) -> Tensor:
    new, old = matrix.shape
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    with _autocast_off(x.device.type):
        if math.prod(after) == 1:
            y = x.reshape(math.prod(before), old) @ matrix.T
        else:
            # Not matmul, which may fold into a transposed result: DDP wants contiguous gradients.
            batch = math.prod(before)
            y = torch.bmm(matrix.expand(batch, new, old), x.reshape(batch, old, math.prod(after)))
    return y.view(*before, new, *after)


@no_type_check  # dynamo cannot trace the tests' shape checks inside an autograd function
class _AlongAxis(torch.autograd.Function):
    """Product of one axis with a matrix, autocast off in the backward too.

    AOTAutograd traces a backward under the autocast of its forward, so a plain product would lose the
    gradient's precision in a compiled model. There is no `jvp`: dynamo refuses functions that have one.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, matrix: Float[Tensor, "new old"], axis: int) -> Tensor:
        return _multiply(x, matrix, axis)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        _, matrix, ctx.axis = inputs
        ctx.save_for_backward(matrix)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (grad,), (matrix,) = grad_outputs, ctx.saved_tensors
        return _multiply(grad, matrix.T, ctx.axis), None, None


def _resample(x: Tensor, *, first_axis: int, size: tuple[int, ...], kinds: tuple[str, ...]) -> Tensor:
    y = x.to(_working_dtype(x.dtype))
    # The last axis first: then the one large product is a plain matrix product.
    for k in reversed(range(len(size))):
        axis = first_axis + k
        old, new = x.shape[axis], size[k]
        if old != new:
            y = _AlongAxis.apply(y, _matrix(kinds[k], old, new, y), axis)
    return y.to(x.dtype)


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
    return _resample(weight, first_axis=2, size=size, kinds=(rule.kernel_kind,) * len(size))


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
    pieces = table.split(before, dim)
    grid = torch.cat(pieces[::2], dim).unflatten(dim, old)
    grid = _resample(grid, first_axis=dim, size=new, kinds=kinds).flatten(dim, dim + len(new) - 1)
    merged = [*pieces]
    merged[::2] = grid.split(after[::2], dim)
    return torch.cat(merged, dim)


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
    return _resample(x, first_axis=3, size=size, kinds=("bicubic-aa", "bicubic-aa"))
