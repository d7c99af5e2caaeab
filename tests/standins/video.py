"""Masked and multimodal VideoMamba, TimeMamba, Mamba-ND: names, shapes, token order and stored sizes."""

import hosts
import torch
import torch.nn.functional as F
from standins.parts import DIM, FRAMES, IMAGE, PATCH, pair, sequence_mix
from torch import Tensor, nn


def sinusoids(positions: int, dim: int) -> Tensor:
    angles = torch.arange(positions)[:, None] / 10000 ** (2 * (torch.arange(dim) // 2) / dim)
    return torch.where(torch.arange(dim) % 2 == 0, angles.sin(), angles.cos())[None]


class MaskedVideoMamba(hosts.VisionMamba):
    """OpenGVLab/VideoMamba, video_sm/models/videomamba_pretrain.py: a decoder with a table of its own."""

    def __init__(self) -> None:
        super().__init__(img_size=IMAGE, patch_size=PATCH, embed_dim=DIM, num_frames=FRAMES)
        self.norm = self.norm_f
        del self.norm_f, self.head
        self.return_index, self.depth = [1], 2
        self.clip_decoder = nn.ModuleList([nn.Linear(DIM, DIM)])
        self.clip_pos_embed = sinusoids(self.patch_embed.num_patches * FRAMES + 1, DIM)

    def tokens(self, x: Tensor, *, temporal: bool = True) -> Tensor:
        x = self.patch_embed(x)
        batch, channels, steps, rows, columns = x.shape
        x = x.permute(0, 2, 3, 4, 1).reshape(batch * steps, rows * columns, channels)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        if not temporal:
            return x
        cls_tokens = x[:batch, :1]
        x = x[:, 1:].unflatten(0, (batch, steps)).transpose(1, 2) + self.temporal_pos_embedding
        return torch.cat((cls_tokens, x.transpose(1, 2).flatten(1, 2)), dim=1)

    def encode(self, x: Tensor) -> Tensor:
        residual = None
        for layer in self.layers:
            x, residual = layer(x, residual)
        return self.norm(x + residual)

    def forward_features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.tokens(x)
        return self.encode(x[~mask].unflatten(0, (len(x), -1)))[None]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        visible = self.forward_features(x, mask)
        table = self.clip_pos_embed.repeat(len(x), 1, 1).type_as(x).to(x.device).clone().detach()
        return self.clip_decoder[0]((visible + table[~mask].view(len(x), -1, DIM))[0])[None]


class MultimodalVideoMamba(MaskedVideoMamba):
    """OpenGVLab/VideoMamba, video_mm/models/backbones/videomamba/videomamba.py (`PretrainVideoMamba`)."""

    def __init__(self) -> None:
        super().__init__()
        self.pool_type, self.add_pool_norm = "cls+avg", True
        self.pool_norm = nn.LayerNorm(DIM)
        self.clip_img_pos_embed = sinusoids(self.patch_embed.num_patches + 1, DIM)

    def forward_features(
        self, x: Tensor, mask: Tensor | None = None, use_image: bool = False
    ) -> tuple[Tensor, Tensor]:
        x = self.tokens(x, temporal=not use_image)
        x = self.encode(x if mask is None else x[~mask].unflatten(0, (len(x), -1)))
        return x, x[None]

    def forward(
        self, x: Tensor, mask: Tensor | None = None, use_image: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        visible, to_decode = self.forward_features(x, mask, use_image)
        decoded = None
        if mask is not None:
            table = self.clip_img_pos_embed if use_image else self.clip_pos_embed
            table = table.repeat(len(x), 1, 1).type_as(x)[~mask].view(len(x), -1, DIM)
            decoded = self.clip_decoder[0]((to_decode + table)[0])[None]
        cls, visible = visible[:, :1], visible[:, 1:]
        return visible, self.pool_norm(cls + visible.mean(1, keepdim=True)), decoded


class VideoPatchEmbed(nn.Module):
    def __init__(self, img_size: int, patch_size: int, num_frames: int) -> None:
        super().__init__()
        self.img_size, self.patch_size = pair(img_size), pair(patch_size)
        self.num_patches = (img_size // patch_size) ** 2 * num_frames
        self.num_frames, self.embed_dim = num_frames, DIM
        self.proj = nn.Conv2d(3, DIM, kernel_size=self.patch_size, stride=self.patch_size)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        frames = x.shape[1]
        assert frames <= self.num_frames
        x = self.proj(x.reshape(-1, *x.shape[2:]))
        return x.flatten(2).transpose(1, 2), frames, x.shape[-1]


class SpaceTimeBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(DIM)
        self.time_mamba = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor, time_n: int, space_f: int) -> Tensor:
        cls, x = x[:, :1], x[:, 1:].unflatten(1, (time_n, space_f)).flatten(0, 1)
        x = (x + self.time_mamba(sequence_mix(self.norm1(x))).tanh()).unflatten(0, (-1, time_n)).flatten(1, 2)
        x = torch.cat((cls, x), dim=1)
        return x + sequence_mix(x).tanh()


class TimeMamba(nn.Module):
    """OpenGVLab/video-mamba-suite, egocentric-understanding/avion/models/timemamba.py."""

    def __init__(self) -> None:
        super().__init__()
        self.num_frames = FRAMES
        self.patch_embed = VideoPatchEmbed(IMAGE, PATCH, FRAMES)
        self.patches_per_frame = self.patch_embed.num_patches // FRAMES
        self.cls_token = nn.Parameter(torch.randn(1, 1, DIM))
        self.pos_embed = nn.Parameter(torch.randn(1, self.patches_per_frame + 1, DIM))
        self.blocks = nn.ModuleList([SpaceTimeBlock(), SpaceTimeBlock()])
        self.norm = nn.LayerNorm(DIM)
        self.image_projection = None

    def forward_features(self, x: Tensor, cls_at_last: bool = True) -> Tensor:
        batch, frames = x.shape[:2]
        x, frames, _ = self.patch_embed(x)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1)
        if x.size(1) != self.pos_embed.size(1):
            raise NameError("name 'F' is not defined")  # where the host resizes to the nearest
        x = x + self.pos_embed
        cls = x[:batch, :1]
        x = x[:, 1:].unflatten(0, (batch, frames)).transpose(1, 2).flatten(1, 2)
        x = torch.cat((cls, x), dim=1)
        count = self.patches_per_frame
        for block in self.blocks:
            x = block(x, time_n=count, space_f=frames)
        x = self.norm(x)
        return x[:, 0] if cls_at_last else x

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x.permute(0, 2, 1, 3, 4).contiguous())


class MmcvPatchEmbed(nn.Module):
    """mmcv's, two-dimensional in what it says of sizes even when its convolution is not."""

    def __init__(self, input_size: tuple[int, int, int], kernel_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.embed_dims, self.adap_padding, self.norm = DIM, None, None
        self.projection = nn.Conv3d(3, DIM, kernel_size, stride=kernel_size)
        self.init_input_size = input_size
        self.init_out_size = (input_size[0] // kernel_size[0], input_size[1] // kernel_size[1])

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x = self.projection(x)
        return x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3])


class NdBlock(nn.Module):
    """A block that takes its tokens in another order: rows, columns, time."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.mixer = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
        time, _, rows, columns = shape
        count = time * rows * columns
        x, rest = x[:, :count], x[:, count:]
        y = x.unflatten(1, (time, rows, columns)).permute(0, 3, 2, 1, 4).flatten(1, 3)
        y = y + self.mixer(sequence_mix(self.norm(y))).tanh()
        x = y.unflatten(1, (columns, rows, time)).permute(0, 3, 2, 1, 4).flatten(1, 3)
        return torch.cat((x, rest + x.mean(1, keepdim=True)), dim=1)


class Mamba3DModel(nn.Module):
    """jacklishufan/Mamba-ND, video_pretraining/models/mamband.py.

    The repository's own blocks cannot take the class token that its constructor allows; these can, so that
    the row which it has in the table is tested.
    """

    num_extra_tokens = 1

    def __init__(self, *, with_cls_token: bool = False, patch_size_temporal: int = 1) -> None:
        super().__init__()
        self.img_size = (FRAMES, IMAGE, IMAGE)
        self.patch_embed = MmcvPatchEmbed(self.img_size, (patch_size_temporal, PATCH, PATCH))
        steps, rows = self.patch_embed.init_out_size
        self.patch_resolution = (steps, rows, rows)
        self.with_cls_token, self.interpolate_mode = with_cls_token, "bicubic"
        self.cls_token = nn.Parameter(torch.randn(1, 1, DIM)) if with_cls_token else None
        if not with_cls_token:
            self.num_extra_tokens = 0
        self.pos_embed = nn.Parameter(torch.randn(1, steps * rows * rows + self.num_extra_tokens, DIM))
        self.layers = nn.ModuleList([NdBlock(), NdBlock()])
        self.head = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 5))

    def resize_pos_embed(self, source: tuple[int, ...], target: tuple[int, ...]) -> Tensor:
        if tuple(source) == tuple(target):
            return self.pos_embed
        table = self.pos_embed[:, self.num_extra_tokens :].unflatten(1, source).permute(0, 4, 1, 2, 3)
        return F.interpolate(table, size=target, mode="bicubic")  # which PyTorch does not do in 3 dimensions

    def forward(self, x: Tensor) -> Tensor:
        x, size = self.patch_embed(x)
        size = (size[0], size[1], size[1])
        x = x + self.resize_pos_embed(self.patch_resolution, size)[:, self.num_extra_tokens :]
        if self.cls_token is not None:
            x = torch.cat((x, self.cls_token.expand(len(x), -1, -1)), dim=1)
        for layer in self.layers:
            x = layer(x, shape=(size[0], 1, size[1], size[2]))
        return self.head(x[:, -1] if self.with_cls_token else x.mean(1))
