"""Ctrl-C and the end of a machine's time: a training is asked to stop, and saves itself first."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_AGAIN = 1.0  # seconds: torchrun passes on the signal that a terminal has sent to all processes already


@contextmanager
def stopped_by_signals() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether SIGINT or SIGTERM has come; a later one interrupts at once.

    For the main thread, where alone Python takes signals.

    Example:
        >>> with stopped_by_signals() as stop:
        ...     stop()
        False
    """
    came: list[float] = []

    def note(number: int, _: object) -> None:
        if came and time.monotonic() - came[0] > _AGAIN:
            raise KeyboardInterrupt
        came.append(time.monotonic())

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
