"""Products of tensors with resize matrices, axis by axis: differentiable, cached, the same everywhere.

Nothing but matrix products, so that a resize is deterministic on CUDA (the backward of `interpolate` is not),
differentiable twice, exportable, and the same in every dtype: it is worked in the wider of float32 and the
tensor's dtype, with autocast off, and rounded once at the end. (Whether CUDA works float32 products in TF32
stays what `torch.set_float32_matmul_precision` says.)
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, no_type_check

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch._subclasses import FakeTensor

from flexvideo.matrices import axis_matrix

# Matrices by (kind, old, new, dtype, device). A plain dict, never buffers: derived data belongs in no state
# dict, no DDP broadcast and no deepcopy.
_CACHE: dict[tuple[str, int, int, torch.dtype, torch.device], Tensor] = {}
_CACHE_BYTES = 64 * 2**20  # those that resize a clip of 1080 x 1920 px take 20 MB, of a kernel kilobytes


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
        with torch.inference_mode(False):
            matrix = axis_matrix(kind, old, new).to(device, dtype)
        if sum(kept.nbytes for kept in tuple(_CACHE.values())) + matrix.nbytes > _CACHE_BYTES:
            _CACHE.clear()
        if matrix.nbytes <= _CACHE_BYTES:
            _CACHE[key] = matrix
    return matrix.clone()  # a compiled graph owns, and may overwrite, what an operator returns


@_resize_matrix.register_fake
def _(kind: str, old: int, new: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "new old"]:
    return torch.empty(new, old, dtype=dtype, device=device)


def _matrices(
    x: Tensor, first_axis: int, size: Sequence[int], kinds: Sequence[str]
) -> list[Float[Tensor, "new old"] | None]:
    """Matrix of each axis to resize; None where its length stays."""
    plain = not (torch.compiler.is_compiling() or isinstance(x, FakeTensor))
    found: list[Tensor | None] = []
    for kind, old, new in zip(kinds, x.shape[first_axis:], size, strict=False):  # there may be axes behind
        matrix = None
        if old != new:
            matrix = _CACHE.get((kind, old, new, x.dtype, x.device)) if plain else None
            matrix = _resize_matrix(kind, old, new, x.dtype, x.device) if matrix is None else matrix
        found.append(matrix)
    return found


def _working_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _under_autocast(device: torch.device) -> bool:
    return device.type != "meta" and torch.is_autocast_enabled(device.type)  # meta has none, and says so


def _multiply(x: Tensor, first_axis: int, matrices: Sequence[Tensor | None]) -> Tensor:
    # The last axis first: then the one large product is a plain matrix product.
    for axis in reversed(range(first_axis, first_axis + len(matrices))):
        matrix = matrices[axis - first_axis]
        if matrix is None:
            continue
        if axis == x.ndim - 1:
            x = F.linear(x, matrix)
            continue
        before, after = x.shape[:axis], x.shape[axis + 1 :]
        # Not matmul, which may fold into a transposed result: DDP wants contiguous gradients.
        batch, (new, old) = math.prod(before), matrix.shape
        y = torch.bmm(matrix.expand(batch, new, old), x.reshape(batch, old, math.prod(after)))
        x = y.view(*before, new, *after)
    return x


@no_type_check  # dynamo cannot trace the tests' shape checks inside an autograd function
class _WithoutAutocast(torch.autograd.Function):
    """`_multiply` with autocast off, in the backward too, wherever that is called or compiled.

    AOTAutograd traces a backward under the autocast of its forward, so a plain product would lose the
    gradient's precision in a compiled model. There is no `jvp`: dynamo refuses functions that have one.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, first_axis: int, *matrices: Tensor | None) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return _multiply(x, first_axis, matrices)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.first_axis, *matrices = inputs
        ctx.save_for_backward(*matrices)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), matrices = grad_outputs, ctx.saved_tensors
        back = [None if matrix is None else matrix.T for matrix in matrices]
        with torch.autocast(grad.device.type, enabled=False):
            return _multiply(grad, ctx.first_axis, back), None, *(None for _ in matrices)


def multiply_axes(
    x: Float[Tensor, "..."], *, first_axis: int, size: tuple[int, ...], kinds: tuple[str, ...]
) -> Float[Tensor, "..."]:
    """Resize consecutive axes of a tensor, each by its own matrix.

    Args:
        x: tensor.
        first_axis: the first axis to resize, counted from the front.
        size: lengths wanted.
        kinds: kind of `axis_matrix` for each of these axes.

    Returns:
        The resized tensor, in the dtype of `x`.

    Example:
        >>> multiply_axes(torch.randn(2, 4, 6), first_axis=1, size=(8, 3), kinds=("linear", "bicubic")).shape
        torch.Size([2, 8, 3])
    """
    y = x.to(_working_dtype(x.dtype))
    matrices = _matrices(y, first_axis, size, kinds)
    if not _under_autocast(x.device):
        y = _multiply(y, first_axis, matrices)
    elif torch.is_grad_enabled():
        y = _WithoutAutocast.apply(y, first_axis, *matrices)
    else:  # torch.export takes no autograd function there
        with torch.autocast(x.device.type, enabled=False):
            y = _multiply(y, first_axis, matrices)
    return y.to(x.dtype)


def cached() -> tuple[Tensor, ...]:
    """The matrices built so far, for one who knows them by their place in memory and must keep them there.

    Example:
        >>> prewarm([("linear", 4, 5)], dtype=torch.float32, device="cpu")
        >>> all(isinstance(matrix, Tensor) for matrix in cached())
        True
    """
    return tuple(_CACHE.values())


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
    device = torch.empty(0, device=device).device  # with its number
    for kind, old, new in matrices:
        if old != new and (kind, old, new, _working_dtype(dtype), device) not in _CACHE:
            _resize_matrix(kind, old, new, _working_dtype(dtype), device)
