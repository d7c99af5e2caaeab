"""PlainMamba, VMamba, MambaVision, VSSD: names, shapes, stored sizes, and what already takes any size."""

from collections import OrderedDict

import torch
from standins.parts import DIM, IMAGE, pair, sequence_mix
from torch import Tensor, nn


class AdaptivePadding(nn.Module):
    """mmcv's, "corner": pads at the bottom and on the right until the stride divides the frame."""

    def __init__(self, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.padding = "corner"
        self.kernel_size, self.stride, self.dilation = pair(kernel_size), pair(stride), (1, 1)

    def forward(self, x: Tensor) -> Tensor:
        pads = [
            max((-(-side // stride) - 1) * stride + kernel - side, 0)
            for side, stride, kernel in zip(x.shape[2:], self.stride, self.kernel_size, strict=True)
        ]
        return nn.functional.pad(x, (0, pads[1], 0, pads[0]))


class ConvPatchEmbed(nn.Module):
    def __init__(self, input_size: int, patch_size: int) -> None:
        super().__init__()
        self.embed_dims = DIM
        self.stem = nn.Sequential(
            nn.Conv2d(3, 5, kernel_size=(7, 7), stride=(2, 2), padding=3, bias=False), nn.BatchNorm2d(5)
        )
        self.convs = None
        half = patch_size // 2
        self.adaptive_padding = AdaptivePadding(half, half)
        self.projection = nn.Conv2d(5, DIM, kernel_size=pair(half), stride=pair(half), padding=0)
        self.norm = None
        self.init_input_size = pair(input_size)
        self.init_out_size = pair(input_size // patch_size)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x = self.projection(self.adaptive_padding(self.stem(x)))
        return x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3])


class PlainMamba2D(nn.Module):
    def __init__(self, default_hw_shape: tuple[int, int]) -> None:
        super().__init__()
        self.default_hw_shape = default_hw_shape
        self.default_permute_order = self.order(*default_hw_shape)
        self.in_proj = nn.Linear(DIM, DIM)

    @staticmethod
    def order(rows: int, columns: int) -> tuple[int, ...]:
        """Rows from left to right and back, in turn."""
        line = range(columns)
        return tuple(
            row * columns + column for row in range(rows) for column in (line if row % 2 == 0 else line[::-1])
        )

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        default = tuple(hw_shape) == tuple(self.default_hw_shape)
        order = torch.tensor(self.default_permute_order if default else self.order(*hw_shape))
        return self.in_proj(sequence_mix(x[:, order])[:, order.argsort()])


class PlainMambaLayer(nn.Module):
    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.mamba = PlainMamba2D(shape)

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        return x + self.mamba(self.norm(x), hw_shape).tanh()


class PlainMamba(nn.Module):
    """ChenhongyiYang/PlainMamba, mmcls/plain_mamba_dev/models/plain_mamba/plain_mamba.py."""

    def __init__(self, img_size: int = 64, patch_size: int = 16) -> None:
        super().__init__()
        self.img_size, self.patch_size = pair(img_size), patch_size
        self.embed_dims, self.with_pos_embed, self.interpolate_mode = DIM, True, "bicubic"
        self.patch_embed = ConvPatchEmbed(img_size, patch_size)
        self.patch_resolution = self.patch_embed.init_out_size
        count = self.patch_resolution[0] * self.patch_resolution[1]
        self.pos_embed = nn.Parameter(torch.randn(1, count, DIM))
        self.layers = nn.ModuleList([PlainMambaLayer(self.patch_resolution) for _ in range(2)])
        self.norm1 = nn.LayerNorm(DIM)

    def forward(self, x: Tensor) -> Tensor:
        x, size = self.patch_embed(x)
        table = self.pos_embed
        if tuple(size) != tuple(self.patch_resolution):
            table = table.transpose(1, 2).unflatten(2, self.patch_resolution)
            table = nn.functional.interpolate(table, size, mode="bicubic").flatten(2).transpose(1, 2)
        x = x + table
        for layer in self.layers:
            x = layer(x, hw_shape=size)
        return self.norm1(x).mean(1)


class Permute(nn.Module):
    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(*self.order)


class VSSBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.op = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.op(sequence_mix(self.norm(x).flatten(1, 2)).unflatten(1, x.shape[1:3])).tanh()


class VSSM(nn.Module):
    """MzeroMiko/VMamba, classification/models/vmamba.py, channels last."""

    def __init__(self, *, posembed: bool = True, patchembed_version: str = "v1") -> None:
        super().__init__()
        self.channel_first, self.dims, self.num_layers = False, [DIM, 2 * DIM], 2
        self.pos_embed = nn.Parameter(torch.randn(1, DIM, IMAGE // 4, IMAGE // 4)) if posembed else None
        self.patch_embed = self.embeds()[patchembed_version]
        down = nn.Sequential(
            Permute(0, 3, 1, 2), nn.Conv2d(DIM, 2 * DIM, 2, 2), Permute(0, 2, 3, 1), nn.LayerNorm(2 * DIM)
        )
        self.layers = nn.ModuleList(
            nn.Sequential(OrderedDict(blocks=nn.Sequential(VSSBlock(dim)), downsample=downsample))
            for dim, downsample in ((DIM, down), (2 * DIM, nn.Identity()))
        )
        self.classifier = nn.Sequential(
            OrderedDict(
                norm=nn.LayerNorm(2 * DIM),
                permute=Permute(0, 3, 1, 2),
                avgpool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(1),
                head=nn.Linear(2 * DIM, 5),
            )
        )

    @staticmethod
    def embeds() -> dict[str, nn.Sequential]:
        return {
            "v1": nn.Sequential(
                nn.Conv2d(3, DIM, kernel_size=4, stride=4), Permute(0, 2, 3, 1), nn.LayerNorm(DIM)
            ),
            "v2": nn.Sequential(
                nn.Conv2d(3, DIM // 2, kernel_size=3, stride=2, padding=1),
                Permute(0, 2, 3, 1),
                nn.LayerNorm(DIM // 2),
                Permute(0, 3, 1, 2),
                nn.GELU(),
                nn.Conv2d(DIM // 2, DIM, kernel_size=3, stride=2, padding=1),
                Permute(0, 2, 3, 1),
                nn.LayerNorm(DIM),
            ),
        }

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        if self.pos_embed is not None:
            x = x + self.pos_embed.permute(0, 2, 3, 1)
        for layer in self.layers:
            x = layer(x)
        return self.classifier(x)


class MambaVision(nn.Module):
    """NVlabs/MambaVision, mambavision/models/mamba_vision.py: no positions at all."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.conv_down = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, DIM, 3, 2, 1))
        self.levels = nn.ModuleList([nn.Identity()])
        self.levels[0].window_size = 8

    def forward(self, x: Tensor) -> Tensor:
        return self.levels[0](self.patch_embed.conv_down(x)).mean((2, 3))


class VMAMBA2(nn.Module):
    """YuHengsss/VSSD, classification/models/mamba2.py: the grid is handed from layer to layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.img_size, self.patch_embed.patches_resolution = (32, 32), [8, 8]
        self.patch_embed.conv1 = nn.Conv2d(3, DIM, 4, 4)
        self.patches_resolution = [8, 8]
        layer = nn.Module()
        layer.input_resolution = (8, 8)
        block = nn.Module()
        block.cpe1 = nn.Conv2d(DIM, DIM, 3, padding=1, groups=DIM)
        layer.blocks = nn.ModuleList([block])
        self.layers = nn.ModuleList([layer])

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed.conv1(x)
        return (x + self.layers[0].blocks[0].cpe1(x)).mean((2, 3))
