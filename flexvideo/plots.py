"""Pictures of results; matplotlib comes with the `plots` extra and is imported when a picture is drawn."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flexvideo.demo.grid import Cell
from flexvideo.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "temporal": "#7570b3",
    "static-patch": "#1b9e77",
    "static-tokens": "#d95f02",
    "flexivit": "#e7298a",
    "flex-all": "#66a61e",
}


def plot_grid(cells: Sequence[Cell], path: str | Path, *, title: str) -> Path:
    """Draw one heat map a policy (cosine to the base feature over T x R) above time against tokens.

    Args:
        cells: the results of `flexvideo.demo.grid.run_grid`.
        path: where to write; the ending chooses the format (".png", ".pdf", ".svg").
        title: above the picture.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    policies = list(dict.fromkeys(cell.policy for cell in cells))
    width = max(2.5 * len(policies) + 1.2, 7.0)
    figure = Figure(figsize=(width, 6.2), layout="constrained")
    figure.suptitle(title, fontsize=11)
    grid = figure.add_gridspec(
        2, len(policies) + 1, width_ratios=[1.0] * len(policies) + [0.06], height_ratios=[1, 1.25]
    )
    low = min(0.99, *(cell.cosine for cell in cells))
    maps = [figure.add_subplot(grid[0, column]) for column in range(len(policies))]
    for axes, policy in zip(maps, policies, strict=True):
        _heat_map([cell for cell in cells if cell.policy == policy], axes, low=low)
    maps[0].set_ylabel("frames T")
    label = "cosine to the feature at\nthe model's own size (p: patch)"
    figure.colorbar(maps[0].images[0], cax=figure.add_subplot(grid[0, -1]), label=label)
    _cost(cells, figure.add_subplot(grid[1, :]))
    figure.savefig(path, dpi=130)
    return Path(path)


def require_matplotlib() -> None:
    """Say that pictures cannot be drawn before the work for one is done.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError(
            "A picture needs matplotlib, which is not installed: pip install 'flexvideo[plots]'."
        )


def _heat_map(cells: Sequence[Cell], axes: "Axes", *, low: float) -> None:
    frames = sorted({cell.frames for cell in cells})
    sizes = sorted({cell.size for cell in cells})
    values = {(cell.frames, cell.size): cell for cell in cells}
    table = [[values[t, r].cosine for r in sizes] for t in frames]
    axes.imshow(table, cmap="viridis", vmin=low, vmax=1.0, aspect="auto")
    axes.set_title(cells[0].policy, fontsize=10)
    axes.set_xticks(range(len(sizes)), [str(r) for r in sizes])
    axes.set_yticks(range(len(frames)), [str(t) for t in frames])
    axes.set_xlabel("frame side R (px)")
    middle = (low + 1) / 2
    for row, t in enumerate(frames):
        for column, r in enumerate(sizes):
            cell = values[t, r]
            colour = "black" if cell.cosine > middle else "white"
            label = f"{cell.cosine:.2f}\np {cell.patch}"
            axes.text(column, row, label, ha="center", va="center", fontsize=8, color=colour)


def _cost(cells: Sequence[Cell], axes: "Axes") -> None:
    for policy in dict.fromkeys(cell.policy for cell in cells):
        points = sorted((cell.tokens, cell.milliseconds) for cell in cells if cell.policy == policy)
        tokens, milliseconds = zip(*points, strict=True)
        axes.plot(tokens, milliseconds, "o", ms=6, alpha=0.75, color=COLOURS[policy], label=policy)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("tokens a clip")
    axes.set_ylabel("forward pass (ms)")
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend(ncols=5, loc="upper left", fontsize=9)
