"""The 1-D matrices behind every resize, in closed form and float64.

Resizing a length P to a length p is a matrix of shape (p, P). Images, kernels and tables take one such matrix
per axis, because the resize of an image is the Kronecker product of the resizes of its rows and columns.

With sample centres at half pixels, output i sits at c = (i + 1/2) P / p and input j at j + 1/2:

    plain         weight_ij = f(j + 1/2 - c), taps beyond the border counted on the border sample
    antialiased   weight_ij = f((j + 1/2 - c) / s) with s = max(P / p, 1), rows divided by their sum

where f is the triangle (linear) or the cubic of Keys (1981), whose a is -0.75 when plain and -0.5 when
antialiased. These are the conventions of `torch.nn.functional.interpolate` with `align_corners=False`.

A patch kernel w of length P measures a patch x by <x, w>. With B the antialiased bicubic resize from P to p,
B' the plain one, and U the antialiased one from p to P, the kernel for patches of length p is

    paper     B' w               outputs grow by p / P per axis (StretchySnake, section 4.2)
    area      (P / p) B' w       the same, magnitude kept
    pi        (B^T)^+ w          <B x, w'> = <x, w> for p >= P, its least-squares solution below (FlexiViT,
                                 arXiv 2212.08013, section 3.4)
    adjoint   U^T w              <x', w'> = <U x', w>: as if every patch were resized to the base length
    auto      pi when the kernel shrinks, adjoint when it grows
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from flexvideo.errors import ConfigError, GeometryError

_Filter = Callable[[Float[Tensor, "new taps"]], Float[Tensor, "new taps"]]


def _triangle(x: Float[Tensor, "new taps"]) -> Float[Tensor, "new taps"]:
    return (1.0 - x.abs()).clamp(min=0.0)


def _cubic(x: Float[Tensor, "new taps"], *, a: float) -> Float[Tensor, "new taps"]:
    x = x.abs().clamp(max=2.0)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return torch.where(x <= 1.0, near, far)


def _arange(start: int, stop: int) -> Float[Tensor, " taps"]:
    return torch.arange(start, stop, dtype=torch.float64, device="cpu")


def _plain(weight: _Filter, old: int, new: int) -> Float[Tensor, "new old"]:
    reach = 2  # the widest filter touches two samples beyond the border
    centre = (_arange(0, new) + 0.5) * (old / new) - 0.5
    taps = weight(_arange(-reach, old + reach) - centre[:, None])
    matrix = taps[:, reach:-reach].clone()
    matrix[:, 0] += taps[:, :reach].sum(1)
    matrix[:, -1] += taps[:, -reach:].sum(1)
    return matrix


def _antialiased(weight: _Filter, old: int, new: int) -> Float[Tensor, "new old"]:
    centre = (_arange(0, new) + 0.5) * (old / new)
    taps = weight((_arange(0, old) + 0.5 - centre[:, None]) / max(old / new, 1.0))
    return taps / taps.sum(1, keepdim=True)


def _adjoint(old: int, new: int) -> Float[Tensor, "new old"]:
    return axis_matrix("bicubic-aa", new, old).T


def _pseudo_inverse(old: int, new: int) -> Float[Tensor, "new old"]:
    resize = axis_matrix("bicubic-aa", old, new)
    # Full rank, condition below 4 up to length 64 (tested): normal equations do, an SVD would be slower.
    if new < old:
        return torch.linalg.solve(resize @ resize.T, resize)
    return torch.linalg.solve(resize.T @ resize, resize.T).T


_BUILDERS: dict[str, Callable[[int, int], Float[Tensor, "new old"]]] = {
    "linear": lambda old, new: _plain(_triangle, old, new),
    "linear-aa": lambda old, new: _antialiased(_triangle, old, new),
    "bicubic": lambda old, new: _plain(partial(_cubic, a=-0.75), old, new),
    "bicubic-aa": lambda old, new: _antialiased(partial(_cubic, a=-0.5), old, new),
    "paper": lambda old, new: axis_matrix("bicubic", old, new),
    "paper-aa": lambda old, new: axis_matrix("bicubic-aa", old, new),
    "area": lambda old, new: axis_matrix("bicubic", old, new) * (old / new),
    "area-aa": lambda old, new: axis_matrix("bicubic-aa", old, new) * (old / new),
    "pi": _pseudo_inverse,
    "adjoint": _adjoint,
    "auto": lambda old, new: _pseudo_inverse(old, new) if new < old else _adjoint(old, new),
}


def axis_matrix(kind: str, old: int, new: int) -> Float[Tensor, "new old"]:
    """Matrix that takes one axis from `old` to `new` samples: float64, on the CPU.

    Args:
        kind: "linear" or "bicubic", with "-aa" appended for antialiasing: what multiplies a table or a clip.
            "paper", "area" (with "-aa" likewise), "pi", "adjoint" or "auto": what multiplies a patch kernel.
        old: length before, at least 1.
        new: length after, at least 1.

    Raises:
        ConfigError: an unknown kind.
        GeometryError: a length below 1.

    Example:
        >>> axis_matrix("linear", 4, 2)
        tensor([[0.5000, 0.5000, 0.0000, 0.0000],
                [0.0000, 0.0000, 0.5000, 0.5000]], dtype=torch.float64)
    """
    if kind not in _BUILDERS:
        raise ConfigError(f"Unknown resize kind {kind!r}. Known kinds: {', '.join(_BUILDERS)}.")
    if old < 1 or new < 1:
        raise GeometryError(f"Cannot resize an axis from {old} to {new} samples: both must be at least 1.")
    # Not contiguous(), which leaves a transposed column its odd strides.
    return _BUILDERS[kind](old, new).clone(memory_format=torch.contiguous_format)
