"""One feature vector for every video in a folder, at a geometry of your choice.

python examples/03_features_of_a_folder.py CHECKPOINT FOLDER features.safetensors
"""

import argparse
from pathlib import Path

import torch

import flexvideo as fv


def main(checkpoint: str, folder: str, out: str, frames: int = 16, size: int = 128) -> None:
    """Write the features and print the most similar pair of videos."""
    endings = {".mp4", ".avi", ".webm", ".mkv", ".mov"}
    videos = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in endings)
    if not videos:
        raise SystemExit(f"There is no video under {folder}: looked for {', '.join(sorted(endings))}.")
    model = fv.make_flexible(fv.load(checkpoint))
    names, features = fv.extract_features(model, videos, frames=frames, size=size)
    settings = {"checkpoint": checkpoint, "frames": frames, "size": size}
    fv.save_features(out, names, features, settings=settings)
    print(f"{out}: {features.shape[0]} x {features.shape[1]} numbers, one row a video")
    print(most_alike(names, features))


def most_alike(names: list[str], features: torch.Tensor) -> str:
    """Name the two of features (N, D) between which the cosine is largest."""
    if len(names) < 2:
        return "nothing to compare: it takes two videos"
    unit = features / features.norm(dim=1, keepdim=True)
    similarity = (unit @ unit.T).fill_diagonal_(-torch.inf)
    first, second = divmod(int(similarity.argmax()), len(names))
    return f"most alike: {names[first]} and {names[second]}, cosine {similarity[first, second]:.3f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("folder")
    parser.add_argument("out")
    options = parser.parse_args()
    main(options.checkpoint, options.folder, options.out)
