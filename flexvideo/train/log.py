"""The log of a run: a line of JSON for everything that was measured, TensorBoard beside it if asked for."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flexvideo.errors import CheckpointError, MissingExtraError
from flexvideo.weights import write_atomically

FILE = "log.jsonl"
Report = Callable[[Mapping[str, Any]], object]


class Log:
    """Writes records of a run; a run that goes on from a checkpoint drops what was logged after it.

    Args:
        folder: of the run.
        done: steps of the run that have been taken.
        tensorboard: write events for TensorBoard too, to the same folder.
        report: called with every record.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, *, done: int, tensorboard: bool, report: Report | None) -> None:
        self._path, self._report = folder / FILE, report
        self._events = _events(folder, done) if tensorboard else None
        kept = [record for record in read_log(folder) if record["step"] <= done]
        write_atomically(self._path, "".join(f"{json.dumps(record)}\n" for record in kept).encode())

    def write(self, record: Mapping[str, Any]) -> None:
        """Write a record.

        Args:
            record: JSON data with the number of "step"s taken.

        Raises:
            CheckpointError: it cannot be written, such as to a full disk.
        """
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(record)}\n")
        except OSError as error:
            raise CheckpointError(f"{self._path} cannot be written: {error.strerror}.") from error
        if self._events is not None:
            for name, value in record.items():
                if isinstance(value, float):
                    self._events.add_scalar(name, value, record["step"])
            self._events.flush()
        if self._report is not None:
            self._report(record)


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """Read the log of a run; a last line that a killed process left unfinished is left out.

    Args:
        folder: of the run.
    """
    try:
        lines = (Path(folder) / FILE).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines[:-1]]  # a whole line ends, so the last part is empty or torn


def _events(folder: Path, done: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError('TensorBoard is missing: pip install "flexvideo[tensorboard]".') from error
    return SummaryWriter(str(folder), purge_step=done + 1)
