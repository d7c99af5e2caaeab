"""One checkpoint, clips of every length and size.

    python examples/01_any_clip.py CHECKPOINT VIDEO

CHECKPOINT is a file or a folder (an official VideoMamba .pth, or what `save_pretrained` wrote).
"""

import argparse
from collections.abc import Sequence

import torch

import flexvideo as fv
from flexvideo.errors import FlexVideoError


def main(
    checkpoint: str, video: str, frames: Sequence[int] = (8, 32), sizes: Sequence[int] = (96, 224)
) -> None:
    """Print the top class of the video at each geometry."""
    model = fv.make_flexible(fv.load(checkpoint))  # in place; default policy: static tokens
    print(fv.plan_for(model))
    for count in frames:
        for size in sizes:
            clip = fv.read_clip(video, frames=count, size=size)  # (1, 3, T, H, W)
            with torch.inference_mode():
                probabilities = model(clip).softmax(dim=-1)
            value, index = probabilities.max(dim=-1)
            print(
                f"{count:3d} frames of {size:3d} px: class {index.item():4d}, probability {value.item():.3f}"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("video")
    options = parser.parse_args()
    try:
        main(options.checkpoint, options.video)
    except FlexVideoError as error:  # every error that flexvideo raises on purpose says what to do
        parser.error(str(error))
