"""Time of a clip against its tokens, drawn from the rows of results files."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from _speed_table import Row, by_tokens, points, rank

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = {  # colour, line
    "official": ("#7570b3", "-"),
    "padded": ("#7570b3", ":"),
    "ours": ("#d95f02", "-"),
    "ours compiled": ("#d95f02", "--"),
    "vit": ("#666666", "-"),
    "vit compiled": ("#666666", "--"),
    "floor": ("#bbbbbb", ":"),
}
NAMES = {
    "official": "VideoMamba-M, official path",
    "padded": "the same, padded to 2048",
    "ours": "VideoMamba-M, flexvideo",
    "ours compiled": "the same, compiled",
    "vit": "transformer of the same size",
    "vit compiled": "the same, compiled",
    "floor": "floor of VideoMamba-M",
}
STEPS = {"forward": "forward pass", "train": "training step"}


def draw_tokens(rows: Sequence[Row], path: Path) -> Path:
    """Draw forward pass and training step side by side, a clip above and a token below, at full batches.

    Args:
        rows: of results files.
        path: where to write; the ending chooses the format.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7.6), layout="constrained")
    grid = figure.subplots(2, 2, sharex="col")
    for column, (step, title) in enumerate(STEPS.items()):
        draw_step(rows, grid[0, column], step=step, of_a_token=False)
        draw_step(rows, grid[1, column], step=step, of_a_token=True)
        grid[0, column].set_title(title, fontsize=10)
        grid[1, column].set_xlabel("tokens a clip")
    grid[0, 0].set_ylabel("milliseconds a clip")
    grid[1, 0].set_ylabel("microseconds a token")
    grid[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=130)
    return path


def draw_step(rows: Sequence[Row], axes: "Axes", *, step: str, of_a_token: bool) -> None:
    """One line a column; of ours by backend the fastest, which is the one that `auto` takes."""
    from matplotlib.ticker import LogLocator, NullFormatter

    for column, shown in columns(rows, step).items():
        costs = by_tokens(points(rows, shown, step))
        shares = {t: 1e3 * cost / t if of_a_token else cost for t, cost in costs.items()}
        colour, line = STYLES[column]
        axes.plot(shares.keys(), shares.values(), line, marker="o", ms=3, color=colour, label=NAMES[column])
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis, subs in ((axes.xaxis, (1, 3)), (axes.yaxis, (1, 2, 5))):
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_major_formatter("{x:,.10g}")
        axis.set_minor_formatter(NullFormatter())
    axes.grid(visible=True, alpha=0.2)


def columns(rows: Sequence[Row], step: str) -> dict[str, str]:
    """Styles, with the column of the rows that each stands for."""
    names = sorted({str(row["column"]) for row in rows}, key=rank)
    backends = [
        name for name in names if name.startswith("ours ") and name not in STYLES and "graphed" not in name
    ]
    known = {name: name for name in STYLES if name in names and points(rows, name, step)}
    measured = [name for name in backends if points(rows, name, step)]
    if measured:
        known["ours"] = max(measured, key=lambda name: len(points(rows, name, step)))
    return {name: known[name] for name in STYLES if name in known}
