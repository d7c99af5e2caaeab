"""A run before its first step: data, optimizer, identity, and the place it goes on from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flexvideo.active import flex_within
from flexvideo.data.loader import FlexLoader
from flexvideo.data.source import ClipSource
from flexvideo.discover import plan_for
from flexvideo.errors import ConfigError, TrainingError
from flexvideo.geometry import Base
from flexvideo.models import VideoMamba
from flexvideo.output import require_folder
from flexvideo.policy import Policy, Temporal, policy_of
from flexvideo.train.checkpoint import Progress, Run, checkpoints, load_checkpoint, remove_parts
from flexvideo.train.config import TrainConfig
from flexvideo.train.distributed import any_of, rank_and_world, summed
from flexvideo.train.ema import Ema
from flexvideo.train.groups import param_groups
from flexvideo.train.identity import defaults, identity
from flexvideo.train.log import read_log
from flexvideo.train.output import WEIGHTS
from flexvideo.train.schedule import learning_rate
from flexvideo.train.start import set_drop_path
from flexvideo.train.validation import normalisation

REFERENCE_CLIPS = 256  # of a step, that the learning rate of a recipe is for


class Training:
    """One run, and where it stands; the arguments are those of `train`.

    Raises:
        ConfigError: a model or a policy that does not fit the data, or one that cannot be sharded.
    """

    def __init__(
        self,
        model: nn.Module,
        source: ClipSource,
        *,
        config: TrainConfig,
        out: Path,
        policy: Policy | str | Mapping[str, Any] | None,
        workers: int,
    ) -> None:
        if config.drop_path is not None:
            set_drop_path(model, config.drop_path)
        if isinstance(model, VideoMamba):
            model.labels = source.classes if model.num_classes == len(source.classes) else None
        self.model, self.config, self.out = model, config, out
        self.device = next(model.parameters()).device
        self.rank, self.world = rank_and_world()
        base, drawn = sampling_of(model, policy)
        self.identity = identity(model, source, policy=drawn, config=config, world=self.world)
        settings: dict[str, Any] = {**drawing(config), **normalisation(model)}
        self.loader = FlexLoader(
            source,
            policy=drawn,
            base=base,
            rank=self.rank,
            world=self.world,
            workers=workers,
            device=self.device,
            pin_memory=self.device.type == "cuda",
            **settings,
        )
        sharding = None
        if config.shard:
            from flexvideo.train.sharding import Sharding

            sharding = Sharding(model)
        groups = param_groups(
            model,
            weight_decay=config.weight_decay,
            layer_decay=config.layer_decay,
            flexed_lr=config.flexed_lr,
        )
        # One call for all parameters, each of which else costs distributed tensors many slow ones.
        fused = True if config.shard else None
        optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)
        ema = None if config.ema is None else Ema(model, decay=config.ema)
        self.state = Run(model, optimizer, ema, sharding)
        self.progress = Progress()
        self.classes = len(source.classes)
        self.steps = self.loader.total_steps(config.epochs)
        self.scale = self.loader.summary(config.epochs).total() / self.steps / REFERENCE_CLIPS

    def place(self, *, resume: bool) -> None:
        """Go to the beginning of the run, or to its last checkpoint."""
        require_folder(self.out)
        found = checkpoints(self.out)
        if not found and (self.out / WEIGHTS).exists():
            raise TrainingError(
                f"{self.out} holds a model, which a new run would write over, and no checkpoint to go on "
                "from: choose another folder (--start begins with its weights)."
            )
        if not resume and (found or read_log(self.out)):
            raise TrainingError(
                f"{self.out} holds a run already: resume it (--resume), or choose another folder."
            )
        if found:
            self.progress = load_checkpoint(
                found[-1], self.state, identity=self.identity, defaults=defaults(self.identity)
            )
        done = self.progress.done  # nobody writes before everybody has looked
        if any_of(summed(torch.tensor([float(done)])).item() != self.world * done):
            raise TrainingError(
                f"The processes do not find the same checkpoints in {self.out}: give a folder that all "
                "machines share."
            )
        if self.rank == 0:
            remove_parts(self.out)

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from the beginning of the run."""
        config, scale = self.config, self.scale
        return learning_rate(
            step,
            steps=self.steps,
            warmup=self.loader.total_steps(config.warmup_epochs),
            peak=scale * config.lr,
            first=scale * config.warmup_lr,
            last=scale * config.min_lr,
        )


def drawing(config: TrainConfig) -> dict[str, Any]:
    """Arguments of the loader that the recipe decides.

    Args:
        config: the recipe.

    Example:
        >>> drawing(TrainConfig(tokens=99))["tokens"]
        99
    """
    names = ("tokens", "clips", "specs", "steps", "seed", "accumulate", "augment", "balanced")
    return {name: getattr(config, name) for name in names}


def sampling_of(model: nn.Module, policy: Policy | str | Mapping[str, Any] | None) -> tuple[Base, Policy]:
    """Return the sizes that a model was built for, and what its training draws from.

    Args:
        model: a plain one is trained at its own size.
        policy: None is the model's own.

    Raises:
        ConfigError: a policy for a plain model, or a plain model without a number of frames.
    """
    flex = flex_within(model)
    if flex is not None:
        return flex.plan.base, flex.policy if policy is None else policy_of(policy)
    base = plan_for(model).base
    if policy is not None or base.frames is None:
        raise ConfigError(
            f"{type(model).__name__} is not flexible, and trains at its own frame count and size alone; call "
            "make_flexible(model) first to train it at others."
        )
    return base, Temporal(frames=(base.frames,))
