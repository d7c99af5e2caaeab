"""Video retrieval over frame counts and sizes: weights made flexible, and clips resized to their own size.

python examples/05_retrieval.py CHECKPOINT ucf101:/data/ucf101 results/
"""

import argparse
from collections.abc import Sequence

import flexvideo as fv
from flexvideo.data import open_dataset
from flexvideo.data.source import VideoSource, require_learnable
from flexvideo.evaluate import NativeSize, cells, extract, retrieval, save_result
from flexvideo.evaluate.render import markdown
from flexvideo.evaluate.tables import cost_tables, geometry_tables


def main(
    checkpoint: str, data: str, out: str, frames: Sequence[int] = (8, 16), sizes: Sequence[int] = (96, 224)
) -> None:
    """Print top-1 accuracy of both, and what a clip costs; keep features and results."""
    gallery, queries = (VideoSource(open_dataset(data, split=split)) for split in ("train", "test"))
    require_learnable(gallery, queries)
    plain = fv.restore(fv.make_flexible(fv.load(checkpoint)))  # also where the checkpoint is flexible
    native, flexible = NativeSize(plain), fv.make_flexible(fv.load(checkpoint))
    results = []
    for name, model in (("clip resized", native), ("flexible", flexible)):
        found = [
            extract(model, source, grid=cells(frames, sizes), cache=f"{out}/features")
            for source in (queries, gallery)
        ]
        results.append(retrieval(*found, name=name))
        print(f"{name}: {save_result(results[-1], out)}")
    for table in (*geometry_tables(results), *cost_tables(results)):
        print(f"\n{markdown(table)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("data")
    parser.add_argument("out")
    options = parser.parse_args()
    main(options.checkpoint, options.data, options.out)
