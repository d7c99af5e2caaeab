"""A linear classifier of frozen features, chosen on a part of the train split and tried on the test split.

python examples/06_linear_probe.py CHECKPOINT hmdb51:/data/hmdb51 results/
"""

import argparse

import flexvideo as fv
from flexvideo.data import open_dataset
from flexvideo.data.source import VideoSource, require_learnable
from flexvideo.evaluate import Cell, Probe, extract, linear_probe, save_result


def main(checkpoint: str, data: str, out: str, frames: int = 16, size: int = 224) -> None:
    """Probe by both methods, print their accuracy with its interval, and keep features and results."""
    train, test = (VideoSource(open_dataset(data, split=split)) for split in ("train", "test"))
    require_learnable(train, test)
    model = fv.make_flexible(fv.load(checkpoint))
    learnt, tried = (
        extract(model, source, grid=[Cell(frames, size)], cache=f"{out}/features") for source in (train, test)
    )
    for method in ("adamw", "lbfgs"):
        result = linear_probe(learnt, tried, name="linear probe", probe=Probe(method=method))
        (cell,) = result.cells
        chosen = {name: value for name, value in cell.chosen.items() if name != "held_out_top1"}
        print(f"{method}: top-1 {cell.metrics['top1']} with {chosen}: {save_result(result, out)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("data")
    parser.add_argument("out")
    options = parser.parse_args()
    main(options.checkpoint, options.data, options.out)
