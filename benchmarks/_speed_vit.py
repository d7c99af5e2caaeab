"""The transformer that a user would take instead: joint attention over all tokens of a clip."""

import contextlib

import torch
import torch.nn.functional as F
from _speed_plan import Case
from _speed_timing import measure
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

PATCH, HEAD = 16, 64
FUSED = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION)


class VisionTransformer(nn.Module):
    """Blocks of attention over the tokens of a clip; 18 blocks of width 576 are the size of VideoMamba-M."""

    attention: SDPBackend | None  # PyTorch's own choice where None

    def __init__(self, tokens: int, *, depth: int, width: int, device: torch.device) -> None:
        super().__init__()
        self.heads, self.attention = width // HEAD, None
        with device:
            self.embed = nn.Conv2d(3, width, PATCH, PATCH)
            self.position = nn.Parameter(torch.zeros(1, tokens, width))
            self.layers = nn.ModuleList(TransformerBlock(width) for _ in range(depth))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 400)

    def forward(self, clip: Tensor) -> Tensor:
        frames = self.embed(clip.transpose(1, 2).flatten(0, 1)).flatten(2).transpose(1, 2)
        tokens = frames.reshape(clip.shape[0], -1, frames.shape[-1])
        x = F.pad(tokens, (0, 0, 1, 0)) + self.position
        with sdpa_kernel(self.attention) if self.attention else contextlib.nullcontext():
            for layer in self.layers:
                x = layer(x)
        return self.head(self.norm(x[:, 0]))


class TransformerBlock(nn.Module):
    """Pre-norm attention by PyTorch's fused kernel, and an MLP four times as wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm_1(x)).unflatten(-1, (3, -1, HEAD)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm_2(x))


def fastest_attention(case: Case, heads: int, device: torch.device) -> SDPBackend:
    """The fused attention that is the fastest forward and backward on the tokens of these clips."""
    qkv = torch.randn(case.batch, case.tokens, 3, heads, HEAD, device=device, dtype=torch.bfloat16)
    q, k, v = qkv.requires_grad_().permute(2, 0, 3, 1, 4)

    def attend() -> None:
        out = F.scaled_dot_product_attention(q, k, v)
        torch.autograd.grad(out, qkv, torch.ones_like(out), retain_graph=True)

    times: dict[SDPBackend, float] = {}
    for backend in FUSED:
        with sdpa_kernel(backend), contextlib.suppress(RuntimeError):  # not every build and GPU has both
            times[backend], _ = measure(lambda: attend, device)
    return min(times, key=lambda backend: times[backend])
