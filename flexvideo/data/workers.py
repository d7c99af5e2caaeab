"""Worker processes: they outlive signals that are meant for the training, and end when it does."""

import atexit
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from threading import Thread

_GRACE = 1.0  # seconds in which PyTorch ends workers that are not busy, in the order that it needs


class Workers:
    """The processes of one `DataLoader`, which are gone after `end`, and at the end of the program.

    What a terminal or a scheduler sends to all processes is left to the training, which ends its workers. By
    a signal it could not, as Python does not tell who sent one.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> workers = Workers()
        >>> list(DataLoader([1, 2], batch_size=None, num_workers=1, worker_init_fn=workers.begin))
        [1, 2]
        >>> workers.end()
    """

    def __init__(self) -> None:
        self._told, self._tell = Pipe(duplex=False)
        self.begin: Callable[[int], None] = partial(_begin, self._told)  # what each begins with
        atexit.register(self._say)  # of an error that keeps from its end what would call `end`

    def end(self) -> None:
        """Tell them to be gone."""
        atexit.unregister(self._say)
        self._say()
        self._told.close()
        self._tell.close()

    def _say(self) -> None:
        self._tell.send_bytes(b"end")  # which nobody takes out, so that all see it


def _begin(told: Connection, worker: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    Thread(target=_end, args=(told,), daemon=True).start()


def _end(told: Connection) -> None:
    told.poll(None)
    time.sleep(_GRACE)
    os._exit(0)
