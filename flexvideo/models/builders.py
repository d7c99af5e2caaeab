"""The four official sizes of VideoMamba."""

from collections.abc import Sequence
from typing import Literal

import torch

from flexvideo.models.videomamba import VideoMamba


def videomamba_tiny(
    *,
    img_size: int | Sequence[int] = 224,
    patch_size: int | Sequence[int] = 16,
    channels: int = 3,
    num_classes: int = 1000,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.1,
    norm_epsilon: float = 1e-5,
    kernel_size: int = 1,
    num_frames: int = 8,
    fc_drop_rate: float = 0.0,
    init: Literal["official", "mamba"] = "official",
    scan_backend: str = "auto",
    use_checkpoint: bool = False,
    checkpoint_num: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> VideoMamba:
    """VideoMamba-Tiny: 24 blocks of width 192, 7 million parameters; arguments as in `VideoMamba`."""
    return VideoMamba(depth=24, embed_dim=192, **locals())


def videomamba_small(
    *,
    img_size: int | Sequence[int] = 224,
    patch_size: int | Sequence[int] = 16,
    channels: int = 3,
    num_classes: int = 1000,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.1,
    norm_epsilon: float = 1e-5,
    kernel_size: int = 1,
    num_frames: int = 8,
    fc_drop_rate: float = 0.0,
    init: Literal["official", "mamba"] = "official",
    scan_backend: str = "auto",
    use_checkpoint: bool = False,
    checkpoint_num: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> VideoMamba:
    """VideoMamba-Small: 24 blocks of width 384, 26 million parameters; arguments as in `VideoMamba`."""
    return VideoMamba(depth=24, embed_dim=384, **locals())


def videomamba_middle(
    *,
    img_size: int | Sequence[int] = 224,
    patch_size: int | Sequence[int] = 16,
    channels: int = 3,
    num_classes: int = 1000,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.1,
    norm_epsilon: float = 1e-5,
    kernel_size: int = 1,
    num_frames: int = 8,
    fc_drop_rate: float = 0.0,
    init: Literal["official", "mamba"] = "official",
    scan_backend: str = "auto",
    use_checkpoint: bool = False,
    checkpoint_num: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> VideoMamba:
    """VideoMamba-Middle: 32 blocks of width 576, 74 million parameters; arguments as in `VideoMamba`."""
    return VideoMamba(depth=32, embed_dim=576, **locals())


def videomamba_base(
    *,
    img_size: int | Sequence[int] = 224,
    patch_size: int | Sequence[int] = 16,
    channels: int = 3,
    num_classes: int = 1000,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.1,
    norm_epsilon: float = 1e-5,
    kernel_size: int = 1,
    num_frames: int = 8,
    fc_drop_rate: float = 0.0,
    init: Literal["official", "mamba"] = "official",
    scan_backend: str = "auto",
    use_checkpoint: bool = False,
    checkpoint_num: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> VideoMamba:
    """VideoMamba-Base: 24 blocks of width 768, 98 million parameters; arguments as in `VideoMamba`."""
    return VideoMamba(depth=24, embed_dim=768, **locals())
