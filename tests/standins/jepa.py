"""Stand-ins of V-JEPA 2 and of SlowFast's MViT as their own repositories have them."""

from typing import Any

import torch
from standins.parts import DIM, FRAMES, IMAGE, PATCH
from torch import Tensor, nn

TUBELET, HEADS = 2, 2


class PatchEmbed3D(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_size, self.tubelet_size = PATCH, TUBELET
        size = (TUBELET, PATCH, PATCH)
        self.proj = nn.Conv3d(3, DIM, size, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class PatchEmbed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_size = PATCH
        self.proj = nn.Conv2d(3, DIM, PATCH, PATCH)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class RoPEAttention(nn.Module):
    """Numbers tokens by the grid that it is handed, or by its own square one."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.grid_size = HEADS, IMAGE // PATCH
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.places = nn.Identity()

    def forward(self, x: Tensor, mask: Any, T: int | None, H: int | None, W: int | None) -> Tensor:
        depth = int(x.shape[1] // (self.grid_size * self.grid_size))
        if T is None or H is None or W is None:
            T, H, W = depth, self.grid_size, self.grid_size
        number = torch.arange(int(T * H * W)) if mask is None else mask[0]
        places = torch.stack((number // (H * W), number % (H * W) // W, number % (H * W) % W), dim=-1)
        angles = self.places(places).float() @ torch.tensor([[1.0], [0.1], [0.01]])
        q, k, v = (self.qkv(x) * angles.cos()).chunk(3, dim=-1)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor, mask: Any, *grid: Any) -> Tensor:
        return self.proj(nn.functional.scaled_dot_product_attention(*self.qkv(x).chunk(3, dim=-1)))


class Block(nn.Module):
    def __init__(self, *, rope: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(DIM)
        self.attn = RoPEAttention() if rope else Attention()

    def forward(self, x: Tensor, mask: Any, T: Any, H_patches: Any, W_patches: Any) -> Tensor:
        return x + self.attn(self.norm1(x), mask, T, H_patches, W_patches)


class VJEPA2(nn.Module):
    """facebookresearch/vjepa2, src/models/vision_transformer.py: rotary positions, or a table of sines.

    Args:
        rope: whether it has the former.
        frames: 1 for a model of images.
        nonsquare: `handle_nonsquare_inputs`.
    """

    def __init__(self, *, rope: bool = True, frames: int = FRAMES, nonsquare: bool = True) -> None:
        super().__init__()
        self.num_features = self.embed_dim = DIM
        self.num_heads, self.out_layers, self.handle_nonsquare_inputs = HEADS, None, nonsquare
        self.img_height = self.img_width = IMAGE
        self.patch_size, self.num_frames, self.tubelet_size = PATCH, frames, TUBELET
        self.is_video = frames > 1
        self.patch_embed = PatchEmbed3D() if self.is_video else PatchEmbed()
        self.num_patches = max(frames // TUBELET, 1) * (IMAGE // PATCH) ** 2
        self.uniform_power, self.use_rope = False, rope
        self.pos_embed = (
            None if rope else nn.Parameter(torch.randn(1, self.num_patches, DIM), requires_grad=False)
        )
        self.blocks = nn.ModuleList([Block(rope=rope) for _ in range(2)])
        self.norm = nn.LayerNorm(DIM)

    def forward(self, x: Tensor, masks: Any = None) -> Tensor:
        T = x.shape[2] // self.tubelet_size if x.ndim == 5 else 1
        H, W = x.shape[-2] // self.patch_size, x.shape[-1] // self.patch_size
        if not self.handle_nonsquare_inputs:
            T = H = W = None
        table = None if self.use_rope else self.interpolate_pos_encoding(x, self.pos_embed)
        tokens = self.patch_embed(x)
        if table is not None:
            tokens = tokens + table
        if masks is not None:
            tokens = tokens[:, masks[0]]
        for block in self.blocks:
            tokens = block(tokens, masks, T, H, W)
        return self.norm(tokens)

    def interpolate_pos_encoding(self, x: Tensor, table: Any) -> Tensor:
        frames = x.shape[2] if self.is_video else self.num_frames
        if (x.shape[-2], x.shape[-1]) == (self.img_height, self.img_width):
            if frames == self.num_frames:
                return table
            if frames < self.num_frames:  # the first steps, as they are
                tokens = frames // self.tubelet_size * (x.shape[-2] // self.patch_size) ** 2
                return table[:, :tokens]
        raise AssertionError("its own trilinear resize is to have nothing to do")


class SlowFastMViT(nn.Module):
    """facebookresearch/SlowFast, slowfast/models/video_model_builder.py: takes a list of pathways."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_stride, self.cls_embed_on, self.sep_pos_embed = [2, 4, 4], True, True
        self.T, self.H, self.W = FRAMES // 2, IMAGE // 4, IMAGE // 4
        self.patch_dims = [self.T, self.H, self.W]
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv3d(3, DIM, (3, 7, 7), (2, 4, 4), (1, 3, 3))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, DIM))
        self.pos_embed_spatial = nn.Parameter(torch.randn(1, self.H * self.W, DIM))
        self.pos_embed_temporal = nn.Parameter(torch.randn(1, self.T, DIM))
        self.pos_embed_class = nn.Parameter(torch.randn(1, 1, DIM))

    def forward(self, x: list[Tensor]) -> Tensor:
        grid = self.patch_embed.proj(x[0])
        assert list(grid.shape[2:]) == [self.T, self.H, self.W]
        table = self.pos_embed_spatial.repeat(1, self.T, 1)
        table = table + self.pos_embed_temporal.repeat_interleave(self.H * self.W, dim=1)
        tokens = torch.cat((self.cls_token.expand(len(grid), -1, -1), grid.flatten(2).transpose(1, 2)), dim=1)
        return (tokens + torch.cat((self.pos_embed_class, table), dim=1)).mean(dim=1)
