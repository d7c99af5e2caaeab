"""The shape of an official VideoMamba: its sizes, and the names and shapes of its tensors."""

import math
from dataclasses import dataclass
from typing import Any

from flexvideo.geometry import Base

ANCHOR = "patch_embed.proj.weight"
STATE_SIZE, CONV_WIDTH = 16, 4
VARIANTS = {(192, 24): "tiny", (384, 24): "small", (576, 32): "middle", (768, 24): "base"}


@dataclass(frozen=True)
class Layout:
    """The shape of a VideoMamba: all that its tensors tell.

    Args:
        base: frames, frame size in pixels, patch and tubelet.
        depth: layers.
        embed_dim: width of a token.
        channels: colour channels of a frame.
        num_classes: rows of the head; 0 for a model without one.
    """

    base: Base
    depth: int
    embed_dim: int
    channels: int
    num_classes: int

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `flexvideo.VideoMamba`, a square as one number."""
        base = self.base
        return {
            "img_size": base.height if base.height == base.width else (base.height, base.width),
            "patch_size": base.patch[0] if base.patch[0] == base.patch[1] else base.patch,
            "depth": self.depth,
            "embed_dim": self.embed_dim,
            "channels": self.channels,
            "num_classes": self.num_classes,
            "kernel_size": base.tubelet,
            "num_frames": base.frames,
        }

    @property
    def variant(self) -> str:
        """Name of the official model of this width and depth, or "custom"."""
        return VARIANTS.get((self.embed_dim, self.depth), "custom")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all tensors of such a model.

        Example:
            >>> base = Base(frames=16, height=224, width=224, patch=(16, 16))
            >>> tiny = Layout(base, depth=24, embed_dim=192, channels=3, num_classes=400)
            >>> sum(math.prod(shape) for shape in tiny.shapes().values())
            7035280

        Source: OpenGVLab/VideoMamba, videomamba/video_sm/models/videomamba.py.
        """
        base, width = self.base, self.embed_dim
        head = {"head.weight": (self.num_classes, width), "head.bias": (self.num_classes,)}
        layer = _layer_shapes(width)
        return {
            "cls_token": (1, 1, width),
            "pos_embed": (1, 1 + math.prod(base.grid), width),
            "temporal_pos_embedding": (1, base.steps or 0, width),
            ANCHOR: (width, self.channels, base.tubelet, *base.patch),
            "patch_embed.proj.bias": (width,),
            "norm_f.weight": (width,),
            **(head if self.num_classes else {}),
            **{f"layers.{i}.{name}": shape for i in range(self.depth) for name, shape in layer.items()},
        }


def _layer_shapes(width: int) -> dict[str, tuple[int, ...]]:
    inner, rank = 2 * width, math.ceil(width / 16)
    shapes: dict[str, tuple[int, ...]] = {
        "norm.weight": (width,),
        "mixer.in_proj.weight": (2 * inner, width),
        "mixer.out_proj.weight": (width, inner),
    }
    for end in ("", "_b"):
        shapes |= {
            f"mixer.A{end}_log": (inner, STATE_SIZE),
            f"mixer.D{end}": (inner,),
            f"mixer.conv1d{end}.weight": (inner, 1, CONV_WIDTH),
            f"mixer.conv1d{end}.bias": (inner,),
            f"mixer.x_proj{end}.weight": (rank + 2 * STATE_SIZE, inner),
            f"mixer.dt_proj{end}.weight": (inner, rank),
            f"mixer.dt_proj{end}.bias": (inner,),
        }
    return shapes
