"""Vim and what grew out of it: names, shapes, token order, asserts and stored sizes, not their code."""

import math

import torch
from standins.parts import (
    DIM,
    FRAMES,
    IMAGE,
    PATCH,
    Block,
    PaddingPatchEmbed,
    PatchEmbed,
    Rotary,
    sequence_mix,
)
from torch import Tensor, nn


class Tail(nn.Module):
    """The blocks, the last norm and the head that all of them end with."""

    def build_tail(self, blocks: list[nn.Module]) -> None:
        self.layers = nn.ModuleList(blocks)
        self.norm_f = nn.LayerNorm(DIM)
        self.head = nn.Linear(DIM, 5)

    def run(self, x: Tensor) -> Tensor:
        residual = None
        for layer in self.layers:
            x, residual = layer(x, residual)
        return self.norm_f(residual + x)


class Vim(Tail):
    """hustvl/Vim, vim/models_mamba.py."""

    def __init__(
        self,
        img_size: int = IMAGE,
        patch_size: int = PATCH,
        stride: int = PATCH,
        *,
        if_cls_token: bool = True,
        use_double_cls_token: bool = False,
        use_middle_cls_token: bool = True,
        if_abs_pos_embed: bool = True,
        if_rope: bool = False,
    ) -> None:
        super().__init__()
        self.if_cls_token, self.if_abs_pos_embed, self.if_rope = if_cls_token, if_abs_pos_embed, if_rope
        self.use_double_cls_token, self.use_middle_cls_token = use_double_cls_token, use_middle_cls_token
        self.final_pool_type = "mean"
        self.num_tokens = 1 if if_cls_token else 0
        self.patch_embed = PatchEmbed(img_size, patch_size, stride)
        if if_cls_token and use_double_cls_token:
            self.cls_token_head = nn.Parameter(torch.randn(1, 1, DIM))
            self.cls_token_tail = nn.Parameter(torch.randn(1, 1, DIM))
            self.num_tokens = 2
        elif if_cls_token:
            self.cls_token = nn.Parameter(torch.randn(1, 1, DIM))
        if if_abs_pos_embed:
            self.pos_embed = nn.Parameter(torch.randn(1, self.patch_embed.num_patches + self.num_tokens, DIM))
        if if_rope:
            self.rope = Rotary(DIM // 2, pt_seq_len=4, ft_seq_len=img_size // patch_size)
        self.build_tail([Block(), Block()])

    def forward_features(self, x: Tensor, inference_params: object = None) -> Tensor:
        x = self.patch_embed(x)
        batch, count, _ = x.shape
        places: list[int] = []
        if self.if_cls_token and self.use_double_cls_token:
            head, tail = self.cls_token_head.expand(batch, -1, -1), self.cls_token_tail.expand(batch, -1, -1)
            x, places = torch.cat((head, x, tail), dim=1), [0, count + 1]
        elif self.if_cls_token:
            at = count // 2 if self.use_middle_cls_token else 0
            cls = self.cls_token.expand(batch, -1, -1)
            x, places = torch.cat((x[:, :at], cls, x[:, at:]), dim=1), [at]
        if self.if_abs_pos_embed:
            x = x + self.pos_embed
        if self.if_rope:
            x = self.rope(x)
        x = self.run(x)
        return x[:, places].mean(1) if places else x.mean(1)

    def forward(self, x: Tensor, return_features: bool = False, inference_params: object = None) -> Tensor:
        x = self.forward_features(x, inference_params)
        return x if return_features else self.head(x)


class ViViM(Tail):
    """OpenGVLab/video-mamba-suite, action-recognition/models/vivim.py."""

    def __init__(self, num_frames: int = FRAMES, *, frame_mid_cls_token: bool = True) -> None:
        super().__init__()
        self.if_cls_token = self.if_abs_pos_embed = self.use_middle_cls_token = True
        self.use_double_cls_token, self.frame_mid_cls_token = False, frame_mid_cls_token
        self.num_tokens = 1
        self.patch_embed = PatchEmbed(IMAGE, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.randn(1, 1, DIM))
        self.pos_embed = nn.Parameter(torch.randn(1, self.patch_embed.num_patches + 1, DIM))
        if num_frames > 1:
            self.temporal_embedding = nn.Parameter(torch.randn(num_frames, 1, DIM))
        else:
            self.temporal_embedding = None
        self.build_tail([Block(), Block()])

    def forward_features(self, x: Tensor, inference_params: object = None) -> Tensor:
        batch, frames = x.shape[0], x.shape[2]
        x = self.patch_embed(x.transpose(1, 2).flatten(0, 1))
        count = x.shape[1]
        at = count // 2
        if self.frame_mid_cls_token:
            cls = self.cls_token.expand(batch * frames, -1, -1)
            x = torch.cat((x[:, :at], cls, x[:, at:]), dim=1) + self.pos_embed
            x = x.reshape(batch, frames, count + 1, -1)
            if self.temporal_embedding is not None:
                x = x + self.temporal_embedding.unsqueeze(0)
            places = torch.arange(at, frames * (count + 1), count + 1)
            return self.run(x.flatten(1, 2))[:, places].mean(1)
        cls = (self.cls_token + self.pos_embed[:, at : at + 1]).expand(batch, -1, -1)
        table = torch.cat((self.pos_embed[:, :at], self.pos_embed[:, at + 1 :]), dim=1)
        table = table.unsqueeze(1) + self.temporal_embedding.unsqueeze(0)
        x = (x.reshape(batch, frames, count, -1) + table).flatten(1, 2)
        middle = x.shape[1] // 2
        return self.run(torch.cat((x[:, :middle], cls, x[:, middle:]), dim=1))[:, middle]

    def forward(self, x: Tensor, return_features: bool = False, inference_params: object = None) -> Tensor:
        x = self.forward_features(x, inference_params)
        return x if return_features else self.head(x)


class MambaReg(Tail):
    """wangf3014/Mamba-Reg, models_mamba.py: registers spread over the sequence."""

    def __init__(self, num_cls_tokens: int = 3) -> None:
        super().__init__()
        self.num_cls_tokens, self.cls_reduce = num_cls_tokens, 1
        self.patch_embed = PatchEmbed(IMAGE, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.randn(1, num_cls_tokens, DIM))
        self.pos_embed_cls = nn.Parameter(torch.randn(1, num_cls_tokens, DIM))
        self.token_idx, self.cls_positions = self.spread(self.patch_embed.num_patches, num_cls_tokens)
        self.pos_embed = nn.Parameter(torch.randn(1, self.patch_embed.num_patches, DIM))
        self.build_tail([Block(), Block()])
        self.head = nn.Linear(DIM * num_cls_tokens, 5)

    @staticmethod
    def spread(tokens: int, registers: int) -> tuple[Tensor, Tensor]:
        apart, order, places = tokens // (registers + 1), [], []
        for register in range(registers):
            order += [*range(register * apart, (register + 1) * apart), tokens + register]
            places.append(len(order) - 1)
        return torch.tensor([*order, *range(registers * apart, tokens)]), torch.tensor(places)

    def forward_features(self, x: Tensor, inference_params: object = None) -> Tensor:
        x = self.patch_embed(x) + self.pos_embed
        cls = self.cls_token.expand(x.shape[0], -1, -1) + self.pos_embed_cls
        x = torch.cat([x, cls], dim=1)[:, self.token_idx]
        return self.run(x)[:, self.cls_positions].flatten(1)

    def forward(self, x: Tensor, return_features: bool = False, inference_params: object = None) -> Tensor:
        x = self.forward_features(x, inference_params)
        return x if return_features else self.head(x)


class MultiScan(nn.Module):
    def __init__(self, token_size: tuple[int, int]) -> None:
        super().__init__()
        self.token_size = token_size
        self.choices = ("h", "v")

    def scan(self, x: Tensor) -> Tensor:
        """The tokens in order of columns."""
        return x.unflatten(1, self.token_size).transpose(1, 2).flatten(1, 2)

    def reverse(self, x: Tensor) -> Tensor:
        rows, columns = self.token_size
        return x.unflatten(1, (columns, rows)).transpose(1, 2).flatten(1, 2)


class MultiMamba(nn.Module):
    def __init__(self, token_size: tuple[int, int]) -> None:
        super().__init__()
        self.token_size = token_size
        self.in_proj = nn.Linear(DIM, DIM)
        self.multi_scan = MultiScan(token_size)

    def forward(self, hidden_states: Tensor, inference_params: object = None) -> Tensor:
        x = self.in_proj(hidden_states)
        return sequence_mix(x) + self.multi_scan.reverse(self.multi_scan.scan(x).cumsum(1) / x.shape[1])


class LocalBlock(Block):
    def __init__(self, token_size: tuple[int, int]) -> None:
        super().__init__()
        self.mixer = MultiMamba(token_size)

    def forward(
        self, hidden_states: Tensor, residual: Tensor | None = None, inference_params: object = None
    ) -> tuple[Tensor, Tensor]:
        residual = hidden_states if residual is None else residual + hidden_states
        return self.mixer(self.norm(residual)).tanh(), residual


class LocalRotary(Rotary):
    """LocalMamba's, which is told whether there is a class token."""

    has_cls_token = staticmethod(lambda t: False)


class LocalVim(Tail):
    """hunto/LocalMamba, classification/lib/models/local_vim.py: it writes the grid into its blocks."""

    def __init__(self, *, if_rope: bool = True, if_abs_pos_embed: bool = True) -> None:
        super().__init__()
        self.if_abs_pos_embed, self.if_rope, self.if_cls_token = if_abs_pos_embed, if_rope, False
        self.final_pool_type = "mean"
        self.num_tokens = 0
        self.patch_size = PATCH
        self.patch_embed = PaddingPatchEmbed(IMAGE, PATCH)
        self.token_size = self.patch_embed.grid_size
        if if_abs_pos_embed:
            self.pos_embed = nn.Parameter(torch.randn(1, self.patch_embed.num_patches, DIM))
        if if_rope:
            self.rope = LocalRotary(DIM // 2, pt_seq_len=4, ft_seq_len=IMAGE // PATCH)
        self.build_tail([LocalBlock(self.token_size), LocalBlock(self.token_size)])

    def forward_features(self, x: Tensor, inference_params: object = None) -> Tensor:
        height, width = x.shape[2:]
        x = self.patch_embed(x)
        if self.if_abs_pos_embed:
            rows, columns = math.ceil(height / self.patch_size), math.ceil(width / self.patch_size)
            for layer in self.layers:
                layer.mixer.multi_scan.token_size = (rows, columns)
            if (rows, columns) != tuple(self.token_size):
                raise AttributeError("'VisionMamba' object has no attribute 'resize_pos_embed'")
            x = x + self.pos_embed
        if self.if_rope:
            x = self.rope(x)
        return self.run(x).mean(1)

    def forward(self, x: Tensor, return_features: bool = False, inference_params: object = None) -> Tensor:
        x = self.forward_features(x, inference_params)
        return x if return_features else self.head(x)
