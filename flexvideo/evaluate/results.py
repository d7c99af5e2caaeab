"""Results as they are kept: numbers with their intervals, and the protocol written out beside them."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flexvideo.errors import ConfigError
from flexvideo.evaluate.bootstrap import Estimate
from flexvideo.evaluate.facts import ModelFacts, SourceFacts
from flexvideo.evaluate.grid import Cell, Cost
from flexvideo.output import require_folder
from flexvideo.weights import write_atomically

FORMAT = 1


@dataclass(frozen=True)
class CellResult:
    """What was measured at one cell.

    Args:
        cell: the geometry of the clips.
        cost: of one clip.
        metrics: by name, each from 0 to 1 with its interval.
        hits: "1" for each query that was right at first place and "0" for the others, in the order of the
            labels of the result; differences between models are taken query by query.
        chosen: what was chosen without the queries, such as the learning rate of a probe.
    """

    cell: Cell
    cost: Cost
    metrics: dict[str, Estimate]
    hits: str
    chosen: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """A model on a data set by one protocol, over a grid of geometries.

    Args:
        task: "retrieval", "knn", "probe", "accuracy" or "finetune".
        name: what tables call the model; results of one name and different weights are averaged there.
        model: which weights, and how they meet clips of other sizes.
        queries: the clips that the metrics are about.
        gallery: the clips that were searched or learnt from; None where there are none.
        protocol: everything else that the numbers depend on.
        cells: the grid.
        labels: classes of the queries.
        skipped: clips that could not be read, of queries and gallery, with reasons.
        version: of the library.
        date: year, month and day.
    """

    task: str
    name: str
    model: ModelFacts
    queries: SourceFacts
    gallery: SourceFacts | None
    protocol: dict[str, Any]
    cells: tuple[CellResult, ...]
    labels: tuple[int, ...]
    skipped: tuple[str, ...]
    version: str
    date: str

    @property
    def data(self) -> str:
        """Name of the data set."""
        return self.queries.data

    @property
    def searched(self) -> int:
        """How many clips of the gallery could be read."""
        unread = len(self.skipped) - (self.queries.clips - len(self.labels))
        return 0 if self.gallery is None else self.gallery.clips - unread

    @property
    def digest(self) -> str:
        """Hash of what was asked, not of what came out: results that may replace each other have the same."""
        asked = [self.task, self.name, asdict(self.model), asdict(self.queries), self.protocol]
        asked += [None if self.gallery is None else asdict(self.gallery), [str(c.cell) for c in self.cells]]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    @property
    def filename(self) -> str:
        """A name that no result of another protocol has."""
        words = (self.task, self.data, self.name, self.digest[:8])
        return "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", word).strip("_") for word in words) + ".json"


def save_result(result: Result, path: str | Path) -> Path:
    """Write a result, whole or not at all, over none but one of the same protocol.

    Args:
        result: the result.
        path: ends in `.json`; any other is a folder, made when it is not there, in which the result gets a
            name of its own.

    Returns:
        The file.

    Raises:
        ConfigError: the file is there, and is something else; or the folder cannot be made.
        CheckpointError: it cannot be written.
    """
    path = Path(path)
    if path.suffix != ".json":
        path = require_folder(path) / result.filename
    if path.exists() and load_result(path).digest != result.digest:
        raise ConfigError(
            f"{path} is the result of another protocol and is not overwritten: name another file."
        )
    write_atomically(path, (json.dumps({"format": FORMAT} | asdict(result), indent=1) + "\n").encode())
    return path


def load_result(path: str | Path) -> Result:
    """Read what `save_result` wrote.

    Args:
        path: the file.

    Raises:
        ConfigError: it is not there, or is no result.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise ConfigError(
                f"{path} is of another format than {FORMAT}: it needs another version of flexvideo."
            )
        return _result(content)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        why = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ConfigError(f"{path} is no result file of flexvideo: {why}.") from error


def _result(content: Mapping[str, Any]) -> Result:
    gallery = content["gallery"]
    read = {
        "model": ModelFacts(**content["model"]),
        "queries": SourceFacts(**content["queries"]),
        "gallery": None if gallery is None else SourceFacts(**gallery),
        "cells": tuple(_cell(cell) for cell in content["cells"]),
        "labels": tuple(content["labels"]),
        "skipped": tuple(content["skipped"]),
    }
    return Result(**{**content, **read})


def _cell(content: Mapping[str, Any]) -> CellResult:
    cost = content["cost"]
    return CellResult(
        cell=Cell(**content["cell"]),
        cost=Cost(**{**cost, "patch": tuple(cost["patch"]), "grid": tuple(cost["grid"])}),
        metrics={name: Estimate(**found) for name, found in content["metrics"].items()},
        hits=content["hits"],
        chosen=content["chosen"],
    )
