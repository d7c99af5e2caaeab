"""Finding damaged videos before they stop a training: the beginning, middle and end of each is decoded."""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool

from flexvideo.data.decode import pyav, read_frames
from flexvideo.data.index import VideoIndex
from flexvideo.data.records import Problem, VideoRecord, VideoSet, plural
from flexvideo.errors import DatasetError, VideoWarning


@dataclass(frozen=True)
class VideoCheck:
    """What a check of videos found.

    Args:
        good: records without any complaint, in the order given.
        problems: the others, with reasons; damaged videos of which a part can be decoded are among them.

    Example:
        >>> print(VideoCheck(good=(), problems=(Problem("a.mp4", "is empty (0 bytes)."),)))
        0 videos are good, 1 is not:
          a.mp4: is empty (0 bytes).
    """

    good: tuple[VideoRecord, ...]
    problems: tuple[Problem, ...]

    def __str__(self) -> str:
        count = len(self.problems)
        line = f"{plural(len(self.good), 'video')} {'is' if len(self.good) == 1 else 'are'} good"
        if not count:
            return line + ", none is not"
        return "\n  ".join(
            [f"{line}, {count:,} {'is' if count == 1 else 'are'} not:", *map(str, self.problems)]
        )


def check_videos(
    records: VideoSet | Sequence[VideoRecord],
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VideoCheck:
    """Decode the first, middle and last frame of each video, or of the part of it that the record names.

    Damage that only other frames meet is not found.

    Args:
        records: what to check.
        workers: threads; None is one for each processor.
        progress: called with the number of videos done and of all, after each.

    Raises:
        DatasetError: there is no video, or not one is good.
        MissingExtraError: PyAV is absent.

    Example:
        >>> check = check_videos(open_dataset("ucf101:/data/ucf101", split="train"))  # doctest: +SKIP
    """
    pyav()
    reasons: list[str | None] = []
    # Damage of which decoding makes the best is told by warnings, collected for all threads at once.
    with warnings.catch_warnings(record=True) as caught, ThreadPool(workers or os.cpu_count()) as pool:
        warnings.simplefilter("always", VideoWarning)
        for reason in pool.imap(_complaint, records):
            reasons.append(reason)
            if progress is not None:
                progress(len(reasons), len(records))
    damaged = _damage(caught)
    found = [reason or damaged.get(record.path) for record, reason in zip(records, reasons, strict=True)]
    pairs = list(zip(records, found, strict=True))
    good = tuple(record for record, reason in pairs if reason is None)
    problems = tuple(Problem(record.path, reason) for record, reason in pairs if reason is not None)
    if not good:
        reason = f" The first: {problems[0]}" if problems else ""
        raise DatasetError(f"Of {plural(len(problems), 'video')}, not one can be decoded whole.{reason}")
    return VideoCheck(good, problems)


def _complaint(record: VideoRecord) -> str | None:
    def ends_and_middle(index: VideoIndex) -> list[int]:
        part = index.within(record.start, record.end)
        return [part[0], part[len(part) // 2], part[-1]]

    try:
        read_frames(record.path, ends_and_middle)
    except Exception as error:  # whatever a file brings about, the others are still to be checked
        return _without_path(str(error) or type(error).__name__, record.path)
    return None


def _damage(caught: list[warnings.WarningMessage]) -> dict[str, str]:
    """Reason by path, out of warnings that begin with the path; others are passed on."""
    damaged: dict[str, str] = {}
    for warning in caught:
        if issubclass(warning.category, VideoWarning):
            path, verb, reason = str(warning.message).rpartition(" is damaged ")
            damaged[path] = (verb + reason).strip()
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return damaged


def _without_path(message: str, path: str) -> str:
    return message.removeprefix(path).strip()
