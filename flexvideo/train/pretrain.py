"""A start for models of motion: first see where the joints are, then learn what is done.

A VideoMamba of random weights stays at chance for thousands of steps when class labels are all it hears
of. Rendered motion knows the place of every joint in every frame, which is a gradient for every token: a
token learns which joints it covers, the tokens of a frame learn its pose, and the class token learns the
poses of the whole clip.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from flexvideo.data.posed import PosedClips
from flexvideo.data.reader import draw_for
from flexvideo.data.skeleton import JOINTS
from flexvideo.errors import ConfigError, TrainingError
from flexvideo.models import VideoMamba
from flexvideo.resample import resize_clip
from flexvideo.train.checkpoint import Progress, Run, checkpoints, load_checkpoint, save_checkpoint
from flexvideo.train.groups import param_groups
from flexvideo.train.log import Report
from flexvideo.train.output import save_model
from flexvideo.train.schedule import learning_rate

_SPREAD = (0.25, 0.25, 0.3)  # of the places of joints about their means: halves of a frame, metres of depth
_NUMBERS = 3 * len(JOINTS)


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """How a start is made.

    Args:
        steps: optimiser steps.
        batch: clips of a step.
        lr: highest learning rate.
        warmup: steps of its rise.
        weight_decay: of AdamW.
        betas: of AdamW.
        clip_norm: highest norm of the gradient.
        crop: smallest side of a random square crop, as a part of the frame.
        bf16: whether to run forward under bfloat16 autocast.
        seed: of everything that is drawn.
        checkpoint_every: steps between checkpoints.
        log_every: steps between reports.

    Raises:
        ConfigError: a value out of range.
    """

    steps: int = 3000
    batch: int = 64
    lr: float = 6e-3
    warmup: int = 50
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.99)
    clip_norm: float = 1.0
    crop: float = 0.9
    bf16: bool = False
    seed: int = 0
    checkpoint_every: int = 250
    log_every: int = 50

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.checkpoint_every, self.log_every) < 1:
            raise ConfigError("Pretraining: steps, batch, checkpoint_every and log_every must be at least 1.")
        if not 0 < self.crop <= 1:
            raise ConfigError(f"Pretraining: `crop` must be above 0 and at most 1, got {self.crop}.")


class PoseLearner(nn.Module):
    """A model with three linear heads.

    `where` scores each token of a frame as the place of a joint, `frame` tells the pose from the mean of the
    frame's tokens, and `clip` tells the poses of all frames from the class token.

    Args:
        model: plain.
    """

    def __init__(self, model: VideoMamba) -> None:
        super().__init__()
        weight = model.norm_f.weight
        self.model = model
        self.steps = model.config["num_frames"] // model.config["kernel_size"]
        self.where = nn.Linear(model.embed_dim, len(JOINTS), device=weight.device)
        self.frame = nn.Linear(model.embed_dim, _NUMBERS, device=weight.device)
        self.clip = nn.Linear(model.embed_dim, self.steps * _NUMBERS, device=weight.device)

    def forward(
        self, x: Float[Tensor, "b 3 t h w"]
    ) -> tuple[Float[Tensor, "b t2 p 21"], Float[Tensor, "b t2 63"], Float[Tensor, "b t2 63"]]:
        """Scores of every place for every joint, and poses as the frames and as the class token tell them."""
        tokens = self.model.forward_features(x, all_tokens=True)
        frames = tokens[:, 1:].unflatten(1, (self.steps, -1))
        clip = self.clip(tokens[:, 0]).unflatten(1, (self.steps, _NUMBERS))
        return self.where(frames), self.frame(frames.mean(2)), clip

    def no_weight_decay(self) -> set[str]:
        """Names that are not decayed: the model's."""
        return {f"model.{name}" for name in self.model.no_weight_decay()}


def pretrain(
    model: VideoMamba,
    clips: PosedClips,
    *,
    config: Pretraining,
    out: str | Path,
    report: Report | None = None,
    stop: Callable[[], bool] | None = None,
) -> bool:
    """Teach a model to see motion, at its own frame count and size; a run goes on where it was.

    What a step holds depends on seed and step alone. The folder holds checkpoints, and at the end the model
    as `flexvideo.load` reads it; the heads are left behind.

    Args:
        model: plain; changed in place.
        clips: on the device of the model.
        config: the recipe.
        out: folder of the run.
        report: called with records such as {"step": 50, "where": 0.4, "frame": 0.1, "clip": 0.1}.
        stop: asked after every step; when it says True, a checkpoint is written and the training ends.

    Returns:
        Whether all steps are done.

    Raises:
        TrainingError: the loss is not a number any more.
        CheckpointError: a checkpoint of another run, or one that cannot be written.

    Example:
        >>> import tempfile, flexvideo as fv
        >>> from flexvideo.data.motion import MotionSet
        >>> from flexvideo.data.posed import posed_clips
        >>> clips = posed_clips([MotionSet(actions=("bow",), per_class=2)], frames=4, size=16)
        >>> model = fv.VideoMamba(img_size=16, depth=1, embed_dim=16, num_frames=2, num_classes=0)
        >>> pretrain(model, clips, config=Pretraining(steps=2, batch=2, warmup=0), out=tempfile.mkdtemp())
        True
    """
    out = Path(out)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        learner = PoseLearner(model)
    groups = param_groups(learner, weight_decay=config.weight_decay)
    run = Run(learner, torch.optim.AdamW(groups, lr=config.lr, betas=config.betas), None)
    identity = _identity(model, clips, config)
    progress = Progress()
    if found := checkpoints(out):
        progress = load_checkpoint(found[-1], run, identity=identity)
    learner.train()
    for step in range(progress.done, config.steps):
        losses = _take(run, clips, config, step)
        done = step + 1
        stopping = stop is not None and stop()
        if done % config.log_every == 0 or done == config.steps:
            _report(losses, done, report)
        if stopping or done % config.checkpoint_every == 0 or done == config.steps:
            save_checkpoint(out, run, Progress(0, done, done), identity=identity, keep=1)
        if stopping and done < config.steps:
            return False
    save_model(model.eval(), out)
    return True


def _take(run: Run, clips: PosedClips, config: Pretraining, step: int) -> dict[str, Tensor]:
    """One optimiser step."""
    learner: Any = run.model
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(step, steps=config.steps, warmup=config.warmup, peak=config.lr)
    x, poses = draw(clips, learner.model, config, step)
    autocast = torch.autocast(x.device.type, torch.bfloat16) if config.bf16 else nullcontext()
    with autocast:
        where, frame, clip = learner(x)
    losses = {
        "where": F.cross_entropy(where.float().movedim(2, 1), _places(poses, learner.model)),
        "frame": F.mse_loss(frame.float(), poses),
        "clip": F.mse_loss(clip.float(), poses),
    }
    sum(losses.values(), start=x.new_zeros(())).backward()
    nn.utils.clip_grad_norm_(learner.parameters(), config.clip_norm)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    return {name: loss.detach() for name, loss in losses.items()}


def draw(
    clips: PosedClips, model: VideoMamba, config: Pretraining, step: int
) -> tuple[Float[Tensor, "b 3 t h w"], Float[Tensor, "b t2 63"]]:
    """Draw the clips of a step, in one random square crop, and the poses to be learnt from them.

    Args:
        clips: to draw from.
        model: says frame count, size and colours.
        config: seed, batch and crop.
        step: of the training.
    """
    frames, tubelet = model.config["num_frames"], model.config["kernel_size"]
    height, width = model.patch_embed.img_size
    rng = draw_for("pretrain", config.seed, step)
    count, side = clips.videos.shape[1], clips.videos.shape[2]
    rows = torch.tensor([rng.randrange(len(clips)) for _ in range(config.batch)])
    parts = [((n << 16) + rng.getrandbits(16)) * count // (frames << 16) for n in range(frames)]
    kept = max(1, round(side * rng.uniform(config.crop, 1)))
    top, left = rng.randint(0, side - kept), rng.randint(0, side - kept)
    device = clips.videos.device
    where = rows.to(device)[:, None], torch.tensor(parts, device=device)
    seen = clips.videos[where][:, :, top : top + kept, left : left + kept]
    shift, scale = (255 * torch.tensor(each, device=device) for each in (model.mean, model.std))
    x = ((seen.float() - shift) / scale).permute(0, 4, 1, 2, 3)
    centre = torch.tensor([left + kept / 2, top + kept / 2], device=device) * 2 / side - 1
    tracks = clips.tracks[where]
    places = (tracks[..., :2] - centre) * (side / kept)
    poses = torch.cat([places, tracks[..., 2:]], dim=-1) / torch.tensor(_SPREAD, device=device)
    return resize_clip(x, (height, width)), poses.unflatten(1, (-1, tubelet)).mean(2).flatten(2)


def _places(poses: Float[Tensor, "b t2 63"], model: VideoMamba) -> Int64[Tensor, "b t2 21"]:
    """Number of the token that covers each joint; of one outside the frame, the nearest."""
    rows, columns = model.patch_embed.grid_size
    x, y = (poses.unflatten(2, (-1, 3))[..., n] * _SPREAD[n] / 2 + 0.5 for n in (0, 1))
    column = (x * columns).long().clamp(0, columns - 1)
    return (y * rows).long().clamp(0, rows - 1) * columns + column


def _identity(model: VideoMamba, clips: PosedClips, config: Pretraining) -> dict[str, Any]:
    free = ("checkpoint_every", "log_every")
    recipe = {name: value for name, value in vars(config).items() if name not in free}
    return {
        "config": recipe | {"betas": list(config.betas)},
        "model": [sum(parameter.numel() for parameter in model.parameters()), *model.patch_embed.img_size],
        "clips": [*clips.videos.shape, round(float(clips.tracks.double().mean()), 6)],
    }


def _report(losses: dict[str, Tensor], done: int, report: Report | None) -> None:
    """Report losses; here alone does the CPU wait for a GPU."""
    values = {name: float(loss) for name, loss in losses.items()}
    if not all(value < float("inf") for value in values.values()):
        raise TrainingError(
            f"The losses are {values} at step {done}: the pretraining has diverged. Lower the learning rate; "
            "the last checkpoint is from before."
        )
    if report is not None:
        report({"step": done, **values})
