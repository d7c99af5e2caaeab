"""Toy models written as other people write theirs: the official VideoMamba layout, and stranger ones."""

import torch
from torch import Tensor, nn

import flexvideo as fv

BASE = (4, 32, 32)
SIZES = ((6, 48, 32), (2, 24, 40), (5, 64, 56))
"""Frames, height and width: of the base, and of other clips that every policy can run."""


class PatchEmbed(nn.Module):
    def __init__(self, img_size: int, patch_size: int, tubelet_size: int, embed_dim: int) -> None:
        super().__init__()
        self.img_size = (img_size, img_size)
        self.patch_size = (patch_size, patch_size)
        self.num_patches = (img_size // patch_size) ** 2
        self.tubelet_size = tubelet_size
        kernel = (tubelet_size, patch_size, patch_size)
        self.proj = nn.Conv3d(3, embed_dim, kernel_size=kernel, stride=kernel)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class Block(nn.Module):
    """A cheap recurrence in both directions, in which every token reaches every other."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mixer = nn.Linear(dim, dim)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        residual = x if residual is None else residual + x
        x = self.norm(residual)
        count = x.shape[1] ** 0.5
        return self.mixer(x + x.cumsum(1) / count + x.flip(1).cumsum(1).flip(1) / count).tanh(), residual


class VisionMamba(nn.Module):
    """Names and structure of the official video model, with another mixer."""

    def __init__(
        self,
        img_size: int = 32,
        patch_size: int = 8,
        depth: int = 2,
        embed_dim: int = 8,
        num_classes: int = 5,
        kernel_size: int = 1,
        num_frames: int = 4,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(img_size, patch_size, kernel_size, embed_dim)
        self.cls_token = nn.Parameter(torch.randn(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.randn(1, self.patch_embed.num_patches + 1, embed_dim))
        self.temporal_pos_embedding = nn.Parameter(torch.randn(1, num_frames // kernel_size, embed_dim))
        self.layers = nn.ModuleList(Block(embed_dim) for _ in range(depth))
        self.norm_f = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes)

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "cls_token", "temporal_pos_embedding"}

    def forward_features(self, x: Tensor, inference_params: object = None) -> Tensor:
        x = self.patch_embed(x)
        batch, channels, steps, rows, columns = x.shape
        x = x.permute(0, 2, 3, 4, 1).reshape(batch * steps, rows * columns, channels)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        cls_tokens = x[:batch, :1]
        x = x[:, 1:].reshape(batch, steps, rows * columns, channels).transpose(1, 2)
        x = (x.flatten(0, 1) + self.temporal_pos_embedding).unflatten(0, (batch, rows * columns))
        x = torch.cat((cls_tokens, x.transpose(1, 2).flatten(1, 2)), dim=1)
        residual = None
        for layer in self.layers:
            x, residual = layer(x, residual)
        return self.norm_f(x + residual)[:, 0]

    def forward(self, x: Tensor, inference_params: object = None) -> Tensor:
        return self.head(self.forward_features(x, inference_params))


class ImagePatchEmbed(nn.Module):
    def __init__(self, img_size: int, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.img_size = (img_size, img_size)
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        assert height == self.img_size[0]
        assert width == self.img_size[1]
        return self.proj(x).flatten(2).transpose(1, 2)


class ImageMamba(nn.Module):
    """Names and structure of the official image model."""

    def __init__(self, img_size: int = 32, patch_size: int = 8, embed_dim: int = 8) -> None:
        super().__init__()
        self.patch_embed = ImagePatchEmbed(img_size, patch_size, embed_dim)
        self.cls_token = nn.Parameter(torch.randn(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.randn(1, self.patch_embed.num_patches + 1, embed_dim))
        self.layers = nn.ModuleList([Block(embed_dim)])
        self.head = nn.Linear(embed_dim, 5)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        for layer in self.layers:
            x, _ = layer(x)
        return x[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x))


class FrameBlock(nn.Module):
    """A block with a size of the clip and a table of its own."""

    def __init__(self, dim: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.time_table = nn.Parameter(torch.randn(steps, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (self.steps, -1))
        return (x + x.cumsum(1) + self.time_table).flatten(1, 2)


class Config:
    def __init__(self, image_size: int, num_frames: int) -> None:
        self.image_size = image_size
        self.num_frames = num_frames


class Stranger(nn.Module):
    """Everything unlike VideoMamba: a Linear patch embedding, clips as (b, t, c, h, w), tables of all kinds.

    Args:
        order: how a patch is flattened.
        class_row: where each frame keeps its class token.
    """

    def __init__(self, order: str = "chw", class_row: str = "middle", dim: int = 12) -> None:
        super().__init__()
        self.order, self.class_row = order, class_row
        self.config = Config(image_size=32, num_frames=4)
        self.patch, tokens = 8, 16
        self.stem = nn.Linear(3 * self.patch**2, dim)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 1, dim))
        self.frame_table = nn.Parameter(torch.randn(1, tokens + 1, dim))
        self.joint_table = nn.Parameter(torch.randn(1, 4 * tokens, dim))
        self.image_table = nn.Parameter(torch.randn(1, dim, 4, 4))
        self.fixed_table = torch.randn(tokens, dim)
        self.register_buffer("buffer_table", torch.randn(4, dim))
        self.table_list = nn.ParameterList([torch.randn(4, dim), torch.randn(4, dim)])
        self.blocks = nn.ModuleList([FrameBlock(dim, 4), FrameBlock(dim, 4)])

    def forward(self, video: Tensor) -> Tensor:
        batch, frames, _, height, width = video.shape
        assert frames == self.config.num_frames
        rows, columns, p = height // self.patch, width // self.patch, self.patch
        x = video[..., : rows * p, : columns * p].unflatten(-1, (columns, p)).unflatten(-3, (rows, p))
        order = (0, 1, 3, 5, 2, 4, 6) if self.order == "chw" else (0, 1, 3, 5, 4, 6, 2)
        x = self.stem(x.permute(order).flatten(4)).flatten(2, 3)  # (b, t, n, d)
        x = x + self.image_table.flatten(2).transpose(1, 2) + self.fixed_table + self.buffer_table[:, None]
        x = x + self.joint_table.unflatten(1, (frames, -1)) + sum(table[:, None] for table in self.table_list)
        cls = self.cls_token.expand(batch, frames, 1, -1)
        at = {"first": 0, "middle": x.shape[2] // 2, "last": x.shape[2]}[self.class_row]
        x = torch.cat((x[:, :, :at], cls, x[:, :, at:]), dim=2) + self.frame_table
        x = x.flatten(1, 2)
        for block in self.blocks:
            x = block(x)
        return x


def _config(geometry: fv.Geometry, stored: Config) -> Config:
    return Config(image_size=geometry.height, num_frames=geometry.frames)


def _patch(geometry: fv.Geometry, stored: int) -> int:
    return geometry.patch[0]


def _steps(geometry: fv.Geometry, stored: int) -> int:
    return geometry.steps


def stranger_plan(order: str = "chw", class_row: str = "middle") -> fv.Plan:
    return fv.Plan(
        base=fv.Base(4, 32, 32, (8, 8)),
        patch_embeds=("stem",),
        tables=(
            fv.Table("frame_table", axes="space", class_rows=(class_row,)),
            fv.Table("joint_table", axes="joint"),
            fv.Table("image_table", axes="space", dim=2, spread=True),
            fv.Table("fixed_table", axes="space", dim=0),
            fv.Table("buffer_table", axes="time", dim=0),
            fv.Table("table_list.0", axes="time", dim=0),
            fv.Table("table_list.1", axes="time", dim=0),
            fv.Table("blocks.0.time_table", axes="time", dim=0),
            fv.Table("blocks.1.time_table", axes="time", dim=0),
        ),
        state=(
            fv.State("config", _config),
            fv.State("patch", _patch),
            fv.State("blocks.0.steps", _steps),
            fv.State("blocks.1.steps", _steps),
        ),
        layout="btchw",
        linear_order=order,
    )


class Recogniser(nn.Module):
    """A model around another, which takes the clip first."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, clip: Tensor) -> Tensor:
        return self.backbone(clip / 2) * self.scale


def ours(scan_backend: str = "reference") -> fv.VideoMamba:
    return fv.VideoMamba(
        img_size=32,
        patch_size=8,
        depth=2,
        embed_dim=8,
        num_classes=5,
        num_frames=4,
        drop_path_rate=0.0,
        scan_backend=scan_backend,
    )


def randomised(model: nn.Module) -> nn.Module:
    """Give every parameter a value, also those that start as zeros and would hide a mistake."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


HOSTS = {"official": VisionMamba, "ours": ours}


def clip(size: tuple[int, int, int], batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(sum(size))
    return torch.rand(batch, 3, *size, generator=generator)
