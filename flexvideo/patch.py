"""Patch embedding: a convolution whose stride is its kernel size."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from flexvideo.devices import products_dtype
from flexvideo.errors import GeometryError
from flexvideo.imagenet import IMAGENET_MEAN, IMAGENET_STD


def patch_conv3d(
    x: Float[Tensor, "b c t h w"],
    weight: Float[Tensor, "o c kt kh kw"],
    bias: Float[Tensor, "o"] | None = None,
) -> Float[Tensor, "b o t2 h2 w2"]:
    """Convolve non-overlapping patches: stride equals kernel size, what a patch does not fill is left out.

    On a CPU, with a tubelet of one frame, time is folded into the batch and the frames go through a 2-D
    convolution: low-precision 3-D convolutions can take 17 times the memory. Elsewhere it is `patch_product`.

    Args:
        x: clip.
        weight: kernel over (frames, rows, columns).
        bias: one per output channel.

    Example:
        >>> import torch
        >>> from flexvideo.patch import patch_conv3d
        >>> patch_conv3d(torch.zeros(2, 3, 4, 32, 48), torch.zeros(8, 3, 1, 16, 16)).shape
        torch.Size([2, 8, 4, 2, 3])
    """
    if x.device.type != "cpu":
        return patch_product(x, weight, bias)
    tubelet, *size = weight.shape[2:]
    if tubelet != 1:
        return F.conv3d(x, weight, bias, stride=(tubelet, *size))
    frames = F.conv2d(x.transpose(1, 2).flatten(0, 1), weight.squeeze(2), bias, stride=tuple(size))
    return frames.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


def patch_product(
    x: Float[Tensor, "b c t h w"],
    weight: Float[Tensor, "o c kt kh kw"],
    bias: Float[Tensor, "o"] | None = None,
) -> Float[Tensor, "b o t2 h2 w2"]:
    """The same as one product, with a patch a row; the channels of what comes out lie side by side in memory.

    The rows are the only copy of the clip, in the dtype of the product. A convolution on a GPU makes several,
    since it takes and gives other layouts; one on a CPU makes none, and is faster.

    Args:
        x: clip.
        weight: kernel over (frames, rows, columns).
        bias: one per output channel.

    Example:
        >>> import torch
        >>> from flexvideo.patch import patch_product
        >>> patch_product(torch.zeros(2, 3, 4, 32, 48), torch.zeros(8, 3, 1, 16, 16)).shape
        torch.Size([2, 8, 4, 2, 3])
    """
    dtype = products_dtype(x)
    for dim in (4, 3, 2):
        size = weight.shape[dim]
        count = x.shape[dim] // size
        x = x.narrow(dim, 0, count * size).unflatten(dim, (count, size))
    patches = x.permute(0, 2, 4, 6, 1, 3, 5, 7)  # (b, t2, h2, w2, c, kt, kh, kw)
    rows = patches.to(dtype, memory_format=torch.contiguous_format).flatten(4)
    return F.linear(rows, weight.flatten(1), bias).permute(0, 4, 1, 2, 3)


def dtype_error(clip: Tensor, weight: Tensor, layout: str) -> GeometryError:
    """What is wrong with a clip of another dtype than a model, which takes it as (b, c, t, h, w), say."""
    remedy = f"clip.to({weight.dtype})"
    if not clip.is_floating_point():
        colour = "1, " * layout[::-1].index("c")
        values = "(clip / 255 - mean) / std"
        values = values if weight.dtype == torch.float32 else f"({values}).to({weight.dtype})"
        remedy = (
            f"{values}, where ImageNet's mean, std = torch.tensor("
            f"{[list(IMAGENET_MEAN), list(IMAGENET_STD)]}, device=clip.device).view(2, 3, {colour[:-2]})"
        )
    return GeometryError(
        f"The model takes normalised clips of {weight.dtype}, and this one holds {clip.dtype}: give {remedy}."
    )


def check_dtype(x: Tensor, weight: Tensor, layout: str = "bcthw") -> None:
    """Refuse an input that a layer would fail on, as torch says it without saying what to do.

    Args:
        x: input of a patch embedding.
        weight: its weight.
        layout: dimensions of the clip that the model takes.

    Raises:
        GeometryError: an input of another dtype that autocast does not convert.
    """
    if x.dtype == weight.dtype or torch.compiler.is_compiling():
        return
    if not (x.is_floating_point() and torch.is_autocast_enabled(x.device.type)):
        raise dtype_error(x, weight, layout)


class PatchConv3d(nn.Conv3d):
    """A `Conv3d` with stride equal to its kernel size and no padding, computed by `patch_conv3d`.

    Args:
        in_channels: channels of the clip.
        out_channels: width of the tokens.
        kernel_size: (frames, rows, columns) of a patch.
        device: as in torch.
        dtype: as in torch.

    Example:
        >>> import torch
        >>> from flexvideo.patch import PatchConv3d
        >>> PatchConv3d(3, 8, (1, 16, 16))(torch.zeros(2, 3, 4, 32, 48)).shape
        torch.Size([2, 8, 4, 2, 3])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int, int],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride=kernel_size, device=device, dtype=dtype
        )

    def forward(self, input: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b o t2 h2 w2"]:
        """Patch embedding of a clip, as in `patch_conv3d`."""
        check_dtype(input, self.weight)
        return patch_conv3d(input, self.weight, self.bias)
