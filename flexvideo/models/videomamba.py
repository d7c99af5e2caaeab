"""VideoMamba: the official video model, on any machine, with the official parameter names.

Shapes: B batch, C channels, T frames, H x W pixels; D width; L = 1 + T' * h * w tokens, class token first.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flexvideo.devices import products_dtype
from flexvideo.errors import GeometryError, UnsupportedModelError
from flexvideo.models.arguments import check_arguments, pair_of
from flexvideo.models.drop import kept
from flexvideo.models.hub_mixin import HubMixin
from flexvideo.models.mixer import BiMamba, bare
from flexvideo.patch import PatchConv3d
from flexvideo.scan import Normed, accumulation_dtype


class PatchEmbed(nn.Module):
    """Cut a clip into patches and embed each; the sizes are kept for reference and not enforced.

    Args:
        img_size: (height, width) of the frames.
        patch_size: (height, width) of a patch.
        tubelet_size: frames in a patch.
        channels: channels of the clip.
        embed_dim: width of the tokens.
        device: as in torch.
        dtype: as in torch.
    """

    def __init__(
        self,
        *,
        img_size: tuple[int, int],
        patch_size: tuple[int, int],
        tubelet_size: int,
        channels: int,
        embed_dim: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.img_size, self.patch_size, self.tubelet_size = img_size, patch_size, tubelet_size
        self.grid_size = (img_size[0] // patch_size[0], img_size[1] // patch_size[1])
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.proj = PatchConv3d(channels, embed_dim, (tubelet_size, *patch_size), device=device, dtype=dtype)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t2 h2 w2"]:
        """Embedded patches, still as a video."""
        return self.proj(x)


class DropPath(nn.Module):
    """Drop the whole tensor of a sample with the given probability in training, and scale up what stays.

    What is dropped is drawn from torch's generator, or depends on `keys`, one a sample, while they are set.
    """

    keys: Int64[Tensor, " b"] | None = None

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """The tensor, with whole samples dropped in training."""
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        if self.keys is None:
            return x * (x.new_empty(x.shape[0], 1, 1).bernoulli_(keep) / keep)
        return x * (kept(self.keys, rate=self.rate).to(x.dtype)[:, None, None] / keep)

    def extra_repr(self) -> str:
        """The rate."""
        return f"rate={self.rate}"


class RMSNorm(nn.RMSNorm):
    """RMS normalisation worked in the (wider) dtype of its input; the result has the dtype of the weight."""

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Normalise the last dimension."""
        weight = self.weight.to(x.dtype)
        return F.rms_norm(x, self.normalized_shape, weight, self.eps).to(self.weight.dtype)


class Block(nn.Module):
    """Add, then normalise, then mix: takes and returns the output of a mixer and the float32 residual.

    `drop_path` acts on the incoming output, that is, on the mixer of the block before.
    """

    def __init__(
        self,
        dim: int,
        *,
        drop_path: float,
        norm_epsilon: float,
        scan_backend: str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.mixer = BiMamba(dim, scan_backend=scan_backend, device=device, dtype=dtype)
        self.norm = RMSNorm(dim, eps=norm_epsilon, device=device, dtype=dtype)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        hidden: Float[Tensor, "b l d"],
        residual: Float[Tensor, "b l d"] | None = None,
        use_checkpoint: bool = False,
        *,
        first: bool = False,
    ) -> tuple[Float[Tensor, "b l2 d"], Float[Tensor, "b l d"]]:
        """One block; the first one has no residual yet.

        Args:
            hidden: output of the mixer before, or the embedded tokens.
            residual: what this block adds to.
            use_checkpoint: run the mixer again in the backward pass.
            first: mix the first token alone, where nothing is attached that would see the others missing.
        """
        added = hidden if residual is None else self.drop_path(hidden)
        total, normed, source = self._normed(added, residual)
        # only what it needs: mixers of other classes take tokens alone
        arguments = (normed,) if source is None else (normed, source)
        mixer = self.mixer
        if first and _own(mixer) and bare(mixer, type(mixer)) and bare(self, type(self)):
            mixer = functools.partial(mixer, first=True)
        if use_checkpoint:
            return checkpoint(mixer, *arguments, use_reentrant=False), total
        return mixer(*arguments), total

    def _normed(
        self, added: Float[Tensor, "b l d"], residual: Float[Tensor, "b l d"] | None
    ) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b l d"], Normed | None]:
        """The new residual, it normalised, and what the mixer may find this again from."""
        norm, mixer = self.norm, self.mixer
        plain = bare(norm, RMSNorm) and norm.weight is not None and norm.eps is not None
        fused = mixer.fused(added) if plain and _own(mixer) else None
        if fused is None:
            total = added.to(accumulation_dtype(added)) if residual is None else residual + added
            return total, norm(total), None
        weight, eps = norm.weight, cast(float, norm.eps)
        total, normed = fused.add_norm(added, residual, weight, eps, products_dtype(weight))
        # a hook may change what the mixer gets, which is then not what the norm gave
        return total, normed, Normed(total, weight, eps) if bare(mixer, type(mixer)) else None


def _own(mixer: nn.Module) -> bool:
    """Whether a mixer runs as ours do."""
    return type(mixer).forward is BiMamba.forward


class VideoMamba(nn.Module, HubMixin):
    """VideoMamba for video: patch embedding, class token, a stack of bidirectional Mamba blocks, a head.

    Forward, backward, initialisation and state-dict keys are those of the official implementation, but for
    what is left out: options that no released model uses.

    Args:
        img_size: side of the frames in pixels, or (height, width).
        patch_size: side of a patch in pixels, or (height, width).
        depth: number of blocks.
        embed_dim: width of the tokens.
        channels: channels of the clip.
        num_classes: outputs of the head; 0 for none: `forward` then returns the features.
        drop_rate: dropout of the embedded tokens.
        drop_path_rate: drop-path rate of the last mixer; it grows linearly with depth.
        norm_epsilon: epsilon of the normalisations.
        kernel_size: frames in a patch (tubelet).
        num_frames: frames of a clip.
        fc_drop_rate: dropout before the head.
        init: "official" draws every linear layer anew, step sizes included, as the official code does;
            "mamba" keeps the mixers as Mamba draws them.
        scan_backend: "auto" or a name of `flexvideo.scan.available_backends()`.
        use_checkpoint: recompute mixers in the backward pass instead of keeping their activations.
        checkpoint_num: how many of the first blocks `use_checkpoint` applies to.
        device: as in torch.
        dtype: as in torch.

    Raises:
        ConfigError: an unknown `init` or `scan_backend`, a number out of range, sizes of which no patch fits,
            or frames that `kernel_size` does not divide.

    Example:
        >>> import torch
        >>> from flexvideo import VideoMamba
        >>> model = VideoMamba(img_size=32, depth=1, embed_dim=16, num_classes=5, num_frames=2)
        >>> model(torch.zeros(1, 3, 2, 32, 32)).shape
        torch.Size([1, 5])

    Source: VideoMamba (arXiv 2403.06977).
    """

    def __init__(
        self,
        *,
        img_size: int | Sequence[int] = 224,
        patch_size: int | Sequence[int] = 16,
        depth: int = 24,
        embed_dim: int = 192,
        channels: int = 3,
        num_classes: int = 1000,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        norm_epsilon: float = 1e-5,
        kernel_size: int = 1,
        num_frames: int = 8,
        fc_drop_rate: float = 0.0,
        init: Literal["official", "mamba"] = "official",
        scan_backend: str = "auto",
        use_checkpoint: bool = False,
        checkpoint_num: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        arguments = dict(locals())  # a copy: Python 3.12 changes what it iterates over while it is traced
        for other in ("self", "device", "dtype", "__class__"):
            del arguments[other]
        super().__init__()
        self.config: dict[str, Any] = arguments
        check_arguments(arguments, dtype)
        like = {"device": device, "dtype": dtype}
        self.num_classes, self.embed_dim = num_classes, embed_dim
        self.use_checkpoint, self.checkpoint_num = use_checkpoint, checkpoint_num
        self.patch_embed = PatchEmbed(
            img_size=pair_of(img_size, "img_size"),
            patch_size=pair_of(patch_size, "patch_size"),
            tubelet_size=kernel_size,
            channels=channels,
            embed_dim=embed_dim,
            **like,
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim, **like))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches + 1, embed_dim, **like))
        self.temporal_pos_embedding = nn.Parameter(
            torch.zeros(1, num_frames // kernel_size, embed_dim, **like)
        )
        self.pos_drop = nn.Dropout(drop_rate)
        # the first block has nothing to drop, and the last mixer is dropped before the final norm
        rates = [0.0, *torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()]
        self.layers = nn.ModuleList(
            Block(embed_dim, drop_path=rate, norm_epsilon=norm_epsilon, scan_backend=scan_backend, **like)
            for rate in rates[:depth]
        )
        self.drop_path = DropPath(drop_path_rate)
        self.norm_f = RMSNorm(embed_dim, eps=norm_epsilon, **like)
        self.head_drop = nn.Dropout(fc_drop_rate)
        self.head = nn.Linear(embed_dim, num_classes, **like) if num_classes else nn.Identity()
        init_weights(self, mixers=init == "official")

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b k"]:
        """Class scores of a clip.

        Args:
            x: normalised clip.

        Raises:
            GeometryError: a clip of another size, number of channels or dtype than the model's.
        """
        return self.head(self.head_drop(self.forward_features(x)))

    def forward_features(
        self, x: Float[Tensor, "b c t h w"], *, all_tokens: bool = False
    ) -> Float[Tensor, "b d"] | Float[Tensor, "b l d"]:
        """The class token after the last norm, or with `all_tokens` every token, class token first.

        Args:
            x: normalised clip.
            all_tokens: return (B, 1 + T' * h * w, D) instead of (B, D).

        Raises:
            GeometryError: a clip of another size, number of channels or dtype than the model's.
        """
        hidden: Tensor = self.embed(x)
        residual: Tensor | None = None
        for index, layer in enumerate(self.layers):
            again = self.use_checkpoint and index < self.checkpoint_num
            last = not all_tokens and index == len(self.layers) - 1
            options = {"first": True} if last and isinstance(layer, Block) else {}
            hidden, residual = layer(hidden, residual, use_checkpoint=again, **options)
        assert residual is not None  # there is at least one block
        hidden = self.drop_path(hidden)
        if all_tokens:
            return self.norm_f(residual + hidden)
        return self.norm_f(residual[:, 0] + hidden[:, 0])

    def embed(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b l d"]:
        """Tokens with their embeddings, class token first: the input of the first block.

        The class token gets its row of the spatial table and no temporal embedding.
        """
        self._check_clip(x)
        patches = self.patch_embed(x)
        # each read resamples a table of a flexible model
        space, time = self.pos_embed, self.temporal_pos_embedding
        self._check_tables(x, patches, rows=(time.shape[1], space.shape[1] - 1))
        tokens = patches.flatten(3).permute(0, 2, 3, 1)  # (B, T', h * w, D)
        tokens = tokens + (space[:, 1:] + time[:, :, None])  # one pass over the batch
        cls = (self.cls_token + space[:, :1]).expand(x.shape[0], -1, -1)
        return self.pos_drop(torch.cat((cls, tokens.flatten(1, 2)), dim=1))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that the official recipe does not decay."""
        return {"pos_embed", "cls_token", "temporal_pos_embedding"}

    def get_num_layers(self) -> int:
        """Number of blocks."""
        return len(self.layers)

    def _check_clip(self, x: Tensor) -> None:
        channels = self.patch_embed.proj.in_channels
        if x.ndim == 5 and x.shape[1] == channels:
            return
        raise GeometryError(
            f"This {type(self).__name__} takes clips of shape (batch, {channels} channels, frames, height, "
            f"width), and got {tuple(x.shape)}: bring the dimensions into this order, one clip as a batch of "
            "one."
        )

    def _check_tables(self, x: Tensor, patches: Tensor, rows: tuple[int, int]) -> None:
        steps, *grid = patches.shape[2:]
        embed = self.patch_embed
        if tuple(grid) == embed.grid_size and rows == (steps, grid[0] * grid[1]):
            return
        if "_flex" in vars(self):  # whose tables are at the geometry of the clip
            raise UnsupportedModelError(
                f"`patch_embed.proj` of this {type(self).__name__} is a {type(embed.proj).__name__}, which "
                "does not follow the clip: it was replaced after make_flexible. restore(model), replace it, "
                "and make that model flexible."
            )
        raise GeometryError(
            f"This {type(self).__name__} runs clips of {_times(self.config['num_frames'], *embed.img_size)} "
            f"(frames, height, width), and got {_times(*x.shape[2:])}; "
            "flexvideo.make_flexible(model) runs any size."
        )


def init_weights(model: VideoMamba, *, mixers: bool) -> None:
    """Initialise as the official code: truncated normal weights, out-projections scaled down with depth.

    Args:
        model: model to initialise in place.
        mixers: draw the linear layers of the mixers anew, which overwrites Mamba's own step sizes.
    """
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        if name.endswith("out_proj"):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            with torch.no_grad():
                module.weight /= math.sqrt(len(model.layers))
        elif mixers or not name.startswith("layers."):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(model.pos_embed, std=0.02)


def _times(*sizes: int) -> str:
    return " x ".join(str(size) for size in sizes)
