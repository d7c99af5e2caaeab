"""Figures drawn from results: the paper's Figure 3, accuracy against tokens, heat maps over T x R."""

import math
from collections.abc import Sequence
from itertools import accumulate, cycle
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from flexvideo.evaluate.board import Board
from flexvideo.evaluate.results import Result
from flexvideo.evaluate.tables import TASKS
from flexvideo.plots import require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Eight that differ in lightness as well as in hue, told apart by colour-blind readers too (Okabe and Ito).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_PANEL = (4.6, 3.6)  # inches
_IN_A_ROW = 4  # heat maps
_LABELS = 7  # of a logarithmic axis


def plot_sizes(results: Sequence[Result], path: str | Path, *, metric: str = "top1") -> Path:
    """Draw a metric over frame sizes: a panel for each data set, a line for each model and frame count.

    Of each model the frame count that does best on average is drawn bold; the paper's Figure 3.

    Args:
        results: of one task; of several the first.
        path: its ending chooses the format (".png", ".pdf", ".svg").
        metric: which of their metrics.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ConfigError: results that cannot stand in one figure.
    """
    board, figure, panels = _panels(results, metric)
    task, sizes = board.tasks[0], board.sizes(board.tasks[0])
    counts = sorted({frames for data in board.sets(task) for _, frames in board.lines(task, data)})
    for data, axes in panels:
        for name, colour in _coloured(board):
            lines = _lines(board, task, data, name)
            best = max(lines, key=lambda frames: fmean(y for _, y in lines[frames]), default=None)
            for frames, points in lines.items():
                bold = frames == best
                axes.plot(
                    [sizes.index(size) for size, _ in points],
                    [value for _, value in points],
                    color=colour,
                    marker=_marker(counts, frames),
                    markersize=5,
                    linewidth=2.4 if bold else 1.0,
                    alpha=1.0 if bold else 0.45,
                )
        axes.set_xticks(range(len(sizes)), [str(size) for size in sizes], fontsize=9)
        axes.set_xlabel("frame size (px)")
    for name, colour in _coloured(board):
        panels[0][1].plot([], [], color=colour, linewidth=2.4, label=name)
    for frames in counts:
        panels[0][1].plot([], [], color="grey", marker=_marker(counts, frames), label=f"T = {frames}")
    return _save(figure, panels[0][1], path)


def plot_tokens(results: Sequence[Result], path: str | Path, *, metric: str = "top1") -> Path:
    """Draw a metric against the tokens of a clip: a panel for each data set, a point for each cell.

    A line joins what is best at or below a number of tokens.

    Args:
        results: as for `plot_sizes`.
        path: as for `plot_sizes`.
        metric: which of their metrics.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ConfigError: results that cannot stand in one figure.
    """
    board, figure, panels = _panels(results, metric)
    task = board.tasks[0]
    for data, axes in panels:
        counts: list[int] = []
        for name, colour in _coloured(board):
            found = [
                (board.cost(task, data, name, cell), board.score(task, data, name, cell))
                for cell in board.cells(task, data, name)
            ]
            points = sorted((cost.tokens, score.value) for cost, score in found if cost and score)
            if not points:
                continue
            counts += [tokens for tokens, _ in points]
            tops = dict(points)  # of cells with the same tokens, the best comes last
            axes.plot(*zip(*points, strict=True), "o", color=colour, markersize=5, alpha=0.6)
            running = list(accumulate(tops.values(), max))
            axes.step(list(tops), running, where="post", color=colour, linewidth=1.6, label=name)
        axes.set_xscale("log")
        ticks = _apart(counts)
        axes.set_xticks(ticks, [f"{tokens:,}" for tokens in ticks], fontsize=9)
        axes.minorticks_off()
        axes.set_xlabel("tokens of a clip")
    return _save(figure, panels[0][1], path)


def plot_heat_maps(results: Sequence[Result], path: str | Path, *, metric: str = "top1") -> Path:
    """Draw a metric over T x R: rows of panels for each data set, a panel for each model, on one scale.

    Args:
        results: as for `plot_sizes`.
        path: as for `plot_sizes`.
        metric: which of their metrics.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ConfigError: results that cannot stand in one figure.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    board = Board(results, metric=metric)
    task, sizes = board.tasks[0], board.sizes(board.tasks[0])
    tables = {data: _tables(board, task, data, sizes) for data in board.sets(task)}
    columns = min(_IN_A_ROW, max(map(len, tables.values())))
    rows = [
        (data, list(found)[first : first + columns])
        for data, found in tables.items()
        for first in range(0, len(found), columns)
    ]
    heights = [0.42 * len(tables[data][names[0]]) + 1.0 for data, names in rows]
    width = (0.56 * len(sizes) + 0.6) * columns + 0.8
    figure = Figure(figsize=(width, sum(heights) + 0.4), layout="constrained")
    panels = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for (data, names), line in zip(rows, panels, strict=True):
        values = [value for table in tables[data].values() for row in table.values() for value in row]
        known = [value for value in values if value is not None]
        line[0].set_ylabel(f"{data}\nframes T")
        for axes in line[len(names) :]:
            axes.remove()
        for name, axes in zip(names, line, strict=False):
            _heat_map(axes, tables[data][name], sizes, (min(known), max(known)))
            axes.set_title(name, fontsize=10)
    figure.suptitle(f"{TASKS.get(task, task)}: {metric} (%)", fontsize=11)
    figure.savefig(path, dpi=130)
    return Path(path)


def _heat_map(
    axes: "Axes", table: dict[int, list[float | None]], sizes: list[int], scale: tuple[float, float]
) -> None:
    shown = [[float("nan") if value is None else value for value in line] for line in table.values()]
    axes.imshow(shown, cmap="viridis", vmin=scale[0], vmax=scale[1], aspect="auto")
    axes.set_xticks(range(len(sizes)), [str(size) for size in sizes], fontsize=8)
    axes.set_yticks(range(len(table)), [str(frames) for frames in table], fontsize=8)
    axes.set_xlabel("frame size (px)", fontsize=9)
    for row, line in enumerate(table.values()):
        for column, value in enumerate(line):
            dark = value is not None and value < sum(scale) / 2
            text = "-" if value is None else f"{value:.1f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color="w" if dark else "k")


def _panels(results: Sequence[Result], metric: str) -> "tuple[Board, Figure, list[tuple[str, Axes]]]":
    """An empty panel for each data set of the first task."""
    require_matplotlib()
    from matplotlib.figure import Figure

    board = Board(results, metric=metric)
    sets = board.sets(board.tasks[0])
    figure = Figure(figsize=(_PANEL[0] * len(sets), _PANEL[1] + 1.2), layout="constrained")
    panels = list(zip(sets, figure.subplots(1, len(sets), squeeze=False)[0], strict=True))
    for data, axes in panels:
        axes.set_title(data, fontsize=11)
        axes.grid(visible=True, alpha=0.25)
    panels[0][1].set_ylabel(f"{TASKS.get(board.tasks[0], board.tasks[0])}: {metric} (%)")
    return board, figure, panels


def _lines(board: Board, task: str, data: str, name: str) -> dict[int, list[tuple[int, float]]]:
    """Points over sizes for every frame count; of several patches the best counts."""
    best: dict[int, dict[int, float]] = {}
    for cell in board.cells(task, data, name):
        score = board.score(task, data, name, cell)
        assert score is not None
        line = best.setdefault(cell.frames, {})
        line[cell.size] = max(score.value, line.get(cell.size, score.value))
    return {frames: sorted(line.items()) for frames, line in best.items()}


def _tables(board: Board, task: str, data: str, sizes: list[int]) -> dict[str, dict[int, list[float | None]]]:
    """For every model that has results, and every frame count of any, the values over sizes."""
    counts = sorted({frames for _, frames in board.lines(task, data)})
    found = {name: _lines(board, task, data, name) for name in board.names}
    rows = {name: {frames: dict(points) for frames, points in lines.items()} for name, lines in found.items()}
    return {
        name: {count: [lines.get(count, {}).get(size) for size in sizes] for count in counts}
        for name, lines in rows.items()
        if lines
    }


def _save(figure: "Figure", axes: "Axes", path: str | Path) -> Path:
    """Write a figure with one legend below all panels, in as many columns as it is wide."""
    handles, labels = axes.get_legend_handles_labels()
    columns, place = min(5, len(labels)), "outside lower center"
    legend = figure.legend(handles, labels, loc=place, ncols=columns, fontsize=9)
    while columns > 1 and legend.get_window_extent().width > figure.bbox.width:
        legend.remove()
        columns -= 1
        legend = figure.legend(handles, labels, loc=place, ncols=columns, fontsize=9)
    figure.set_figheight(_PANEL[1] + 0.5 + legend.get_window_extent().height / figure.dpi)
    figure.savefig(path, dpi=130, bbox_inches="tight")  # a single name may be wider than the panels
    return Path(path)


def _apart(tokens: Sequence[int]) -> list[int]:
    """Those of some numbers that have room for their labels on a logarithmic axis, from the lowest on."""
    kept: list[int] = []
    for count in sorted(tokens):
        if not kept or math.log(count / kept[-1]) > math.log(max(tokens) / min(tokens)) / _LABELS:
            kept.append(count)
    return kept


def _coloured(board: Board) -> list[tuple[str, str]]:
    return list(zip(board.names, cycle(_COLOURS), strict=False))


def _marker(counts: Sequence[int], frames: int) -> str:
    return _MARKERS[counts.index(frames) % len(_MARKERS)]
