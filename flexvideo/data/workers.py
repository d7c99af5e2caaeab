"""Worker processes: they outlive signals that are meant for the training, and end when it does."""

import atexit
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from threading import Thread

_GRACE = 1.0  # seconds in which PyTorch ends workers that are not busy, in the order that it needs


@contextmanager
def ended_workers() -> Iterator[Callable[[int], None]]:
    """Give what workers of a `DataLoader` begin with; at the end, that of the program too, they are gone.

    What a terminal or a scheduler sends to all processes is left to the training, which ends its workers. By
    a signal it could not, as Python does not tell who sent one.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> with ended_workers() as begin:
        ...     list(DataLoader([1, 2], batch_size=None, num_workers=1, worker_init_fn=begin))
        [1, 2]
    """
    told, tell = Pipe(duplex=False)

    def end() -> None:
        tell.send_bytes(b"end")  # which nobody takes out, so that all see it

    atexit.register(end)  # of an error that keeps what is run here from its end
    try:
        yield partial(_begin, told)
    finally:
        atexit.unregister(end)
        end()
        told.close()
        tell.close()


def _begin(told: Connection, worker: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    Thread(target=_end, args=(told,), daemon=True).start()


def _end(told: Connection) -> None:
    told.poll(None)
    time.sleep(_GRACE)
    os._exit(0)
