"""Make the two small checkpoints that `flexvideo demo` shows: a vanilla one and one of static tokens.

Both begin from one start that has seen where joints are, at vanilla's geometry, and then see the same clips
of the procedural set in as many steps of as many tokens. What is there is not made again, and a training
that was stopped goes on:

    python benchmarks/train_demo.py --out /tmp/demo
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _evidence_data import TensorSource, drawn, load_start
from torch import nn

import flexvideo as fv
from flexvideo.data.augment import Augment
from flexvideo.data.motion import MotionSet
from flexvideo.data.posed import PosedClips, track_clips
from flexvideo.evaluate import NativeSize
from flexvideo.train import TrainConfig, Validation, replace_head, train
from flexvideo.train.pretrain import Pretraining, pretrain

MODEL = {"img_size": 48, "patch_size": 12, "num_frames": 8, "embed_dim": 64, "depth": 4}
POLICY = fv.StaticTokens(frames=(4, 8, 16), sizes=(32, 48, 64, 96))
HELD = {"frames": 32, "size": 64}
TOKENS = 32 * 8 * 16
GRID = [(frames, size) for frames in (4, 8, 16, 32) for size in (24, 32, 48, 64, 80, 96, 128)]
START = Pretraining(steps=1000, batch=32, crop=1.0)
CONFIG = TrainConfig(
    epochs=10,
    tokens=TOKENS,
    lr=3e-3 * 256 / 32,
    warmup_epochs=1,
    clip_norm=1.0,
    drop_path=0.0,
    betas=(0.9, 0.99),
    augment=Augment(sampling="random", scale=(0.7, 1.0), ratio=(0.9, 1.1), smoothing=0.05),
)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    device, out = "cuda" if torch.cuda.is_available() else "cpu", options.out
    start = replace(START, steps=options.start_steps, seed=options.seed)
    config = replace(CONFIG, steps=-(-options.steps // CONFIG.epochs), seed=options.seed)
    sets = {
        split: MotionSet(split, per_class=n) for split, n in zip(("train", "val"), options.clips, strict=True)
    }
    videos = {split: drawn(out / f"{split}.bin", sets[split], **HELD, device=device) for split in sets}
    sources = {
        split: TensorSource(videos[split], clips.labels, clips.classes, name="motion", split=split)
        for split, clips in sets.items()
    }
    if not (out / "start" / "model.safetensors").exists():
        tracks = track_clips(sets["train"], frames=HELD["frames"]).to(device)
        torch.manual_seed(options.seed)
        model = fv.VideoMamba(**MODEL, num_classes=0, drop_path_rate=0.0, init="mamba").to(device)
        clips = PosedClips(videos["train"].to(device), tracks)
        pretrain(model, clips, config=start, out=out / "start", report=_say)
    for name in ("static-tokens", "vanilla"):
        if not (out / name / "model.safetensors").exists():
            model = load_start(out, device)
            torch.manual_seed(options.seed)
            replace_head(model, sources["train"].classes)
            if name == "static-tokens":
                fv.make_flexible(model, policy=POLICY)
            own = Validation(sources["val"], [(MODEL["num_frames"], MODEL["img_size"])])
            train(
                model, sources["train"], config=config, out=out / name, evaluate=own, resume=True, report=_say
            )
        _ship(out, name)
    for name, model in _measured(out).items():
        print(_table(model.to(device), sources["val"], name), flush=True)
    return 0


def _ship(out: Path, name: str) -> None:
    """Write a checkpoint as the package ships it: one file in half precision."""
    fv.save(fv.load(out / name, dtype=torch.float16), out / f"{name}.safetensors")


def _measured(out: Path) -> dict[str, nn.Module]:
    """What is shipped, as it meets clips of other sizes."""
    flexible, resized, native = (
        fv.load(out / f"{name}.safetensors", dtype=torch.float32)
        for name in ("static-tokens", "vanilla", "vanilla")
    )
    return {
        "static tokens": flexible,
        "vanilla, tables resized": fv.make_flexible(resized, policy="static-patch", rule="paper"),
        "vanilla, clip resized": NativeSize(native),
    }


def _table(model: nn.Module, source: TensorSource, name: str) -> str:
    found = Validation(source, GRID)(model)
    sizes = sorted({size for _, size in GRID})
    lines = [f"{name}: top-1 in %", "   T " + "".join(f"{size:6d}" for size in sizes)]
    for frames in sorted({frames for frames, _ in GRID}):
        values = (100 * found[f"top1/{frames}x{size}"] for size in sizes)
        lines.append(f"{frames:4d} " + "".join(f"{value:6.1f}" for value in values))
    return "\n".join(lines)


def _say(record: Mapping[str, Any]) -> None:
    shown = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items())
    print(f"{time.process_time():7.0f} s of CPU ", *shown, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of everything that is made")
    parser.add_argument("--start-steps", type=int, default=START.steps)
    parser.add_argument("--steps", type=int, default=1000, help="of the training of each")
    parser.add_argument("--clips", type=int, nargs=2, default=(120, 20), help="of each class, train and val")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
