"""Tables in the shapes of the paper's, drawn from results and nothing else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flexvideo.errors import ConfigError
from flexvideo.evaluate.board import Board, Score
from flexvideo.evaluate.grid import Cell, Cost
from flexvideo.evaluate.results import Result

USUAL = Cell(16, 224)  # at which the paper probes and fine-tunes
_NONE = "-"
TASKS = {
    "retrieval": "Video retrieval",
    "knn": "Nearest neighbours",
    "probe": "Linear probing",
    "accuracy": "Classification",
    "finetune": "Full fine-tuning",
}


@dataclass(frozen=True)
class Table:
    """Text in rows and columns.

    Args:
        title: one line.
        columns: their headings.
        rows: as long as there are columns; an empty first entry goes on with the one above.
        best: (row, column) of what is printed bold.
        notes: lines below.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: frozenset[tuple[int, int]] = frozenset()
    notes: tuple[str, ...] = ()


def geometry_tables(results: Sequence[Result], *, metric: str = "top1") -> list[Table]:
    """One table a task: frame sizes as columns, frame counts and models as rows; the paper's Table 1.

    The first model is the one that the others are compared with.

    Args:
        results: of one or more models and data sets.
        metric: which of their metrics.

    Raises:
        ConfigError: results that cannot stand in one table.
    """
    board = Board(results, metric=metric)
    return [_geometry_table(board, task) for task in board.tasks]


def _geometry_table(board: Board, task: str) -> Table:
    sizes = board.sizes(task)
    rows: list[tuple[str, ...]] = []
    best: set[tuple[int, int]] = set()
    for data in board.sets(task):
        title = data
        for patch, frames in board.lines(task, data):
            lines = [
                (name, [board.score(task, data, name, Cell(frames, size, patch)) for size in sizes])
                for name in board.names
            ]
            lines = [(name, line) for name, line in lines if any(line)]
            best |= {(len(rows) + row, 3 + column) for row, column in _best([line for _, line in lines])}
            reference = dict(lines).get(board.reference, [None] * len(sizes))
            for name, line in lines:
                gain = _NONE if name == board.reference else _mean_gain(line, reference)
                gains = (gain,) if len(board.names) > 1 else ()
                rows.append((title, name, _frames(frames, patch), *map(_shown, line), *gains))
                title = ""
    columns = ("Data set", "Model", "T", *(f"{size} px" for size in sizes))
    shown = f"{TASKS.get(task, task)}, {board.metric} in %, over frame counts T and frame sizes"
    if not board.names[1:]:
        return Table(shown, columns, tuple(rows), frozenset(best), _run_notes(board, task))
    note = f"Avg. Δ: points above {board.reference}, averaged over the sizes that both have."
    return Table(shown, (*columns, "Avg. Δ"), tuple(rows), frozenset(best), (note, *_run_notes(board, task)))


def difference_tables(results: Sequence[Result], *, metric: str = "top1") -> list[Table]:
    """One table a task: points of top-1 above the first model, query by query, with 95 % intervals.

    Args:
        results: of two or more models.
        metric: "top1" or "balanced".

    Raises:
        ConfigError: as for `geometry_tables`; a single model; another metric.
    """
    board = Board(results, metric=metric)
    if metric not in ("top1", "balanced"):
        raise ConfigError(f"Differences are kept query by query for top1 and balanced, not for {metric!r}.")
    if len(board.names) == 1:
        raise ConfigError(
            f"There is a single model, {board.reference!r}: give results of another one too, of another name "
            "(--name), for those of one name are averaged as its runs."
        )
    return [_difference_table(board, task) for task in board.tasks]


def _difference_table(board: Board, task: str) -> Table:
    sizes, reference = board.sizes(task), board.reference
    rows = []
    for data in board.sets(task):
        for patch, frames in board.lines(task, data):
            for name in board.names[1:]:
                gains = (board.difference(task, data, name, reference, Cell(frames, r, patch)) for r in sizes)
                texts = (f"{g.value:+.1f} [{g.low:+.1f}, {g.high:+.1f}]" if g else _NONE for g in gains)
                rows.append((data, name, _frames(frames, patch), *texts))
    columns = ("Data set", "Model", "T", *(f"{size} px" for size in sizes))
    title = f"{TASKS.get(task, task)}: points of {board.metric} above {reference}, 95 % interval over queries"
    return Table(title, columns, tuple(rows))


def task_tables(results: Sequence[Result], *, metric: str = "top1") -> list[Table]:
    """Models as rows, tasks and data sets as columns, at 16 frames of 224 px; the paper's Table 2.

    Results of a single other cell are taken at that.

    Args:
        results: of one or more models, tasks and data sets.
        metric: which of their metrics.

    Raises:
        ConfigError: as for `geometry_tables`; a grid without 16 frames of 224 px.
    """
    board = Board(results, metric=metric)
    cells = [_usual(board, *place) for place in board.places]
    places = list(zip(board.places, cells, strict=True))
    lines = [[board.score(*place, name, cell) for place, cell in places] for name in board.names]
    rows = []
    for name, line in zip(board.names, lines, strict=True):
        gains = [
            f" ({score.value - first.value:+.1f})" if score and first and line is not lines[0] else ""
            for score, first in zip(line, lines[0], strict=True)
        ]
        rows.append((name, *(_shown(score) + gain for score, gain in zip(line, gains, strict=True))))
    columns = ("Model", *(f"{TASKS.get(task, task)}: {data}" for task, data in board.places))
    title = f"{metric} in % at {', '.join(map(str, dict.fromkeys(cells)))} (frames x pixels)"
    return [Table(title, columns, tuple(rows), _best(lines, 1), _run_notes(board, *board.tasks))]


def _usual(board: Board, task: str, data: str) -> Cell:
    cells = board.cells(task, data)
    if USUAL in cells or len(cells) == 1:
        return USUAL if USUAL in cells else cells[0]
    raise ConfigError(
        f"The results of {task} on {data} have {len(cells)} cells and {USUAL} is not among them: give "
        "results of a single cell."
    )


def model_tables(results: Sequence[Result], *, metric: str = "top1") -> list[Table]:
    """One table a task: models as rows, data sets as columns, each at its best cell; the paper's Table 3.

    Args:
        results: of one or more models and data sets.
        metric: which of their metrics.

    Raises:
        ConfigError: as for `geometry_tables`.
    """
    board = Board(results, metric=metric)
    return [_model_table(board, task) for task in board.tasks]


def _model_table(board: Board, task: str) -> Table:
    rows, lines = [], []
    for name in board.names:
        tops = [_top(board, task, data, name) for data in board.sets(task)]
        texts = (_NONE if top is None else f"{top[0]} ({top[1]})" for top in tops)
        values = [top[0].value for top in tops if top]
        average = f"{sum(values) / len(values):.1f}" if len(values) == len(tops) else _NONE
        rows.append((name, f"{board.models[name].model.parameters / 1e6:.1f} M", *texts, average))
        lines.append([top and top[0] for top in tops])
    note = "Every model is shown at its best cell (in brackets), chosen on the queries themselves."
    columns = ("Model", "Parameters", *board.sets(task), "Average")
    title = f"{TASKS.get(task, task)}, {board.metric} in %"
    return Table(title, columns, tuple(rows), _best(lines, 2), (note, *_run_notes(board, task)))


def _top(board: Board, task: str, data: str, name: str) -> tuple[Score, Cell] | None:
    scored = [(board.score(task, data, name, cell), cell) for cell in board.cells(task, data, name)]
    return max(((s, c) for s, c in scored if s), key=lambda pair: pair[0].value, default=None)


def cost_tables(results: Sequence[Result], *, metric: str = "top1") -> list[Table]:
    """Tokens and GFLOPs of one clip: models and frame counts as rows, frame sizes as columns.

    Args:
        results: of one or more models; of several tasks and data sets the first is taken.
        metric: one that they have.
    """
    board = Board(results, metric=metric)
    (task, data), sizes = board.places[0], board.sizes(board.tasks[0])
    rows = []
    for name in board.names:
        for patch, frames in board.lines(task, data, name):
            costs = (board.cost(task, data, name, Cell(frames, size, patch)) for size in sizes)
            rows.append((name, _frames(frames, patch), *map(_cost, costs)))
    columns = ("Model", "T", *(f"{size} px" for size in sizes))
    return [Table("Tokens / GFLOPs of one clip", columns, tuple(rows))]


def cell_tables(results: Sequence[Result], *, metric: str = "top1") -> list[Table]:
    """Everything that was measured, one line a metric: for spreadsheets and plots of one's own.

    Args:
        results: any.
        metric: not looked at: all are listed.
    """
    columns = (
        *("task", "data", "split", "fold", "model", "weights", "policy", "rule", "frames", "size", "patch"),
        *("tokens", "gflops", "metric", "value", "low", "high", "queries"),
    )
    rows = []
    for result in results:
        model, rule = result.model, result.model.rule or {}
        head = (result.task, result.data, result.queries.split, result.queries.fold or "", result.name)
        head += (model.weights[:12], (model.policy or {}).get("name", "plain"), str(rule.get("kernel", "")))
        for cell in result.cells:
            cost = cell.cost
            where = (str(cell.cell.frames), str(cell.cell.size), "x".join(map(str, cost.patch)))
            where += (str(cost.tokens), "" if cost.gflops is None else f"{cost.gflops:.3f}")
            for name, found in cell.metrics.items():
                values = (f"{found.value:.6f}", f"{found.low:.6f}", f"{found.high:.6f}")
                rows.append((*head, *where, name, *values, str(len(result.labels))))
    return [Table("Results", columns, tuple(rows))]


def _best(lines: Sequence[Sequence[Score | None]], offset: int = 0) -> frozenset[tuple[int, int]]:
    """Places of the highest scores of each column, where there are several rows."""
    found: set[tuple[int, int]] = set()
    for column, scores in enumerate(zip(*lines, strict=True)):
        top = max((score.value for score in scores if score), default=None)
        found |= {(row, column + offset) for row, s in enumerate(scores) if s and s.value == top}
    return frozenset(found) if len(lines) > 1 else frozenset()


def _mean_gain(line: Sequence[Score | None], reference: Sequence[Score | None]) -> str:
    """Average points above a reference, over the cells that both have."""
    gains = [a.value - b.value for a, b in zip(line, reference, strict=True) if a and b]
    return f"{sum(gains) / len(gains):+.1f}" if gains else _NONE


def _shown(score: Score | None) -> str:
    return _NONE if score is None else str(score)


def _frames(frames: int, patch: int | None) -> str:
    return f"{frames}" if patch is None else f"{frames}, p = {patch}"


def _cost(cost: Cost | None) -> str:
    if cost is None:
        return _NONE
    return f"{cost.tokens:,} / {'?' if cost.gflops is None else f'{cost.gflops:.1f}'}"


def _run_notes(board: Board, *tasks: str) -> tuple[str, ...]:
    """What was averaged, for results of one name may be of other recipes than one."""
    return tuple(
        f"{name} on {data}: mean ± standard deviation over {most} runs, of {', '.join(files)}."
        for task in tasks
        for name, data, most, files in board.averaged(task)
    )


SHAPES: dict[str, Callable[..., list[Table]]] = {
    "geometry": geometry_tables,
    "differences": difference_tables,
    "tasks": task_tables,
    "models": model_tables,
    "costs": cost_tables,
    "cells": cell_tables,
}
