"""Which frames a video has and when, told from its packets alone: plain numbers, no decoder."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from flexvideo.errors import VideoError


@dataclass(frozen=True)
class VideoIndex:
    """The frames of a video in the order in which they are shown.

    Args:
        seconds: when each frame appears, counted from the first one.
        stamps: the container's own time of each frame; empty where frames must be counted by decoding.
        keys: those times, hidden frames included, at which decoding can begin.

    Example:
        >>> VideoIndex((0.0, 0.5, 1.0, 1.5)).within(0.5, 1.5)
        range(1, 3)
    """

    seconds: tuple[float, ...]
    stamps: tuple[int, ...] = ()
    keys: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.seconds)

    @property
    def length(self) -> float:
        """Seconds from the first frame to the end of the last, taken to last as long as the others."""
        last = self.seconds[-1]
        return last + last / (len(self) - 1) if last else 1.0

    def within(self, start: float | None = None, end: float | None = None) -> range:
        """Give the numbers of the frames that appear in [start, end); of the one on show where none appears.

        Args:
            start: seconds from the first frame; None is the beginning.
            end: seconds, itself excluded; None is the end.

        Raises:
            VideoError: the segment is empty or begins outside the video.
        """
        begin, stop = 0.0 if start is None else start, self.length if end is None else end
        if not 0 <= begin < min(stop, self.length):
            raise VideoError(
                f"There is no segment from {begin:g} s to {stop:g} s in a video of {self.length:g} s: "
                f"it must begin at 0 s or later, before {self.length:g} s, and end after its beginning."
            )
        first, last = bisect_left(self.seconds, begin), bisect_left(self.seconds, stop)
        return range(first, last) if first < last else range(first - 1, first)

    def keys_before(self, stamp: int) -> tuple[int, ...]:
        """Give the places at or before a stamp at which decoding can begin, the nearest last."""
        return self.keys[: bisect_right(self.keys, stamp)]


class Packet(NamedTuple):
    """What one packet of compressed video says about its frame; times in the container's unit."""

    pts: int | None
    dts: int | None
    key: bool
    corrupt: bool
    hidden: bool  # decoded but not shown, as an edit list or the codec demands


def index_of(packets: Sequence[Packet], *, unit: Fraction, times_stored: bool) -> VideoIndex | None:
    """Index a video by its packets; None where they do not tell which frame is which.

    Args:
        packets: all of them, in the order of the file.
        unit: seconds in one unit of time.
        times_stored: the container holds presentation times. AVI holds only the order of decoding: times of
            frames shown in another order are FFmpeg's guesses, and wrong for H.264 and packed MPEG-4.
    """
    times = [packet.pts for packet in packets if packet.pts is not None]
    trusted = (
        len(set(times)) == len(packets) > 0
        and not any(packet.corrupt for packet in packets)
        # Frames before the first keyframe, in the file or on the screen, cannot be decoded: some are dropped.
        and packets[0].key
        and packets[0].pts == min(times)
        and (times_stored or all(packet.pts == packet.dts for packet in packets))
    )
    stamps = sorted(packet.pts for packet in packets if packet.pts is not None and not packet.hidden)
    if not (trusted and stamps):
        return None
    keys = sorted(packet.pts for packet in packets if packet.pts is not None and packet.key)
    return VideoIndex(seconds_of(stamps, unit), tuple(stamps), tuple(keys))


def seconds_of(stamps: Sequence[int], unit: Fraction) -> tuple[float, ...]:
    """Turn times in a unit into seconds from the first."""
    # One division of two integers: 7 / 25 is the float 0.28 that a user writes, 7 * 0.04 is not.
    return tuple((stamp - stamps[0]) * unit.numerator / unit.denominator for stamp in stamps)
