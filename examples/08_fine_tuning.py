"""Fine-tune a checkpoint on your own classes at one size, with a new head; official checkpoints too.

python examples/08_fine_tuning.py CHECKPOINT folder:/data/mine runs/mine
"""

import argparse
from dataclasses import replace

import flexvideo as fv
from flexvideo.data import AUGMENTS, open_source
from flexvideo.train import TrainConfig, TrainResult, replace_head, train


def main(
    checkpoint: str,
    data: str,
    out: str,
    frames: int = 16,
    size: int = 224,
    clips: int = 16,
    epochs: int = 30,
    steps: int | None = None,
) -> TrainResult:
    """Train a flexible model at one frame count and size; it stays flexible."""
    source = open_source(data, split="train")
    model = fv.make_flexible(replace_head(fv.load(checkpoint), source.classes))
    base = fv.plan_for(model).base
    one_size = fv.StaticTokens(frames=[frames], sizes=[size])
    tokens = one_size.geometry(base, frames, size, size).tokens
    config = replace(
        TrainConfig.of("paper-finetune"),
        tokens=clips * tokens,  # of a step: so many clips
        epochs=epochs,
        steps=steps,
        warmup_epochs=min(5, epochs),
        augment=AUGMENTS["light"],
        ema=0.999,
    )
    return train(model, source, config=config, out=out, policy=one_size, resume=True, report=print)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("data")
    parser.add_argument("out")
    options = parser.parse_args()
    main(options.checkpoint, options.data, options.out)
