"""What the stand-ins share: a cheap mixer in place of a scan, and the patch embeddings of Vim and timm."""

import torch
from torch import Tensor, nn

DIM = 12
IMAGE, PATCH, FRAMES = 32, 8, 6


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def sequence_mix(x: Tensor) -> Tensor:
    """Let every token reach every other, in both directions."""
    count = x.shape[1] ** 0.5
    return x + x.cumsum(1) / count + x.flip(1).cumsum(1).flip(1) / count


class Block(nn.Module):
    """Add, norm, mixer: hidden states and residual, as in the models that come from mamba_ssm."""

    def __init__(self, dim: int = DIM) -> None:
        super().__init__()
        self.mixer = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, hidden_states: Tensor, residual: Tensor | None = None, inference_params: object = None
    ) -> tuple[Tensor, Tensor]:
        residual = hidden_states if residual is None else residual + hidden_states
        return self.mixer(sequence_mix(self.norm(residual))).tanh(), residual


class PatchEmbed(nn.Module):
    """Vim's: it asserts the size of the frame, and its patches may overlap."""

    def __init__(self, img_size: int, patch_size: int, stride: int, dim: int = DIM) -> None:
        super().__init__()
        size, patch = pair(img_size), pair(patch_size)
        self.img_size, self.patch_size = size, patch
        self.grid_size = ((size[0] - patch[0]) // stride + 1, (size[1] - patch[1]) // stride + 1)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.flatten = True
        self.proj = nn.Conv2d(3, dim, kernel_size=patch, stride=stride)
        self.norm = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        assert height == self.img_size[0], f"height {height} is not {self.img_size[0]}"
        assert width == self.img_size[1], f"width {width} is not {self.img_size[1]}"
        return self.norm(self.proj(x).flatten(2).transpose(1, 2))


class PaddingPatchEmbed(nn.Module):
    """timm's, with `strict_img_size=False, dynamic_img_pad=True`: it pads what the patch does not divide."""

    def __init__(self, img_size: int, patch_size: int, dim: int = DIM) -> None:
        super().__init__()
        self.img_size, self.patch_size = pair(img_size), pair(patch_size)
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.flatten, self.strict_img_size, self.dynamic_img_pad = True, False, True
        self.proj = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        below = (self.patch_size[0] - height % self.patch_size[0]) % self.patch_size[0]
        right = (self.patch_size[1] - width % self.patch_size[1]) % self.patch_size[1]
        x = nn.functional.pad(x, (0, right, 0, below))
        return self.norm(self.proj(x).flatten(2).transpose(1, 2))


class Rotary(nn.Module):
    """`VisionRotaryEmbeddingFast`: buffers of cosines and sines over a square grid, rows first."""

    def __init__(self, dim: int, pt_seq_len: int, ft_seq_len: int) -> None:
        super().__init__()
        freqs = 1.0 / 10000 ** (torch.arange(0, dim, 2)[: dim // 2].float() / dim)
        line = torch.arange(ft_seq_len) / ft_seq_len * pt_seq_len
        angles = (line[:, None] * freqs).repeat_interleave(2, dim=-1)
        rows = angles[:, None].expand(-1, ft_seq_len, -1)
        both = torch.cat((rows, rows.transpose(0, 1)), dim=-1).reshape(ft_seq_len**2, -1)
        self.register_buffer("freqs_cos", both.cos())
        self.register_buffer("freqs_sin", both.sin())

    @staticmethod
    def has_cls_token(t: Tensor) -> bool:
        return t.shape[1] % 2 != 0

    @staticmethod
    def rotate_half(x: Tensor) -> Tensor:
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack((-odd, even), dim=-1).flatten(-2)

    def forward(self, t: Tensor) -> Tensor:
        if self.has_cls_token(t):
            rest = t[:, 1:]
            rest = rest * self.freqs_cos + self.rotate_half(rest) * self.freqs_sin
            return torch.cat((t[:, :1], rest), dim=1)
        return t * self.freqs_cos + self.rotate_half(t) * self.freqs_sin
