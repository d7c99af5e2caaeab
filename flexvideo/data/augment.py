"""What training does to clips, as plain data; every random choice is keyed by (seed, epoch, clip)."""

from dataclasses import dataclass

from flexvideo.data.clips import Sampling


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How training alters clips.

    Args:
        sampling: rule by which frames are chosen; see `sample_frames`.
    """

    sampling: Sampling = "uniform"
