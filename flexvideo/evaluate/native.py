"""The baseline that changes the clip and not the model."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flexvideo.active import flex_within
from flexvideo.data.clips import sample_frames
from flexvideo.discover import plan_for
from flexvideo.errors import UnsupportedModelError
from flexvideo.geometry import Base
from flexvideo.resample import resize_clip


class NativeSize(nn.Module):
    """Run every clip at the size a plain model was built for: what one does without flexibility.

    A clip of another frame count is cut into as many equal parts as the model has frames, each of which gives
    the frame in its middle, repeated where there are too few; frames of another size are resized by
    antialiased bicubic interpolation. What the clip lacks stays lacking: 8 frames do not become 16 different
    ones.

    Args:
        model: a plain model, which is not changed.

    Raises:
        UnsupportedModelError: the model is flexible.

    Example:
        >>> from flexvideo import VideoMamba
        >>> model = VideoMamba(img_size=32, patch_size=8, depth=1, embed_dim=16, num_frames=4, num_classes=5)
        >>> NativeSize(model)(torch.rand(1, 3, 6, 48, 48)).shape
        torch.Size([1, 5])
    """

    model: Any

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if flex_within(model) is not None:
            raise UnsupportedModelError(
                f"{type(model).__name__} is flexible, so its clips need no resizing: `restore(model)` first."
            )
        self.model = model
        self.base = plan_for(model).base

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b k"]:
        """Class scores of a clip of any size."""
        return self.model(self.fit(x))

    def forward_features(
        self, x: Float[Tensor, "b c t h w"], *, all_tokens: bool = False
    ) -> Float[Tensor, "b d"] | Float[Tensor, "b l d"]:
        """Features of a clip of any size, as the model's own method gives them."""
        options = {"all_tokens": True} if all_tokens else {}
        return self.model.forward_features(self.fit(x), **options)

    def fit(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t2 h2 w2"]:
        """A clip at the model's own size; the very same one if it has it."""
        return fit_clip(x, self.base)


def fit_clip(x: Float[Tensor, "b c t h w"], base: Base) -> Float[Tensor, "b c t2 h2 w2"]:
    """Give a clip the size that a model was built for, as `NativeSize` does.

    Args:
        x: clip.
        base: of the model.

    Returns:
        The clip at that size; the very same object if it has that size already.

    Example:
        >>> base = Base(frames=4, height=32, width=32, patch=(8, 8))
        >>> fit_clip(torch.rand(1, 3, 6, 48, 48), base).shape
        torch.Size([1, 3, 4, 32, 32])
    """
    if base.frames not in (None, x.shape[2]):
        chosen = torch.tensor(sample_frames(x.shape[2], base.frames))
        # Not made on the device: that would wait until a GPU has done all that it was asked to before.
        x = x[:, :, chosen.to(x.device, non_blocking=True)]
    return resize_clip(x, (base.height, base.width))
