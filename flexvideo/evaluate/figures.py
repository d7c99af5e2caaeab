"""Figures drawn from results: the paper's Figure 3, accuracy against tokens, heat maps over T x R."""

from collections.abc import Sequence
from pathlib import Path
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


def plot_sizes(results: Sequence[Result], path: str | Path, *, metric: str = "top1") -> Path:
    """Draw a metric over frame sizes: a panel for each data set, a line for each model and frame count.

    The line of the frame count that does best on average is drawn bold for each model; the paper's Figure 3.

    Args:
        results: of one task; of several the first.
        path: its ending chooses the format (".png", ".pdf", ".svg").
        metric: which of their metrics.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ConfigError: results that cannot stand in one figure.
    """
    board, figure, panels = _panels(results, metric)
    counts = sorted({frames for task, data in board.places for _, frames in board.lines(task, data)})
    for data, axes in panels:
        for name, colour in zip(board.names, _cycle(_COLOURS, len(board.names)), strict=True):
            lines = _lines(board, board.tasks[0], data, name)
            best = max(
                lines, key=lambda frames: sum(y for _, y in lines[frames]) / len(lines[frames]), default=0
            )
            for frames, points in lines.items():
                bold = frames == best
                axes.plot(
                    *zip(*points, strict=True),
                    color=colour,
                    marker=_MARKERS[counts.index(frames) % len(_MARKERS)],
                    markersize=5,
                    linewidth=2.4 if bold else 1.0,
                    alpha=1.0 if bold else 0.45,
                    label=f"{name}, T = {frames}",
                )
        sizes = board.sizes(board.tasks[0])
        axes.set_xticks(sizes, [str(size) for size in sizes], fontsize=8)
        axes.set_xlabel("frame size (px)")
    return _save(figure, panels[0][1], path, columns=len(board.names))


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
        for name, colour in zip(board.names, _cycle(_COLOURS, len(board.names)), strict=True):
            found = [
                (board.cost(task, data, name, cell), board.score(task, data, name, cell))
                for cell in board.cells(task, data, name)
            ]
            points = sorted((cost.tokens, score.value) for cost, score in found if cost and score)
            if points:
                x, y = zip(*points, strict=True)
                axes.plot(x, y, "o", color=colour, markersize=5, alpha=0.6, label=name)
                running = [max(y[: n + 1]) for n in range(len(y))]
                axes.step(x, running, where="post", color=colour, linewidth=1.6)
        axes.set_xscale("log")
        axes.set_xlabel("tokens of a clip")
    return _save(figure, panels[0][1], path, columns=min(4, len(board.names)))


def plot_heat_maps(results: Sequence[Result], path: str | Path, *, metric: str = "top1") -> Path:
    """Draw a metric over T x R: a row of panels for each data set, a panel for each model, on one scale.

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
    sets = board.sets(task)
    counts = sorted({frames for data in sets for _, frames in board.lines(task, data)})
    width, height = 0.62 * len(sizes) + 1.1, 0.52 * len(counts) + 1.0
    figure = Figure(figsize=(width * len(board.names) + 0.8, height * len(sets) + 0.5), layout="constrained")
    panels = figure.subplots(len(sets), len(board.names), squeeze=False)
    for data, row in zip(sets, panels, strict=True):
        tables = [_table(board, task, data, name, counts, sizes) for name in board.names]
        known = [value for table in tables for line in table for value in line if value is not None]
        for name, table, axes in zip(board.names, tables, row, strict=True):
            _heat_map(axes, table, counts, sizes, (min(known), max(known)))
            axes.set_title(name, fontsize=10)
            if axes is row[0]:
                axes.set_ylabel(f"{data}\nframes T")
    figure.suptitle(f"{TASKS.get(task, task)}: {metric} (%)", fontsize=11)
    figure.savefig(path, dpi=130)
    return Path(path)


def _heat_map(
    axes: "Axes",
    table: list[list[float | None]],
    counts: list[int],
    sizes: list[int],
    scale: tuple[float, float],
) -> None:
    shown = [[float("nan") if value is None else value for value in line] for line in table]
    axes.imshow(shown, cmap="viridis", vmin=scale[0], vmax=scale[1], aspect="auto")
    axes.set_xticks(range(len(sizes)), [str(size) for size in sizes], fontsize=8)
    axes.set_yticks(range(len(counts)), [str(count) for count in counts], fontsize=8)
    axes.set_xlabel("frame size (px)", fontsize=9)
    for row, line in enumerate(table):
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


def _table(
    board: Board, task: str, data: str, name: str, counts: list[int], sizes: list[int]
) -> list[list[float | None]]:
    lines = {frames: dict(points) for frames, points in _lines(board, task, data, name).items()}
    return [[lines.get(count, {}).get(size) for size in sizes] for count in counts]


def _save(figure: "Figure", axes: "Axes", path: str | Path, *, columns: int) -> Path:
    """Write a figure with one legend below all panels."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, columns), fontsize=8)
    figure.savefig(path, dpi=130)
    return Path(path)


def _cycle(items: Sequence[str], count: int) -> list[str]:
    return [items[n % len(items)] for n in range(count)]
