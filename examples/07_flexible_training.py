"""Train a VideoMamba flexibly: every step at its own frame count, frame size and patch.

    python examples/07_flexible_training.py ucf101:/data/ucf101 runs/ucf101 --start CHECKPOINT

The same as `flexvideo train`; run it again after it was killed, and it goes on.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

import flexvideo as fv
from flexvideo.data import open_source
from flexvideo.train import TrainConfig, TrainResult, Validation, replace_head, train


def main(
    data: str,
    out: str,
    start: str | None = None,
    frames: Sequence[int] = (8, 16, 32),
    sizes: Sequence[int] = (96, 128, 224),
    tokens: int = 200_000,
    epochs: int = 12,
    steps: int | None = None,
) -> TrainResult:
    """Train, and print the accuracy at two sizes after every epoch."""
    source, held_out = open_source(data, split="train"), open_source(data, split="test")
    if start is None:
        model = fv.videomamba_tiny(num_classes=len(source.classes), num_frames=16, init="mamba")
    else:
        model = replace_head(fv.load(start), source.classes)
    fv.make_flexible(model, policy=fv.StaticTokens(frames=frames, sizes=sizes))
    print(fv.plan_for(model))
    warmup = min(5, epochs)
    config = replace(TrainConfig.of("paper"), tokens=tokens, epochs=epochs, steps=steps, warmup_epochs=warmup)
    result = train(
        model,
        source,
        config=config,
        out=out,
        evaluate=Validation(held_out, [(frames[0], sizes[0]), (frames[-1], sizes[-1])]),
        resume=True,
        report=print,
    )
    for spec, clips in result.clips.items():
        print(f"{clips} clips of {spec.frames} x {spec.height} x {spec.width} px")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("out")
    parser.add_argument("--start")
    options = parser.parse_args()
    main(options.data, options.out, options.start)
