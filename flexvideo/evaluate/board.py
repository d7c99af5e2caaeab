"""Results side by side: by task, data set, model and cell; refused where they do not compare."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flexvideo.errors import ConfigError
from flexvideo.evaluate.bootstrap import Estimate, estimate
from flexvideo.evaluate.grid import Cell, Cost
from flexvideo.evaluate.results import CellResult, Result

Key = tuple[str, str, str]  # task, data set, model


@dataclass(frozen=True)
class Score:
    """A metric of one model at one cell.

    Args:
        value: the average over runs, in percent.
        spread: standard deviation over runs, in percent; None of a single one.
        runs: how many results of different weights there are.
    """

    value: float
    spread: float | None
    runs: int

    def __str__(self) -> str:
        return f"{self.value:.1f}" + ("" if self.spread is None else f" ± {self.spread:.1f}")


class Board:
    """Look up results by task, data set, model and cell; the orders are those in which they were given.

    Args:
        results: those of one task, data set and name are parts of the grid of a model, or, of other weights,
            its runs.
        metric: which of their metrics.

    Raises:
        ConfigError: no results, one without the metric, or two that cannot stand in one table: other clips,
            another protocol, one name for two ways to run a model, or the same cell twice.
    """

    def __init__(self, results: Sequence[Result], *, metric: str = "top1") -> None:
        if not results:
            raise ConfigError("A table needs at least one result.")
        self.metric = metric
        self.runs: dict[Key, dict[Cell, dict[str, CellResult]]] = {}
        self.models: dict[str, Result] = {}
        self._files: dict[Key, list[str]] = {}
        self._labels: dict[tuple[str, str], tuple[int, ...]] = {}
        self._ways: dict[tuple[str, str, str, Cell], tuple[object, object]] = {}
        first: dict[tuple[str, str], Result] = {}
        for result in results:
            place = (result.task, result.data)
            _require_alike(first.setdefault(place, result), result)
            self.models.setdefault(result.name, result)
            self._files.setdefault((*place, result.name), []).append(result.filename)
            self._labels[place] = result.labels
            self._add(result)
        self.places = tuple(first)
        self.tasks = tuple(dict.fromkeys(task for task, _ in first))
        self.names = tuple(self.models)
        self.reference = results[0].name

    def _add(self, result: Result) -> None:
        key = (result.task, result.data, result.name)
        cells = self.runs.setdefault(key, {})
        for cell in result.cells:
            if self.metric not in cell.metrics:
                raise ConfigError(
                    f"{result.name!r} has no metric {self.metric!r} for {result.task} on {result.data}; it "
                    f"has: {', '.join(cell.metrics)}."
                )
            there = cells.setdefault(cell.cell, {})
            way = (result.model.policy, result.model.rule)
            if self._ways.setdefault((*key, cell.cell), way) != way:
                raise ConfigError(
                    f"Results of {result.name!r} for {result.task} on {result.data} were run in different "
                    f"ways at {cell.cell}, {_told(self._ways[*key, cell.cell])} and {_told(way)}, and those "
                    "of one name are averaged: give each its own (--name)."
                )
            if result.model.weights in there:
                raise ConfigError(
                    f"Two results of {result.name!r} for {result.task} on {result.data} have the same "
                    f"weights at {cell.cell}: give one of them, or another name (--name)."
                )
            there[result.model.weights] = cell

    def cells(self, task: str, data: str, name: str | None = None) -> list[Cell]:
        """Cells of one model, or of all, sorted."""
        found = (self.runs.get((task, data, each), {}) for each in ((name,) if name else self.names))
        return sorted(
            {cell for cells in found for cell in cells}, key=lambda c: (c.patch or 0, c.frames, c.size)
        )

    def sets(self, task: str) -> list[str]:
        """Data sets of a task."""
        return [data for other, data in self.places if other == task]

    def sizes(self, task: str) -> list[int]:
        """Frame sizes of a task, over all data sets and models."""
        return sorted({cell.size for data in self.sets(task) for cell in self.cells(task, data)})

    def lines(self, task: str, data: str, name: str | None = None) -> list[tuple[int | None, int]]:
        """Pairs of patch and frame count of one model, or of all."""
        return list(dict.fromkeys((cell.patch, cell.frames) for cell in self.cells(task, data, name)))

    def score(self, task: str, data: str, name: str, cell: Cell) -> Score | None:
        """A metric in percent; None where it was not measured."""
        found = self._found(task, data, name, cell)
        if not found:
            return None
        values = [100 * each.metrics[self.metric].value for each in found]
        return Score(fmean(values), stdev(values) if len(values) > 1 else None, len(values))

    def averaged(self, task: str) -> list[tuple[str, str, int, list[str]]]:
        """Of a task, where several runs stand in a cell: model, data set, how many at most, and the files."""
        found = []
        for key, cells in self.runs.items():
            most = max(map(len, cells.values()))
            if key[0] == task and most > 1:
                found.append((key[2], key[1], most, self._files[key]))
        return found

    def cost(self, task: str, data: str, name: str, cell: Cell) -> Cost | None:
        """What a cell costs; None where it was not measured."""
        found = self._found(task, data, name, cell)
        return found[0].cost if found else None

    def difference(self, task: str, data: str, name: str, reference: str, cell: Cell) -> Estimate | None:
        """How many points of top-1 a model is above another, query by query, with its interval.

        Of several runs, each query counts by the part of them that were right. With the metric "balanced" the
        classes weigh alike.
        """
        one, other = (self._found(task, data, each, cell) for each in (name, reference))
        if not one or not other:
            return None
        labels = torch.tensor(self._labels[task, data]) if self.metric == "balanced" else None
        found = estimate(_right(one) - _right(other), labels=labels)
        return Estimate(100 * found.value, 100 * found.low, 100 * found.high)

    def _found(self, task: str, data: str, name: str, cell: Cell) -> list[CellResult]:
        return list(self.runs.get((task, data, name), {}).get(cell, {}).values())


def _right(found: list[CellResult]) -> Float[Tensor, " n"]:
    hits = [torch.tensor([hit == "1" for hit in each.hits], dtype=torch.float64) for each in found]
    return torch.stack(hits).mean(0)


def _told(way: tuple[object, object]) -> str:
    return f"policy {way[0]} with rule {way[1]}"


def _require_alike(one: Result, other: Result) -> None:
    where = f"{one.name!r} and {other.name!r} for {one.task} on {one.data}"
    if (one.queries.digest, one.labels) != (other.queries.digest, other.labels):
        raise ConfigError(
            f"{where} were measured on other clips ({len(one.labels):,} of {one.queries.split} and "
            f"{len(other.labels):,} of {other.queries.split}), so they cannot stand in one table."
        )
    galleries = [each.gallery and (each.gallery.digest, each.searched) for each in (one, other)]
    if galleries[0] != galleries[1]:
        raise ConfigError(
            f"{where} searched or learnt from other clips ({one.searched:,} and {other.searched:,}), so they "
            "cannot stand in one table."
        )
    for key in {**one.protocol, **other.protocol}:
        if one.protocol.get(key) != other.protocol.get(key):
            path, first, second = _differing(key, one.protocol.get(key), other.protocol.get(key))
            raise ConfigError(
                f"{where} differ in {path} ({first} and {second}), so they cannot stand in one table: give "
                f"either {one.filename} or {other.filename}."
            )


def _differing(path: str, one: Any, other: Any) -> tuple[str, Any, Any]:
    """The first place where two differ, within what holds others, and what is there."""
    if isinstance(one, dict) and isinstance(other, dict):
        key = next(key for key in {**one, **other} if one.get(key) != other.get(key))
        return _differing(f"{path}: {key}", one.get(key), other.get(key))
    return path, one, other
