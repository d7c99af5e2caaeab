"""A training that takes a second: clips of noise around a picture for each class, a model of two blocks."""

from dataclasses import replace
from pathlib import Path

import torch
from small import build
from torch import nn

import flexvideo as fv
from flexvideo.cli import main
from flexvideo.data.augment import AUGMENTS
from flexvideo.data.source import ClipSource
from flexvideo.train import TrainConfig, TrainResult, train

CONFIG = TrainConfig(
    epochs=2,
    tokens=8 * 2 * 3 * 4,
    lr=0.1,
    warmup_epochs=1,
    clip_norm=1.0,
    drop_path=0.5,
    augment=AUGMENTS["videomamba"],
    ema=0.9,
    log_every=1,
    checkpoint_every=1,
)
POLICY = fv.StaticTokens(frames=(2, 3), sizes=(16, 24))
# of the command
TINY = ["--frames", "2", "3", "--sizes", "16", "24", "--tokens", "192", "--steps", "2", "--device", "cpu"]
ONCE = ["--epochs", "1", "--workers", "0", "--val-split", "none", "--hold", "4x24"]


class ToySource(ClipSource):
    """Noise around one picture a class; of a size of its own."""

    flip_ok = True

    def __init__(self, name: str = "toys", *, clips: int = 20, classes: int = 3):
        super().__init__()
        self.name, self.classes = name, tuple(f"toy {number}" for number in range(classes))
        self._labels = tuple(number % classes for number in range(clips))

    @property
    def labels(self):
        return self._labels

    def identify(self, index):
        return f"{self.name} {index}"

    def take(self, index, choose, size):
        noise = torch.Generator().manual_seed(100 + index)
        picture = torch.rand(24, 32, 3, generator=torch.Generator().manual_seed(self.labels[index]))
        video = 0.7 * picture + 0.3 * torch.rand(10, 24, 32, 3, generator=noise)
        return (255 * video[choose(len(video))]).to(torch.uint8)


def toy_model(*, classes: int = 3, **arguments) -> nn.Module:
    settings = {"img_size": 16, "patch_size": 8, "depth": 2, "embed_dim": 16, "num_frames": 2}
    model = build(num_classes=classes, **(settings | arguments))
    return fv.make_flexible(model, policy=POLICY)


def toy_train(out: Path, *, resume: bool = False, config: TrainConfig = CONFIG, **changes) -> TrainResult:
    torch.set_num_threads(1)
    model, source = changes.pop("model", None) or toy_model(), changes.pop("source", None) or ToySource()
    return train(model, source, config=config, out=out, resume=resume, **changes)


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


PLAIN = replace(CONFIG, tokens=CONFIG.tokens // 2, augment=AUGMENTS["none"], drop_path=0.0, ema=None)


def run(out, *more: str, command: tuple[str, ...] = ("train", "--preset", "tiny")) -> int:
    return main([*command, "--data", "motion:short", *TINY, *ONCE, "--out", str(out), *more])
