"""Features on disk, some clips of one cell a file: a killed pass goes on, a larger grid adds to it.

The folder is named by a hash of everything that features depend on; another protocol is another folder.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flexvideo.errors import CheckpointError, ConfigError
from flexvideo.evaluate.grid import Cell
from flexvideo.weights import read_weights, write_atomically, write_safetensors


@dataclass(frozen=True)
class Part:
    """Outputs for some clips of a source.

    Args:
        rows: numbers of the clips.
        values: one row for each.
        skipped: numbers of clips that could not be read, and why.
    """

    rows: Int[Tensor, " n"]
    values: Float[Tensor, "n d"]
    skipped: dict[int, str] = field(default_factory=dict)


class Store:
    """Keep and find parts of features.

    Args:
        folder: made when it is not there; several models, sets and protocols share it.
        key: JSON data of everything that the values depend on but cell and clip.

    Raises:
        ConfigError: the folder cannot be made.
    """

    def __init__(self, folder: Path, key: dict[str, Any]) -> None:
        text = json.dumps(key, indent=1, sort_keys=True)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:20]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"Features cannot be kept in {folder}: {error.strerror}.") from error
        write_atomically(self.folder / "protocol.json", text.encode())

    def get(self, cell: Cell, start: int) -> Part | None:
        """Find the part of a cell that begins with a clip; None where it is not kept.

        Raises:
            CheckpointError: it is damaged.
        """
        path = self._path(cell, start)
        if not path.is_file():
            return None
        try:
            tensors, text = read_weights(path)
        except CheckpointError as error:
            raise CheckpointError(f"{error} Delete it, and what it kept is worked out again.") from error
        skipped = {int(index): reason for index, reason in json.loads(text["skipped"]).items()}
        return Part(tensors["rows"], tensors["values"], skipped)

    def put(self, cell: Cell, start: int, part: Part) -> None:
        """Keep the part of a cell that begins with a clip.

        Raises:
            CheckpointError: the disk is full, or may not be written to.
        """
        path = self._path(cell, start)
        path.parent.mkdir(exist_ok=True)
        tensors = {"rows": part.rows, "values": part.values}
        write_safetensors(path, tensors, text={"skipped": json.dumps(part.skipped)})

    def _path(self, cell: Cell, start: int) -> Path:
        return self.folder / str(cell) / f"{start:06}.safetensors"


def joined(parts: list[Part]) -> Part:
    """One part of several, of which some may have no row at all."""
    filled = [part for part in parts if len(part.rows)] or parts[:1]
    return Part(
        torch.cat([part.rows for part in filled]),
        torch.cat([part.values for part in filled]),
        {index: reason for part in parts for index, reason in part.skipped.items()},
    )
