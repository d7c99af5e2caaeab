"""How the two models of the demo are made: a vanilla one, and one of static tokens.

Both begin from one start that has seen where joints are, at vanilla's geometry, and then see the same clips
of the procedural set in as many steps of as many tokens. The two that are shipped and those of `flexvideo
demo --train` differ in numbers alone.
"""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from flexvideo.checkpoints import load
from flexvideo.data.augment import Augment
from flexvideo.data.held import HeldSource
from flexvideo.data.motion import MotionSet
from flexvideo.data.posed import PosedClips, track_clips
from flexvideo.data.source import RenderedSource
from flexvideo.errors import CheckpointWarning
from flexvideo.models import VideoMamba
from flexvideo.policy import StaticTokens
from flexvideo.saving import config_text
from flexvideo.sources import HEADER_KEY
from flexvideo.swap import make_flexible
from flexvideo.train import Pretraining, TrainConfig, Validation, pretrain, replace_head, train
from flexvideo.train.log import Report
from flexvideo.weights import write_safetensors

ARMS = ("vanilla", "static-tokens")
MODEL: dict[str, Any] = {"img_size": 48, "patch_size": 12, "num_frames": 8, "embed_dim": 64, "depth": 4}
POLICY = StaticTokens(frames=(4, 8, 16), sizes=(32, 48, 64, 96))
_FRAMES, _SIZE = 32, 64  # of the clips that are learnt from
_VAL_CLIPS = 10  # of each class
_LICENCE = "apache-2.0"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long the two models learn, and from how much.

    Args:
        clips: of each class.
        start: what both begin from.
        training: of each of them.
    """

    clips: int
    start: Pretraining
    training: TrainConfig


SHIPPED = Recipe(
    clips=120,
    start=Pretraining(steps=1000, batch=32, crop=1.0),
    training=TrainConfig(
        epochs=10,
        steps=100,
        tokens=32 * 8 * 16,
        lr=3e-3 * 256 / 32,
        warmup_epochs=1,
        clip_norm=1.0,
        drop_path=0.0,
        betas=(0.9, 0.99),
        augment=Augment(sampling="random", scale=(0.7, 1.0), ratio=(0.9, 1.1), smoothing=0.05),
    ),
)
QUICK = Recipe(
    clips=60,
    start=replace(SHIPPED.start, steps=300, log_every=10),
    training=replace(SHIPPED.training, epochs=5, steps=60),
)


def draw_clips(
    split: str, per_class: int, *, progress: Callable[[int, int], object] | None = None
) -> HeldSource:
    """Draw the clips that both models learn from, or are measured on while they learn.

    Args:
        split: "train" or "val".
        per_class: clips of each class.
        progress: called with the number of clips drawn, and their total.
    """
    clips = RenderedSource(MotionSet(split, per_class=per_class), split=split)
    return HeldSource(clips, frames=_FRAMES, size=_SIZE, progress=progress)


def train_pair(
    clips: HeldSource,
    recipe: Recipe,
    *,
    out: str | Path,
    watch: Callable[[str], Report],
    stop: Callable[[], bool] | None = None,
) -> dict[str, Path] | None:
    """Make both models; what is done is not done again, and what was stopped goes on.

    Args:
        clips: as many as the recipe says, of `draw_clips`.
        recipe: how long, and from how much.
        out: folder of the start, of the two trainings and, at the end, of the two files.
        watch: called with a line for each of the three parts that begins; gives what is called with its
            records: "step", "steps" and "loss", or top-1 accuracy at the models' own size.
        stop: asked after every step; when it says True, what has been done is saved.

    Returns:
        The files, by name; None when it was stopped.

    Raises:
        CheckpointError: the folder holds a training by another recipe, or cannot be written.
    """
    out = Path(out)
    tracks = track_clips(MotionSet("train", per_class=recipe.clips), frames=_FRAMES)
    if not _train_start(out / "start", PosedClips(clips.videos, tracks), recipe.start, watch, stop):
        return None
    own = MODEL["num_frames"], MODEL["img_size"]
    evaluate = Validation(draw_clips("val", _VAL_CLIPS), [own])
    for name in ARMS:
        model, how = _arm(name, out / "start", clips.classes, recipe.training.seed)
        result = train(
            model,
            clips,
            config=recipe.training,
            out=out / name,
            evaluate=evaluate,
            resume=True,
            report=watch(f"{name}: learns what is done, {how}"),
            stop=stop,
        )
        if not result.finished:
            return None
    return {name: _packed(out, name, recipe) for name in ARMS}


def _train_start(
    out: Path,
    clips: PosedClips,
    config: Pretraining,
    watch: Callable[[str], Report],
    stop: Callable[[], bool] | None,
) -> bool:
    report = watch("start: both models first learn where joints are")

    def told(record: Mapping[str, Any]) -> None:
        report({"loss": record["where"] + record["frame"] + record["clip"], "steps": config.steps, **record})

    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = VideoMamba(**MODEL, num_classes=0, drop_path_rate=0.0, init="mamba")
    return pretrain(model, clips, config=config, out=out, report=told, stop=stop)


def _arm(name: str, start: Path, classes: Sequence[str], seed: int) -> tuple[VideoMamba, str]:
    """A model that begins from the start, and what it is trained at, in words."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)  # it has no head yet
        torch.manual_seed(seed)
        model = replace_head(load(start), classes)
    if name == "vanilla":
        return model, f"always at {MODEL['num_frames']} x {MODEL['img_size']} px"
    return make_flexible(model, policy=POLICY), "at sizes that are drawn for every step"


def _packed(out: Path, name: str, recipe: Recipe) -> Path:
    """Write a model to one file in half precision, which says how it was made."""
    model = load(out / name, dtype=torch.float16)
    made = {"data": "motion:short, train", "frames": _FRAMES, "size": _SIZE, **asdict(recipe)}
    text = json.loads(config_text(model, license=_LICENCE)) | {"made": made}
    path = out / f"{name}.safetensors"
    write_safetensors(path, model.state_dict(), text={HEADER_KEY: json.dumps(text, indent=1)})
    return path
