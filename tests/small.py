"""A VideoMamba small enough for any test, clips for it, and sizes to run it at."""

import torch
from torch import Tensor

import flexvideo as fv

SIZES = [(4, 32, 32), (3, 48, 48), (6, 40, 24)]


def build(**arguments) -> fv.VideoMamba:
    torch.manual_seed(1)
    settings = {
        "img_size": 32,
        "patch_size": 8,
        "depth": 2,
        "embed_dim": 32,
        "num_classes": 5,
        "num_frames": 4,
    }
    model = fv.VideoMamba(**(settings | arguments)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def clip(frames: int = 4, height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(1, 3, frames, height, width, generator=torch.Generator().manual_seed(frames))
