"""One run at a time in a folder."""

import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flexvideo.errors import TrainingError
from flexvideo.output import require_folder
from flexvideo.train.distributed import any_of, rank_and_world

FILE = ".lock"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep the runs of other processes out of a folder, which is made where there is none.

    The lock is the process's: it ends with it, by whatever it is ended, and the processes that read clips do
    not have it. So the file that stays behind keeps nobody out.

    Args:
        folder: of the run; under torchrun the first process claims it for all.

    Raises:
        TrainingError: another run is in it.
        ConfigError: it cannot be made or written.

    Example:
        >>> import tempfile
        >>> with claimed(Path(tempfile.mkdtemp())):
        ...     pass
    """
    if rank_and_world()[0] > 0:
        _refuse(folder, any_of(False))
        yield
        return
    descriptor = os.open(require_folder(folder) / FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _refuse(folder, any_of(not _lock(descriptor, folder)))
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> bool:
    try:
        import fcntl  # not on Windows

        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except (ImportError, OSError) as error:
        warnings.warn(f"{folder} cannot be locked, so no other run is kept out of it: {error}.", stacklevel=4)
    return True


def _refuse(folder: Path, taken: bool) -> None:
    if taken:
        holder = (folder / FILE).read_text() or "another process"
        raise TrainingError(
            f"Another run writes to {folder} ({holder}): wait for its end, or choose another folder."
        )
