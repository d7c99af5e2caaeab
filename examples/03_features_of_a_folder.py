"""One feature vector for every video in a folder, at a geometry of your choice.

python examples/03_features_of_a_folder.py CHECKPOINT FOLDER features.safetensors
"""

import argparse
from pathlib import Path

import flexvideo as fv


def main(checkpoint: str, folder: str, out: str, frames: int = 16, size: int = 128) -> None:
    """Write the features and print the most similar pair of videos."""
    videos = sorted(
        path for path in Path(folder).rglob("*") if path.suffix in {".mp4", ".avi", ".webm", ".mkv"}
    )
    model = fv.make_flexible(fv.load(checkpoint))
    names, features = fv.extract_features(model, videos, frames=frames, size=size)
    fv.save_features(out, names, features)
    similarity = (unit := features / features.norm(dim=1, keepdim=True)) @ unit.T
    similarity.fill_diagonal_(-1)
    first, second = divmod(int(similarity.argmax()), len(names))
    print(f"{len(names)} videos, features of {features.shape[1]} numbers in {out}")
    print(f"most alike: {names[first]} and {names[second]}, cosine {similarity[first, second]:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("folder")
    parser.add_argument("out")
    options = parser.parse_args()
    main(options.checkpoint, options.folder, options.out)
