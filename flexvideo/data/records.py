"""What a set of videos is, as plain data: its videos, their labels, and what of it could not be had."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from flexvideo.errors import ConfigError, DatasetError

_REASONS_SHOWN = 3
_REMEDY = (
    "add videos of it there, take it out here, or try another split (training: --val-split none tries none)"
)


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """One video of a set.

    Args:
        path: the file; a string, as a set of 240,000 videos is copied into every worker process.
        label: number of its class from 0; None where the set does not tell.
        id: what the set calls it.
        start: seconds at which the part that counts begins; None is the beginning.
        end: seconds at which it ends, itself excluded; None is the end.
        view: camera, where one scene was filmed by several.
    """

    path: str
    label: int | None
    id: str
    start: float | None = None
    end: float | None = None
    view: str | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """A video that cannot be used, or is not, and why.

    Args:
        path: the file, or what the set calls it where there is no file.
        reason: one clause, without the path.

    Example:
        >>> print(Problem("a.mp4", "no such file"))
        a.mp4: no such file
    """

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class Splits:
    """The official divisions of a data set.

    Args:
        title: of the data set, for people.
        names: of the splits: first the one to learn from, then the one that papers report on.
        folds: several divisions into these, the usual one first.

    Example:
        >>> Splits("UCF101", ("train", "test"), folds=("1", "2", "3")).check("test", "1")
    """

    title: str
    names: tuple[str, ...]
    folds: tuple[str, ...] = ()

    def check(self, split: str, fold: str | None = None) -> None:
        """Refuse a split or fold that there is not.

        Args:
            split: one of the names.
            fold: one of the folds, where there are any.

        Raises:
            ConfigError: listing those that there are.
        """
        if split not in self.names:
            raise ConfigError(f"{self.title} has no split {split!r}; it has: {', '.join(self.names)}.")
        if fold is not None and fold not in self.folds:
            raise ConfigError(f"{self.title} has no fold {fold!r}; it has: {', '.join(self.folds)}.")


@dataclass(frozen=True)
class VideoSet:
    """One split of a data set: a sequence of records, with what they mean.

    Args:
        name: of the data set, for people.
        split: such as "train".
        records: its videos.
        classes: names, in the order of the labels.
        fold: which of several official divisions into splits, where there are several.
        flip_ok: whether a mirrored video keeps its label; never so where classes tell left from right.
        omitted: videos that belong to the split and are not in it.

    Raises:
        DatasetError: a label outside the classes.

    Example:
        >>> videos = VideoSet("toys", "train", (VideoRecord("a.mp4", 0, "a"),), classes=("jump", "run"))
        >>> print(videos)
        toys train: 1 video of 2 classes, 0 to 1 a class
    """

    name: str
    split: str
    records: tuple[VideoRecord, ...]
    classes: tuple[str, ...]
    fold: str | None = None
    flip_ok: bool = True
    omitted: tuple[Problem, ...] = ()

    def __post_init__(self) -> None:
        for record in self.records:
            if record.label is not None and not 0 <= record.label < len(self.classes):
                raise DatasetError(
                    f"{self.title}: {record.id} has label {record.label}, outside its {len(self.classes)} "
                    f"classes, which are numbered from 0 to {len(self.classes) - 1}. Correct the list, or "
                    "give all the classes."
                )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> VideoRecord:
        return self.records[index]

    def __iter__(self) -> Iterator[VideoRecord]:
        return iter(self.records)

    @property
    def title(self) -> str:
        """Data set, split and fold in words."""
        return f"{self.name} {self.split}" + (f" (fold {self.fold})" if self.fold else "")

    @property
    def labels(self) -> tuple[int, ...]:
        """Label of every video.

        Raises:
            DatasetError: a video has none, as in test sets whose answers are kept back.
        """
        known = tuple(record.label for record in self.records if record.label is not None)
        if len(known) < len(self):
            raise DatasetError(
                f"{self.title} tells no label for {len(self) - len(known):,} of its {len(self):,} videos; "
                "use a split with labels."
            )
        return known

    def counts(self) -> tuple[int, ...]:
        """Count the videos of each class."""
        counted = Counter(record.label for record in self.records)
        return tuple(counted[label] for label in range(len(self.classes)))

    def __str__(self) -> str:
        counts = self.counts()
        unlabelled = len(self) - sum(counts)
        line = f"{self.title}: {plural(len(self), 'video')} of {len(self.classes):,} classes"
        if sum(counts):
            line += f", {min(counts):,} to {max(counts):,} a class"
        if unlabelled:
            line += f", {unlabelled:,} without label"
        if self.omitted:
            line += f"\n  left out: {_reasons(self.omitted)}"
        return line


def require_known_classes(train: VideoSet, test: VideoSet) -> None:
    """Refuse two splits between which nothing can be learnt for some class.

    Args:
        train: what is learnt from.
        test: what it is tried on.

    Raises:
        DatasetError: their classes differ, or a class of the second has no video in the first.

    Example:
        >>> videos = VideoSet("toys", "train", (VideoRecord("a.mp4", 0, "a"),), classes=("jump",))
        >>> require_known_classes(videos, videos)
    """
    if train.classes != test.classes:
        named = [name for name in test.classes if name not in train.classes]
        differing = (
            f"{_some(named)} of {test.title} is none of the {len(train.classes)} classes of {train.title}"
            if named
            else f"{test.title} and {train.title} do not number the same {len(train.classes)} classes alike"
        )
        remedy = f"{_REMEDY}." if named else "open both with the same list of classes."
        raise DatasetError(f"{differing}: {remedy}")
    learnt, tried = train.counts(), test.counts()
    unknown = [name for name, a, b in zip(train.classes, learnt, tried, strict=True) if b and not a]
    if unknown:
        raise DatasetError(
            f"{_some(unknown)} of {test.title} has no video in {train.title}, so it cannot be "
            f"learnt: {_REMEDY}.{_left_out(train)}"
        )


def plural(count: int, noun: str) -> str:
    """A number of things in words.

    Example:
        >>> plural(2000, "video")
        '2,000 videos'
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"Class {names[0]!r}{more}"


def _left_out(videos: VideoSet) -> str:
    return f" ({plural(len(videos.omitted), 'video')} of it left out.)" if videos.omitted else ""


def _reasons(problems: tuple[Problem, ...]) -> str:
    counted = Counter(problem.reason for problem in problems).most_common()
    shown = [f"{count:,} ({reason})" for reason, count in counted[:_REASONS_SHOWN]]
    rest = sum(count for _, count in counted[_REASONS_SHOWN:])
    return ", ".join(shown) + (f", {rest:,} for other reasons" if rest else "")
