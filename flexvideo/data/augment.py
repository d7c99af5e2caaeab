"""What training does to clips, as plain data; how it is done is in `alter`, `randaugment` and `mix`."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

from flexvideo.data.clips import Sampling
from flexvideo.errors import ConfigError
from flexvideo.fields import typed


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How training alters clips; without arguments, not at all.

    Args:
        repeats: how often each clip is in its batch, altered otherwise each time.
        sampling: rule by which frames are chosen; see `sample_frames`.
        scale: smallest and largest share of a frame's area that a random crop keeps; None keeps the largest
            centred rectangle of the right aspect.
        ratio: smallest and largest aspect of a random crop, width by height, against that of the clip.
        flip: whether half of the clips are mirrored; None: where the data set allows it.
        operations: how many of RandAugment's operations are drawn for a clip, each done with probability 1/2.
        magnitude: their strength, 0 to 10.
        magnitude_std: standard deviation of the strength from clip to clip.
        erase: probability that a rectangle of a clip is replaced by noise.
        mixup: parameter of the Beta distribution of shares when two clips are blended; 0 is never.
        cutmix: likewise when a part of one clip is put into another; with both, either is done every second
            time.
        smoothing: share of a label that is spread over all classes, 0 to 1.

    Raises:
        ConfigError: a value outside its range.

    Example:
        >>> AUGMENTS["videomamba"].operations
        4
    """

    repeats: int = 1
    sampling: Sampling = "uniform"
    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool | None = False
    operations: int = 0
    magnitude: float = 7.0
    magnitude_std: float = 0.5
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        scale = (1.0, 1.0) if self.scale is None else self.scale
        for name, fits, range_ in (
            ("repeats", self.repeats >= 1, "1 or more"),
            ("sampling", self.sampling in get_args(Sampling), f"one of {', '.join(get_args(Sampling))}"),
            ("scale", 0 < scale[0] <= scale[1] <= 1, "None, or two shares above 0 and up to 1 that ascend"),
            ("ratio", 0 < self.ratio[0] <= self.ratio[1], "two positive numbers that ascend"),
            ("operations", self.operations >= 0, "0 or more"),
            ("magnitude", 0 <= self.magnitude <= 10, "from 0 to 10"),
            ("magnitude_std", self.magnitude_std >= 0, "0 or more"),
            ("erase", 0 <= self.erase <= 1, "from 0 to 1"),
            ("mixup", self.mixup >= 0, "0 or more"),
            ("cutmix", self.cutmix >= 0, "0 or more"),
            ("smoothing", 0 <= self.smoothing < 1, "from 0 to below 1"),
        ):
            if not fits:
                raise ConfigError(f"Augment: `{name}` must be {range_}, got {getattr(self, name)!r}.")

    @property
    def soft(self) -> bool:
        """Whether labels become shares of classes."""
        return max(self.mixup, self.cutmix, self.smoothing) > 0


AUGMENTS = {
    "none": Augment(),
    "light": Augment(sampling="random", scale=(0.5, 1.0), flip=None),
    # Source: the official scripts of VideoMamba, exp/k400 (rand-m7-n4-mstd0.5-inc1 and so on).
    "videomamba": Augment(
        repeats=2,
        sampling="videomamba-random",
        scale=(0.08, 1.0),
        flip=None,
        operations=4,
        erase=0.25,
        mixup=0.8,
        cutmix=1.0,
        smoothing=0.1,
    ),
}


def augment_of(augment: str | Augment | Mapping[str, Any]) -> Augment:
    """Return the augmentation that a name, an augmentation or its fields as JSON data stand for.

    Args:
        augment: one of the names in `AUGMENTS`, an `Augment`, or the fields of one that differ from none.

    Raises:
        ConfigError: an unknown name or field, or a value that does not fit.

    Example:
        >>> augment_of({"scale": [0.5, 1.0]}).scale
        (0.5, 1.0)
    """
    if isinstance(augment, Augment):
        return augment
    if isinstance(augment, str):
        if augment not in AUGMENTS:
            raise ConfigError(f"Unknown augmentation {augment!r}; known: {', '.join(AUGMENTS)}.")
        return AUGMENTS[augment]
    known = {field.name: field.type for field in fields(Augment)}
    unknown = [name for name in augment if name not in known]
    if unknown:
        raise ConfigError(f"Unknown fields {unknown} of an augmentation; known: {', '.join(known)}.")
    return Augment(**{name: typed("Augment", name, value, known[name]) for name, value in augment.items()})
