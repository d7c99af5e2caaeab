"""The official video model written out plainly: its parameter names, its arithmetic, one loop over tokens.

It stands for the official code, which needs CUDA to be imported: what loads here strictly loads there.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * self.weight


class Mamba(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        inner, self.rank, self.state = 2 * dim, math.ceil(dim / 16), 16
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        for end in ("", "_b"):
            conv = nn.Conv1d(inner, inner, 4, groups=inner, padding=3)
            self.add_module(f"conv1d{end}", conv)
            self.add_module(f"x_proj{end}", nn.Linear(inner, self.rank + 2 * self.state, bias=False))
            self.add_module(f"dt_proj{end}", nn.Linear(self.rank, inner))
            self.register_parameter(f"A{end}_log", nn.Parameter(torch.zeros(inner, self.state)))
            self.register_parameter(f"D{end}", nn.Parameter(torch.ones(inner)))

    def scan(self, xz: Tensor, end: str) -> Tensor:
        x, z = xz.chunk(2, dim=1)
        x = F.silu(getattr(self, f"conv1d{end}")(x)[..., : x.shape[-1]])
        steps, b, c = getattr(self, f"x_proj{end}")(x.mT).split([self.rank, self.state, self.state], dim=-1)
        delta = F.softplus(getattr(self, f"dt_proj{end}")(steps))
        decay = torch.exp(delta[..., None] * -torch.exp(getattr(self, f"A{end}_log")))
        drive = (delta * x.mT)[..., None] * b[:, :, None]
        h, outputs = torch.zeros_like(decay[:, 0]), []
        for t in range(x.shape[-1]):
            h = decay[:, t] * h + drive[:, t]
            outputs.append((h * c[:, t, None]).sum(-1))
        y = torch.stack(outputs, dim=-1) + getattr(self, f"D{end}")[:, None] * x
        return y * F.silu(z)

    def forward(self, x: Tensor) -> Tensor:
        xz = self.in_proj(x).mT
        return self.out_proj((self.scan(xz, "") + self.scan(xz.flip(-1), "_b").flip(-1)).mT)


class Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mixer = Mamba(dim)
        self.norm = RMSNorm(dim)


class PatchEmbed(nn.Module):
    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, dim, (1, patch, patch), stride=(1, patch, patch))


class VisionMamba(nn.Module):
    def __init__(self, *, size: int, patch: int, depth: int, dim: int, frames: int, classes: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(dim, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (size // patch) ** 2, dim))
        self.temporal_pos_embedding = nn.Parameter(torch.zeros(1, frames, dim))
        self.layers = nn.ModuleList(Block(dim) for _ in range(depth))
        self.norm_f = RMSNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch_embed.proj(x).flatten(3).permute(0, 2, 3, 1)
        tokens = tokens + self.pos_embed[:, None, 1:] + self.temporal_pos_embedding[:, :, None]
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        hidden, residual = torch.cat((first, tokens.flatten(1, 2)), dim=1), torch.zeros(())
        for layer in self.layers:
            residual = residual + hidden
            hidden = layer.mixer(layer.norm(residual))
        return self.head(self.norm_f(residual + hidden)[:, 0])
