"""Video transformers: names, shapes, token order, asserts and stored sizes, not their code."""

import torch
from standins.parts import DIM, FRAMES, IMAGE, PATCH, sequence_mix
from torch import Tensor, nn

TOKENS = (IMAGE // PATCH) ** 2


def table(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


class Mixer(nn.Module):
    """In place of attention over the tokens of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.proj = nn.LayerNorm(DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj(sequence_mix(self.norm(x))).tanh()


class FramePatchEmbed(nn.Module):
    """TimeSformer's: frame by frame, and it says how many columns there are."""

    def __init__(self) -> None:
        super().__init__()
        self.img_size, self.patch_size, self.num_patches = (IMAGE, IMAGE), (PATCH, PATCH), TOKENS
        self.proj = nn.Conv2d(3, DIM, PATCH, PATCH)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        frames = x.shape[2]
        x = self.proj(x.transpose(1, 2).flatten(0, 1))
        return x.flatten(2).transpose(1, 2), frames, x.shape[-1]


class DividedBlock(nn.Module):
    """TimeSformer's: (b, 1 + places x frames, d), frames of one place after each other."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_type = "divided_space_time"
        self.temporal_attn, self.attn, self.temporal_fc = Mixer(), Mixer(), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor, batch: int, frames: int, columns: int) -> Tensor:
        cls, rest = x[:, :1], x[:, 1:]
        rows = rest.shape[1] // frames // columns
        rest = rest.reshape(batch, rows, columns, frames, DIM)
        rest = rest + self.temporal_fc(self.temporal_attn(rest.flatten(0, 2)).view_as(rest))
        each = torch.cat(
            (
                cls.expand(-1, frames, -1).reshape(-1, 1, DIM),
                rest.permute(0, 3, 1, 2, 4).reshape(-1, rows * columns, DIM),
            ),
            dim=1,
        )
        each = self.attn(each).unflatten(0, (batch, frames))
        cls = each[:, :, 0].mean(1, keepdim=True)
        rest = each[:, :, 1:].transpose(1, 2).flatten(1, 2)
        return torch.cat((cls, rest), dim=1)


class TimeSformerViT(nn.Module):
    """facebookresearch/TimeSformer, `VisionTransformer`: it resizes to the nearest row."""

    def __init__(self, attention_type: str = "divided_space_time") -> None:
        super().__init__()
        self.attention_type, self.depth, self.num_classes = attention_type, 1, 5
        self.num_features = self.embed_dim = DIM
        self.patch_embed = FramePatchEmbed()
        self.cls_token, self.pos_embed = table(1, 1, DIM), table(1, TOKENS + 1, DIM)
        self.time_embed = table(1, FRAMES, DIM)
        self.blocks = nn.ModuleList([DividedBlock()])
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, 5)
        self.default_cfg = {"input_size": (3, 224, 224)}

    def forward_features(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        x, frames, columns = self.patch_embed(x)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        assert x.shape[1] == self.pos_embed.shape[1], "to be resized to the nearest row"
        x = x + self.pos_embed
        cls, x = x[:batch, :1], x[:, 1:]
        assert frames == self.time_embed.shape[1], "to be resized to the nearest row"
        x = x.unflatten(0, (batch, frames)).transpose(1, 2).flatten(0, 1) + self.time_embed
        x = torch.cat((cls, x.reshape(batch, -1, DIM)), dim=1)
        for block in self.blocks:
            x = block(x, batch, frames, columns)
        return self.norm(x)[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x))


class TimeSformer(nn.Module):
    """The module around it that users build."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained, self.attention_type = True, "divided_space_time"
        self.model, self.num_patches = TimeSformerViT(), TOKENS

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class AdaptedBlock(nn.Module):
    """AIM's: (n, b x t, d), with the frames that it was built for."""

    def __init__(self) -> None:
        super().__init__()
        self.num_frames = FRAMES
        self.temporal, self.spatial = Mixer(), Mixer()

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[0]
        time = x.unflatten(1, (-1, self.num_frames)).permute(1, 0, 2, 3).flatten(0, 1)
        time = self.temporal(time).unflatten(0, (-1, tokens)).transpose(0, 1).flatten(1, 2)
        return self.spatial((x + time).transpose(0, 1)).transpose(0, 1)


class Resblocks(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.width, self.layers = DIM, len(blocks)
        self.resblocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x)


class AIM(nn.Module):
    """taoyang1122/adapt-image-models, `ViT_CLIP`."""

    def __init__(self) -> None:
        super().__init__()
        self.input_resolution, self.num_frames, self.layers = IMAGE, FRAMES, 2
        self.conv1 = nn.Conv2d(3, DIM, PATCH, PATCH, bias=False)
        self.class_embedding, self.positional_embedding = table(DIM), table(TOKENS + 1, DIM)
        self.ln_pre = nn.LayerNorm(DIM)
        self.temporal_embedding = table(1, FRAMES, DIM)
        self.transformer = Resblocks(AdaptedBlock(), AdaptedBlock())
        self.ln_post = nn.LayerNorm(DIM)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, frames = x.shape[:3]
        x = self.conv1(x.transpose(1, 2).flatten(0, 1)).flatten(2).transpose(1, 2)
        x = torch.cat((self.class_embedding.expand(x.shape[0], 1, -1), x), dim=1) + self.positional_embedding
        tokens = x.shape[1]
        x = x.unflatten(0, (-1, self.num_frames)).transpose(1, 2).flatten(0, 1) + self.temporal_embedding
        x = x.unflatten(0, (-1, tokens)).transpose(1, 2).flatten(0, 1)
        x = self.transformer(self.ln_pre(x).transpose(0, 1)).transpose(0, 1)
        x = self.ln_post(x)[:, 0].unflatten(0, (batch, frames)).transpose(1, 2)
        return x[..., None, None]


class LocalBlock(nn.Module):
    """UniFormerV2's: (1 + h w, n t, d), whose rows are the root of its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.lmhra1 = nn.Conv3d(DIM, DIM, 3, padding=1, groups=DIM)
        self.attn = Mixer()

    def forward(self, x: Tensor, steps: int) -> Tensor:
        rest = x[1:]
        side, batch = int(rest.shape[0] ** 0.5), rest.shape[1] // steps
        clip = rest.view(side, side, batch, steps, DIM).permute(2, 4, 3, 0, 1)
        clip = clip + self.lmhra1(clip)
        rest = clip.permute(3, 4, 0, 2, 1).reshape(side * side, batch * steps, DIM)
        return self.attn(torch.cat((x[:1], rest)).transpose(0, 1)).transpose(0, 1)


class GlobalTransformer(nn.Module):
    """UniFormerV2's: the number of steps is fixed."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.T, self.return_list = steps, [0]
        self.resblocks = nn.ModuleList([LocalBlock()])
        self.temporal_cls_token = table(1, 1, DIM)
        self.dpe = nn.ModuleList([nn.Conv3d(DIM, DIM, 3, padding=1, groups=DIM)])
        self.dec, self.proj = nn.ModuleList([Mixer()]), nn.Linear(DIM, 5)

    def forward(self, x: Tensor) -> Tensor:
        length, count, _ = x.shape
        batch, side = count // self.T, int((length - 1) ** 0.5)
        cls = self.temporal_cls_token.expand(batch, -1, -1)
        for index, block in enumerate(self.resblocks):
            x = block(x, self.T)
            y = x.view(length, batch, self.T, DIM)
            features = y[1:].permute(1, 3, 2, 0).reshape(batch, DIM, self.T, side, side)
            features = self.dpe[index](features).flatten(3).permute(3, 0, 2, 1)
            y = torch.cat((y[:1], y[1:] + features)).permute(1, 2, 0, 3).flatten(1, 2)
            cls = self.dec[index](torch.cat((cls, y), dim=1))[:, :1]
        return self.proj(cls[:, 0])


class UniFormerV2(nn.Module):
    """OpenGVLab/UniFormerV2, `VisionTransformer`."""

    def __init__(self, *, temporal_downsample: bool = True) -> None:
        super().__init__()
        self.input_resolution, self.output_dim = IMAGE, 5
        time = (3, 2, 1) if temporal_downsample else (1, 1, 0)
        self.conv1 = nn.Conv3d(
            3, DIM, (time[0], PATCH, PATCH), (time[1], PATCH, PATCH), (time[2], 0, 0), bias=False
        )
        self.class_embedding, self.positional_embedding = table(DIM), table(TOKENS + 1, DIM)
        self.ln_pre = nn.LayerNorm(DIM)
        self.transformer = GlobalTransformer(FRAMES // time[1])

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = x.permute(0, 2, 3, 4, 1).flatten(2, 3).flatten(0, 1)
        x = torch.cat((self.class_embedding.expand(x.shape[0], 1, -1), x), dim=1) + self.positional_embedding
        return self.transformer(self.ln_pre(x).transpose(0, 1))


class TubeletPatchEmbed(nn.Module):
    """VideoMAE's, as CAST has it: it asserts the size of the frame."""

    def __init__(self) -> None:
        super().__init__()
        self.tubelet_size, self.img_size, self.patch_size = 2, (IMAGE, IMAGE), (PATCH, PATCH)
        self.num_patches = TOKENS * FRAMES // 2
        self.proj = nn.Conv3d(3, DIM, (2, PATCH, PATCH), (2, PATCH, PATCH))

    def forward(self, x: Tensor) -> Tensor:
        assert tuple(x.shape[-2:]) == self.img_size, f"{tuple(x.shape[-2:])} is not {self.img_size}"
        return self.proj(x).flatten(2).transpose(1, 2)


class SpaceCross(nn.Module):
    """CAST's tables for space, in every block."""

    def __init__(self) -> None:
        super().__init__()
        self.num_frames = FRAMES
        self.clip_space_pos, self.vmae_space_pos = table(TOKENS, DIM), table(TOKENS, DIM)
        self.mix = Mixer()

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        steps = s.shape[1] // t.shape[0]
        frames = s[1:].transpose(0, 1) + self.clip_space_pos
        clip = t.unflatten(1, (steps, -1)).flatten(0, 1) + self.vmae_space_pos
        return self.mix(torch.cat((frames, clip), dim=1))[:, frames.shape[1] :].reshape(t.shape)


class TimeCross(nn.Module):
    """CAST's tables for time, in every block."""

    def __init__(self) -> None:
        super().__init__()
        self.num_frames = FRAMES
        self.clip_time_pos, self.vmae_time_pos = table(FRAMES // 2, DIM), table(FRAMES // 2, DIM)
        self.mix = Mixer()

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        batch = t.shape[0]
        steps = s.shape[1] // batch
        frames = s[1:].unflatten(1, (batch, steps)).transpose(0, 1).flatten(0, 1) + self.clip_time_pos
        clip = t.unflatten(1, (steps, -1)).transpose(1, 2).flatten(0, 1) + self.vmae_time_pos
        mixed = self.mix(torch.cat((clip, frames), dim=1))[:, steps:]
        rest = mixed.unflatten(0, (batch, -1)).transpose(0, 1).flatten(1, 2)
        return torch.cat((s[:1], rest))


class CastBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.t2s_cross, self.s2t_cross, self.clip_attn = TimeCross(), SpaceCross(), Mixer()

    def forward(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        s, t = s + self.t2s_cross(s, t), t + self.s2t_cross(s, t)
        return self.clip_attn(s.transpose(0, 1)).transpose(0, 1), t


class CAST(nn.Module):
    """KHU-VLL/CAST, `STCrossTransformer`: its joint table is a plain tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes, self.num_frames, self.embed_dim, self.tubelet_size = 5, FRAMES, DIM, 2
        self.patch_embed = TubeletPatchEmbed()
        self.clip_conv1 = nn.Conv2d(3, DIM, PATCH, PATCH, bias=False)
        self.clip_class_embedding, self.clip_positional_embedding = table(DIM), table(TOKENS + 1, DIM)
        self.pos_embed = torch.randn(1, TOKENS * FRAMES // 2, DIM)
        self.blocks = nn.ModuleList([CastBlock(), CastBlock()])
        self.head = nn.Linear(DIM, 5)

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch = x.shape[0]
        s = self.clip_conv1(x[:, :, 1::2].transpose(1, 2).flatten(0, 1)).flatten(2).transpose(1, 2)
        s = torch.cat((self.clip_class_embedding.expand(s.shape[0], 1, -1), s), dim=1)
        s = (s + self.clip_positional_embedding).transpose(0, 1)
        t = self.patch_embed(x)
        t = t + self.pos_embed.expand(batch, -1, -1)
        for block in self.blocks:
            s, t = block(s, t)
        return s.transpose(0, 1).unflatten(0, (batch, -1))[:, :, 0].mean(1), t.mean(1)

    def forward(self, x: Tensor) -> Tensor:
        s, t = self.forward_features(x)
        return self.head(s + t)


class LinearPatchEmbed(nn.Module):
    """EVL's: patches flattened channels first, frames of whole patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_size, self.in_channels = (PATCH, PATCH), 3
        self.proj = nn.Linear(3 * PATCH * PATCH, DIM)

    def forward(self, x: Tensor) -> Tensor:
        (height, width), (batch, channels, rows, columns) = self.patch_size, x.shape
        assert channels == self.in_channels
        assert rows % height == 0
        assert columns % width == 0
        x = x.view(batch, channels, rows // height, height, columns // width, width)
        return self.proj(x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))


class ImageEncoder(nn.Module):
    """EVL's `VisionTransformer2D`."""

    def __init__(self) -> None:
        super().__init__()
        self.return_all_features = True
        self.patch_embed, self.num_patches = LinearPatchEmbed(), TOKENS + 1
        self.cls_token, self.pos_embed = table(DIM), table(TOKENS + 1, DIM)
        self.blocks = nn.ModuleList([Mixer()])

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        x = self.patch_embed(x)
        x = torch.cat((self.cls_token.expand(x.shape[0], 1, -1), x), dim=1) + self.pos_embed
        features = []
        for block in self.blocks:
            x = block(x)
            features.append({"q": x, "k": x.flip(1), "out": x})
        return features


class TemporalCrossAttention(nn.Module):
    """EVL's: relative positions of one grid."""

    def __init__(self) -> None:
        super().__init__()
        rows = columns = IMAGE // PATCH
        self.spatial_size = (rows, columns)
        self.w1 = table((2 * rows - 1) * (2 * columns - 1), DIM)
        self.w2 = table((2 * rows - 1) * (2 * columns - 1), DIM)
        places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        apart = places[:, None] - places + torch.tensor([rows - 1, columns - 1])
        self.idx_tensor = apart[..., 0] * (2 * columns - 1) + apart[..., 1]

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        assert q.shape[2] == self.spatial_size[0] * self.spatial_size[1] + 1
        weights = (q[:, :, 1:] @ k[:, :, 1:].transpose(-1, -2)).softmax(-1)
        found = torch.einsum("ntqk,qkc->ntqc", weights, self.w1[self.idx_tensor] + self.w2[self.idx_tensor])
        return nn.functional.pad(found, (0, 0, 1, 0))


class Decoder(nn.Module):
    def __init__(self, *, cross_attention: bool) -> None:
        super().__init__()
        self.num_layers, self.enable_temporal_cross_attention = 1, cross_attention
        self.decoder_layers = nn.ModuleList([Mixer()])
        self.temporal_pos_embed = nn.ParameterList([table(FRAMES, DIM)])
        if cross_attention:
            self.cross_attention = nn.ModuleList([TemporalCrossAttention()])
        self.cls_token = table(DIM)

    def forward(self, features: list[dict[str, Tensor]]) -> Tensor:
        batch, frames, _, channels = features[0]["out"].shape
        x = self.cls_token.expand(batch, 1, -1)
        for index, layer in enumerate(self.decoder_layers):
            y = features[index]["out"] + self.temporal_pos_embed[index].view(1, frames, 1, channels)
            if self.enable_temporal_cross_attention:
                y = y + self.cross_attention[index](features[index]["q"], features[index]["k"])
            x = layer(torch.cat((x, y.flatten(1, 2)), dim=1))[:, :1]
        return x


class EVL(nn.Module):
    """OpenGVLab/efficient-video-recognition, `EVLTransformer`: a frozen backbone hides in a list."""

    def __init__(self, *, cross_attention: bool = True, frozen: bool = False) -> None:
        super().__init__()
        self.decoder_num_layers = 1
        self.backbone = [ImageEncoder()] if frozen else ImageEncoder()
        self.decoder = Decoder(cross_attention=cross_attention)
        self.proj = nn.Linear(DIM, 5)

    def forward(self, x: Tensor) -> Tensor:
        backbone = self.backbone[0] if isinstance(self.backbone, list) else self.backbone
        batch, frames = x.shape[0], x.shape[2]
        features = backbone(x.transpose(1, 2).flatten(0, 1))
        features = [{k: v.unflatten(0, (batch, frames)) for k, v in each.items()} for each in features]
        return self.proj(self.decoder(features)[:, 0])


class DynamicPositions(nn.Module):
    """UniFormer's block: `pos_embed` is a depthwise convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pos_embed = nn.Conv3d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pos_embed(x)


class StagePatchEmbed(nn.Module):
    def __init__(self, channels: int, time: tuple[int, int, int], patch: int) -> None:
        super().__init__()
        self.img_size, self.patch_size, self.num_patches = (IMAGE, IMAGE), (patch, patch), 64
        self.proj = nn.Conv3d(
            channels, 8, (time[0], patch, patch), (time[1], patch, patch), padding=(time[2], 0, 0)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class UniFormer(nn.Module):
    """Sense-X/UniFormer for video: four stages."""

    def __init__(self) -> None:
        super().__init__()
        for stage in range(1, 5):
            embed = StagePatchEmbed(3, (3, 2, 1), 4) if stage == 1 else StagePatchEmbed(8, (1, 1, 0), 2)
            setattr(self, f"patch_embed{stage}", embed)
            setattr(self, f"blocks{stage}", nn.ModuleList([DynamicPositions(8)]))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        for stage in range(1, 5):
            x = getattr(self, f"blocks{stage}")[0](getattr(self, f"patch_embed{stage}")(x))
        return self.head(x.flatten(2).mean(-1))


class WindowAttention(nn.Module):
    """Video Swin's: a table of relative positions, and the index of pairs in a whole window."""

    def __init__(self) -> None:
        super().__init__()
        self.window_size = (2, 2, 2)
        self.relative_position_bias_table = table(27, 1)
        places = torch.cartesian_prod(*(torch.arange(2),) * 3)
        apart = places[:, None] - places + 1
        self.register_buffer("relative_position_index", apart @ torch.tensor([9, 3, 1]))

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[1]
        bias = self.relative_position_bias_table[self.relative_position_index[:count, :count]].squeeze(-1)
        return (x @ x.transpose(1, 2) + bias).softmax(-1) @ x


class SwinBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.window_size, self.attn = (2, 2, 2), WindowAttention()


class SwinStage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.window_size, self.blocks = (2, 2, 2), nn.ModuleList([SwinBlock()])


class SwinPatchEmbed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_size, self.proj = (2, 4, 4), nn.Conv3d(3, DIM, (2, 4, 4), (2, 4, 4))


class Omnivore(nn.Module):
    """facebookresearch/omnivore, the trunk `SwinTransformer3D`, and Video Swin: one stage of one block."""

    def __init__(self) -> None:
        super().__init__()
        self.window_size, self.patch_size, self.num_layers = (2, 2, 2), (2, 4, 4), 1
        self.patch_embed, self.layers = SwinPatchEmbed(), nn.ModuleList([SwinStage()])

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed.proj(x)
        x = x.unfold(2, 2, 2).unfold(3, 2, 2).unfold(4, 2, 2).flatten(5).permute(0, 2, 3, 4, 5, 1)
        return self.layers[0].blocks[0].attn(x.flatten(0, 3)).mean((0, 1))[None]
