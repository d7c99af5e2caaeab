"""A recipe as plain data, and the recipes by name."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from typing import Any

from flexvideo.data.augment import AUGMENTS, Augment, augment_of
from flexvideo.errors import ConfigError
from flexvideo.fields import typed

TOKENS_16X224 = 16 * 14 * 14  # of a clip of 16 frames of 224 px, patch 16


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides what a run computes, but for the model, its policy and the data.

    The learning rates are for 256 clips a step, as in the official script, and are scaled by the mean number
    of clips of the run's steps. By the mean, and not by each step's own number: a step of long or large clips
    holds few of them, and its own scale would all but take out of training the sizes that are seen least.

    Args:
        epochs: passes over the clips, or rounds of `steps`.
        steps: optimiser steps of an epoch; None is one pass over the clips.
        tokens: budget of an optimiser step over all ranks and accumulated batches, class tokens not counted.
        clips: the most clips of a step, over all of them; None is as many as the budget holds.
        specs: draws of sizes for a step, each of which has its part of `tokens`, of `clips` and of the loss.
        accumulate: batches of each rank that make up a step.
        balanced: whether every class is seen equally often.
        lr: highest learning rate, for 256 clips a step.
        warmup_lr: learning rate of the first step, likewise.
        min_lr: where the cosine ends, a step after the last one, likewise.
        warmup_epochs: epochs of linear warm-up.
        weight_decay: of AdamW.
        betas: of AdamW.
        layer_decay: as the official script applies it; see `param_groups`.
        flexed_lr: factor on the learning rate of the parameters that are resampled.
        clip_norm: highest norm of the gradient; None does not clip.
        drop_path: rate of the last block; None keeps the model's.
        augment: what is done to clips.
        ema: decay, a step, of an average of the weights; None keeps none.
        bf16: whether to run forward under bfloat16 autocast.
        shard: whether to spread parameters, gradients and the optimizer's state over the processes of
            torchrun (FSDP2), where every process else holds all of them (DDP).
        seed: of everything that is drawn.
        evaluate_every: epochs between evaluations; the last epoch always ends in one.
        log_every: steps between lines of the log.
        checkpoint_every: steps between checkpoints; every epoch ends in one too.
        keep: checkpoints that are kept, the last ones.

    Raises:
        ConfigError: a value out of range.

    Example:
        >>> TrainConfig.of("paper").lr
        0.001
        >>> TrainConfig.of(TrainConfig(epochs=9).to_config()).epochs
        9
    """

    epochs: int = 12
    steps: int | None = None
    tokens: int = 64 * TOKENS_16X224
    clips: int | None = None
    specs: int = 1
    accumulate: int = 1
    balanced: bool = False
    lr: float = 1e-3
    warmup_lr: float = 1e-6
    min_lr: float = 1e-6
    warmup_epochs: int = 5
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float = 1.0
    flexed_lr: float = 1.0
    clip_norm: float | None = None
    drop_path: float | None = None
    augment: Augment = AUGMENTS["none"]
    ema: float | None = None
    bf16: bool = False
    shard: bool = False
    seed: int = 0
    evaluate_every: int = 1
    log_every: int = 10
    checkpoint_every: int = 500
    keep: int = 2

    def __post_init__(self) -> None:
        counts = ("epochs", "tokens", "specs", "accumulate", "evaluate_every", "log_every")
        for name in (*counts, "checkpoint_every", "keep"):
            self._expect(name, getattr(self, name) >= 1, "at least 1")
        for name in ("steps", "clips"):
            value = getattr(self, name)
            self._expect(name, value is None or value >= 1, "at least 1, or None")
        self._expect(
            "warmup_epochs", 0 <= self.warmup_epochs <= self.epochs, f"from 0 to epochs={self.epochs}"
        )
        for name in ("lr", "warmup_lr", "min_lr", "weight_decay", "flexed_lr"):
            self._expect(name, 0 <= getattr(self, name) < math.inf, "a finite number, at least 0")
        self._expect("betas", all(0 <= beta < 1 for beta in self.betas), "two numbers from 0 to below 1")
        self._expect("layer_decay", 0 < self.layer_decay <= 1, "above 0 and at most 1")
        self._expect("clip_norm", self.clip_norm is None or self.clip_norm > 0, "above 0, or None")
        for name in ("drop_path", "ema"):
            rate = getattr(self, name)
            self._expect(name, rate is None or 0 <= rate < 1, "from 0 to below 1, or None")

    def _expect(self, name: str, holds: bool, what: str) -> None:
        if not holds:
            raise ConfigError(f"TrainConfig: `{name}` must be {what}, got {getattr(self, name)!r}.")

    def to_config(self) -> dict[str, Any]:
        """Return the recipe as JSON data, which `of` turns back into an equal recipe."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def of(cls, config: "str | TrainConfig | Mapping[str, Any]") -> "TrainConfig":
        """Return the recipe that a name, a recipe or the result of `to_config` stands for.

        Args:
            config: a name in `PRESETS`, a recipe, or a mapping of the fields that differ from the default.

        Raises:
            ConfigError: an unknown name or field, or a value that does not fit.
        """
        if isinstance(config, TrainConfig):
            return config
        if isinstance(config, str):
            if config not in PRESETS:
                raise ConfigError(f"Unknown preset {config!r}; known are {', '.join(map(repr, PRESETS))}.")
            return PRESETS[config]
        known = {field.name: field.type for field in fields(cls)}
        unknown = [name for name in config if name not in known]
        if unknown:
            near = {name: found for name in unknown if (found := get_close_matches(name, known, n=1))}
            meant = "".join(f" Did you mean {found[0]!r} by {name!r}?" for name, found in near.items())
            rest = f".{meant}" if meant else f"; its fields are {', '.join(map(repr, known))}."
            raise ConfigError(f"Unknown fields {unknown} of a TrainConfig{rest}")
        plain = {name: value for name, value in config.items() if name != "augment"}
        values = {name: typed("TrainConfig", name, value, known[name]) for name, value in plain.items()}
        return cls(**values, augment=augment_of(config.get("augment", "none")))


# The official ones: 16 GPUs of 16 clips of 16 frames, or 8 GPUs of 8 clips of 32, and two views of each.
_K400 = 16 * 16 * 2 * TOKENS_16X224
_LONG = 8 * 8 * 2 * 2 * TOKENS_16X224

_OFFICIAL = TrainConfig(augment=AUGMENTS["videomamba"], bf16=True)

# The paper trains "exactly the same as a vanilla VideoMamba", with "simple cross-entropy": clips are altered
# as in the official script, and labels are not. What it does not say is as that script has it by default.
_PAPER = TrainConfig(
    drop_path=0.1, augment=replace(AUGMENTS["videomamba"], mixup=0.0, cutmix=0.0, smoothing=0.0), bf16=True
)

PRESETS: dict[str, TrainConfig] = {
    "paper": _PAPER,
    "paper-finetune": replace(_PAPER, epochs=30),
    "videomamba-k400-sup": replace(
        _OFFICIAL, epochs=50, lr=1e-4, layer_decay=0.75, drop_path=0.8, tokens=_K400
    ),
    "videomamba-k400-mask-ft": replace(
        _OFFICIAL, epochs=45, lr=1e-4, layer_decay=0.8, drop_path=0.4, tokens=_K400
    ),
    "videomamba-coin": replace(_OFFICIAL, epochs=30, lr=2e-4, layer_decay=0.8, drop_path=0.4, tokens=_LONG),
    "videomamba-breakfast": replace(
        _OFFICIAL, epochs=45, lr=2e-4, layer_decay=0.8, drop_path=0.4, tokens=_LONG
    ),
    "tiny": TrainConfig(
        epochs=10, steps=60, tokens=32 * 8 * 16, lr=2e-2, warmup_epochs=1, drop_path=0.0, clip_norm=1.0
    ),
}
