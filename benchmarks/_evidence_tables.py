"""Tables and figures of the evidence run, from its result files alone."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from _evidence_arms import (
    ALIKE,
    DISTILLED,
    LONGER,
    NATIVE,
    OWN_OFTEN,
    PAPER_RULE,
    PER_LENGTH,
    RESIZED,
    SEVERAL,
    TASKS,
    ZERO_SHOT,
)
from _evidence_scale import Kind, Scale

from flexvideo.evaluate import Cell, Result, load_result
from flexvideo.evaluate.board import Board
from flexvideo.evaluate.figures import plot_heat_maps, plot_sizes, plot_tokens
from flexvideo.evaluate.render import markdown
from flexvideo.evaluate.tables import Table, cost_tables, difference_tables, geometry_tables

ROWS = (
    *(RESIZED, NATIVE, ZERO_SHOT, PER_LENGTH, "vanilla, a quarter of the epochs"),
    *("temporal", "static-patch", "static-tokens", "flexivit", "flex-all", "static-tokens, equal tokens"),
    *(OWN_OFTEN, PAPER_RULE, SEVERAL, DISTILLED, ALIKE, LONGER),
    *("vanilla, from scratch", "static-tokens, from scratch"),
)
_SHOWN = (RESIZED, NATIVE, ZERO_SHOT, "temporal", "static-patch", "static-tokens", "flexivit", "flex-all")


def results(out: Path, kind: str, task: str, rows: tuple[str, ...] = ROWS) -> list[Result]:
    """Results of a kind and a task, in the order of the table."""
    found = [load_result(path) for path in sorted(out.glob(f"{kind}-*-{task}.json"))]
    return sorted((each for each in found if each.name in rows), key=lambda each: rows.index(each.name))


def print_tables(out: Path, scale: Scale) -> None:
    for kind in scale.kinds:
        for task in TASKS:
            found = results(out, kind.name, task)
            if not found:
                continue
            tables = [summary(found, scale, kind), *geometry_tables(found)]
            tables += difference_tables(found) if len({each.name for each in found}) > 1 else []
            tables += cost_tables(found) if task == TASKS[0] else []
            print("\n\n".join(map(markdown, tables)), end="\n\n")


def summary(found: Sequence[Result], scale: Scale, kind: Kind) -> Table:
    """One line a row: averages over seen, unseen and further cells, and how often vanilla is better."""
    board, (task, data) = Board(found), (found[0].task, found[0].data)
    grid = [cell for cell in scale.grid(kind) if cell not in kind.beyond]
    own = Cell(scale.model["num_frames"], scale.model["img_size"])
    parts = {
        "own size": [own],
        "seen": [cell for cell in grid if scale.seen(cell, kind)],
        "unseen": [cell for cell in grid if not scale.seen(cell, kind)],
        "beyond": list(kind.beyond),
        "grid": grid,
    }
    lines = []
    for name in board.names:
        gains = [board.difference(task, data, name, board.reference, cell) for cell in grid]
        known = [gain for gain in gains if gain]
        lines.append(
            (
                name,
                str(max(len(runs) for runs in board.runs[task, data, name].values())),
                *(_mean(board, task, data, name, cells) for cells in parts.values()),
                f"{fmean(gain.value for gain in known):+.1f}" if known else "-",
                f"{sum(gain.low > 0 for gain in known)} / {sum(gain.high < 0 for gain in known)}",
            )
        )
    columns = ("Model", "Runs", *parts, "points above vanilla", "cells better / worse")
    note = (
        f"Cells of the {len(grid)}: {len(parts['seen'])} are drawn by flexible training (frames "
        f"{', '.join(map(str, kind.lengths))}; pixels {', '.join(map(str, scale.drawn))}). Better and worse "
        "are cells whose 95 % interval of the difference to vanilla, over queries, leaves out 0."
    )
    return Table(f"{data}, {task}: top-1 in %, averages over cells", columns, tuple(lines), notes=(note,))


def _mean(board: Board, task: str, data: str, name: str, cells: Sequence[Cell]) -> str:
    scores = [board.score(task, data, name, cell) for cell in cells]
    values = [score.value for score in scores if score]
    return f"{fmean(values):.1f}" if len(values) == len(cells) else "-"


def draw_figures(out: Path) -> None:
    for task in TASKS:
        found = [each for kind in ("short", "long") for each in results(out, kind, task, _SHOWN)]
        if found:
            plot_sizes(found, out / f"{task}-sizes.png")
            plot_tokens(found, out / f"{task}-tokens.png")
            plot_heat_maps(found, out / f"{task}-heat.png")
