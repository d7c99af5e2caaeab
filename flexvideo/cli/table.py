"""The command that shows results side by side: `table`."""

import argparse
import os
from pathlib import Path

from flexvideo.cli.shared import Commands, Options, command, name
from flexvideo.errors import ConfigError
from flexvideo.evaluate import load_result
from flexvideo.evaluate.render import FORMATS
from flexvideo.evaluate.tables import SHAPES
from flexvideo.output import require_folder

TABLE = """\
Show results side by side: tables in the shapes of the paper's, and figures.
The first model given is the one that others are compared with. Shapes: geometry (its Table 1: T x R), tasks
(Table 2: probing and fine-tuning), models (Table 3: data sets), differences (points above the first model
with 95 % intervals), costs (tokens and GFLOPs), cells (everything, for a spreadsheet)."""


def add(commands: Commands) -> None:
    """Register the command."""
    example = "flexvideo table results/*.json --shape differences --figures figures/"
    _arguments(command(commands, "table", _table, TABLE, example=example))


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", nargs="+", type=name, metavar="RESULT", help="files that the others wrote")
    parser.add_argument("--shape", choices=list(SHAPES), default="geometry", help="default: %(default)s")
    parser.add_argument(
        "--metric", default="top1", help="top1, balanced, mAP, R@5, ... (default: %(default)s)"
    )
    parser.add_argument("--format", choices=list(FORMATS), default="md", help="default: %(default)s")
    parser.add_argument(
        "--figures", type=name, metavar="DIR", help="draw sizes.png, tokens.png and grid.png here"
    )


def _table(options: Options) -> None:
    if folder := next(filter(os.path.isdir, options.results), None):
        raise ConfigError(f"{folder} is a folder: give the results in it, {Path(folder) / '*.json'}.")
    results = [load_result(path) for path in options.results]
    tables = SHAPES[options.shape](results, metric=options.metric)
    print("\n\n".join(FORMATS[options.format](table) for table in tables))
    if options.figures:
        from flexvideo.evaluate.figures import plot_heat_maps, plot_sizes, plot_tokens

        folder = require_folder(options.figures)
        for draw, file in (
            (plot_sizes, "sizes.png"),
            (plot_tokens, "tokens.png"),
            (plot_heat_maps, "grid.png"),
        ):
            print(f"figure: {draw(results, folder / file, metric=options.metric)}")
