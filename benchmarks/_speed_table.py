"""The table, the targets and what follows from the figures, made of the rows of results files alone."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from _speed_plan import LONG, SWEEP

Row = dict[str, object]
ORDER = (
    "official",
    "padded",
    "ours",
    "ours compiled",
    "ours graphed",
    "vit",
    "vit compiled",
    "vit graphed",
    "floor",
)


@dataclass(frozen=True)
class Target:
    """A time, and a memory, that some column of ours should not exceed."""

    name: str
    what: str
    batch: int
    step: str
    milliseconds: float
    gib: float | None = None


TARGETS = (
    Target("scan forward, both directions, batch 16", "scan", 16, "forward", 0.85),
    Target("scan backward, both directions, batch 16", "scan", 16, "backward", 4.0),
    Target("scan forward, both directions, batch 1", "scan", 1, "forward", 0.14),
    Target("VideoMamba-M forward, 16 x 224, batch 16", "middle", 16, "forward", 55),
    Target("VideoMamba-M train step, 16 x 224, batch 16", "middle", 16, "train", 250, 16),
    Target("VideoMamba-M forward, 16 x 224, batch 1", "middle", 1, "forward", 7),
)
FLAT = 0.15
FILLS = 50_000  # tokens of one clip from which on it needs no others beside it
CROSSINGS = {"forward": 5000, "train": 9000}  # tokens from which VideoMamba-M should beat the transformer


def load_rows(paths: Iterable[Path]) -> list[Row]:
    """Rows of several files; of the same case the last counts."""
    rows: dict[tuple[object, ...], Row] = {}
    for path in paths:
        for row in json.loads(path.read_text())["rows"]:
            rows[tuple(row[name] for name in ("what", "frames", "size", "batch", "column", "step"))] = row
    return list(rows.values())


def print_report(rows: Sequence[Row]) -> None:
    """Everything that follows from the rows, as Markdown."""
    print()
    for part in (table(rows), errors(rows), targets(rows), costs(rows), crossings(rows)):
        if part:
            print("\n".join(part), end="\n\n")


def table(rows: Sequence[Row]) -> list[str]:
    """Milliseconds, and the peak of GiB of a training step; a line a clip and step, a column a column."""
    columns = sorted(dict.fromkeys(str(row["column"]) for row in rows), key=rank)
    lines: dict[tuple[object, ...], dict[str, str]] = {}
    for row in sorted(rows, key=lambda row: str(row["what"]) in ("tiny", "small")):
        key = (row["what"], row["frames"], row["size"], row["batch"], row["tokens"], row["step"])
        lines.setdefault(key, {})[str(row["column"])] = text(row)
    head = ["what", "clip", "batch", "tokens", "step", *columns]
    body = [
        [what, f"{frames} x {size}", batch, tokens, step, *(cells.get(column, "") for column in columns)]
        for (what, frames, size, batch, tokens, step), cells in lines.items()
    ]
    return markdown(head, body)


def rank(column: str) -> int:
    """Where a column stands: those of ours by a backend before the compiled and the graphed one."""
    return ORDER.index(column) if column in ORDER else ORDER.index("ours")


def text(row: Row) -> str:
    if "error" in row:
        return "OOM" if row["error"] == "out of memory" else "error"
    peak = row["peak_gib"]
    memory = f" ({peak:.1f} GiB)" if row["step"] == "train" and peak is not None else ""
    return f"{number(row, 'ms'):.{2 if number(row, 'ms') < 10 else 1}f}{memory}"


def number(row: Row, name: str) -> float:
    value = row[name]
    assert isinstance(value, int | float)
    return value


def markdown(head: Sequence[object], body: Sequence[Sequence[object]]) -> list[str]:
    """A table whose columns stand below each other."""
    cells = [[str(cell) for cell in line] for line in (head, *body)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in cells]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def errors(rows: Sequence[Row]) -> list[str]:
    """What the cells without a figure say, the columns of the same message together."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if "error" in row:
            name = (
                f"{row['column']} ({row['what']} {row['frames']}x{row['size']}x{row['batch']} {row['step']})"
            )
            found.setdefault(str(row["error"]), []).append(name)
    return [f"- {error}: {', '.join(names)}" for error, names in found.items()]


def measured(rows: Sequence[Row], what: str, step: str, size: int = 224) -> list[Row]:
    return [
        row
        for row in rows
        if row["what"] == what and row["step"] == step and row["size"] == size and "ms" in row
    ]


def ours(row: Row) -> bool:
    return str(row["column"]).startswith("ours")


def targets(rows: Sequence[Row]) -> list[str]:
    """Each target with our fastest column that was measured for it."""
    body = []
    for target in TARGETS:
        steps = (target.step, f"{target.step} graphed")
        found = [row for step in steps for row in measured(rows, target.what, step)]
        found = [row for row in found if ours(row) and (row["frames"], row["batch"]) == (16, target.batch)]
        if found:
            body.append(verdict(target, min(found, key=lambda row: number(row, "ms"))))
    return markdown(["target", "limit", "measured", "column", "met"], body) if body else []


def verdict(target: Target, row: Row) -> list[object]:
    """A line of the targets."""
    met = number(row, "ms") <= target.milliseconds
    limit, value = f"{target.milliseconds:g} ms", f"{number(row, 'ms'):.3g} ms"
    if target.gib is not None and row["peak_gib"] is not None:
        met = met and number(row, "peak_gib") <= target.gib
        limit, value = f"{limit}, {target.gib:g} GiB", f"{value}, {number(row, 'peak_gib'):.1f} GiB"
    column = row["column"] if row["step"] == target.step else f"{row['column']}, as a graph"
    return [target.name, limit, value, column, "yes" if met else "no"]


def costs(rows: Sequence[Row]) -> list[str]:
    """Microseconds a token of longer and longer clips, frames x batch constant."""
    found: dict[str, dict[int, float]] = {}
    for row in measured(rows, "middle", "forward"):
        frames, batch = number(row, "frames"), number(row, "batch")
        if frames in SWEEP and frames * batch == LONG:
            cost = 1e3 * number(row, "ms") / (batch * number(row, "tokens"))
            found.setdefault(str(row["column"]), {})[int(number(row, "tokens"))] = cost
    lengths = sorted({tokens for costs in found.values() for tokens in costs})
    body = [
        [column, *(f"{costs[t]:.3f}" if t in costs else "" for t in lengths), f"{spread(costs.values()):.0%}"]
        for column, costs in sorted(found.items(), key=lambda item: rank(item[0]))
    ]
    head = ["us a token, forward", *lengths, f"spread (limit {FLAT:.0%})"]
    return markdown(head, body) if body else []


def spread(values: Iterable[float]) -> float:
    """How much the largest is above the smallest."""
    known = list(values)
    return max(known) / min(known) - 1


def crossings(rows: Sequence[Row]) -> list[str]:
    """From how many tokens on each of our columns beats the transformer, eager against eager."""
    lines = []
    for step, limit in CROSSINGS.items():
        for column in sorted({str(row["column"]) for row in rows if ours(row)} - {"ours graphed"}):
            rival = "vit compiled" if column == "ours compiled" else "vit"
            mine, theirs = (points(rows, name, step) for name in (column, rival))
            ratios = by_tokens({key: mine[key] / theirs[key] for key in mine.keys() & theirs.keys()})
            if len(ratios) > 1:
                shown = ", ".join(f"{tokens}: {ratio:.2f}" for tokens, ratio in ratios.items())
                lines.append(
                    f"- {step}, {column} against {rival}: {crossing(ratios)} (target: {limit}; time of ours "
                    f"over the transformer's at tokens {shown})"
                )
    return ["VideoMamba-M beats the equal transformer", *lines] if lines else []


def points(rows: Sequence[Row], column: str, step: str) -> dict[tuple[int, int], float]:
    """Milliseconds a clip by tokens and clips, where they fill the GPU."""
    found: dict[tuple[int, int], float] = {}
    for row in rows:
        if row["what"] == "middle" and row["column"] == column and row["step"] == step and "ms" in row:
            tokens, batch = int(number(row, "tokens")), int(number(row, "batch"))
            if batch > 1 or tokens > FILLS:
                found[tokens, batch] = number(row, "ms") / batch
    return found


def by_tokens(found: dict[tuple[int, int], float]) -> dict[int, float]:
    """By tokens alone, each with the largest batch."""
    return {tokens: found[tokens, batch] for tokens, batch in sorted(found)}


def crossing(ratios: dict[int, float]) -> str:
    """Where the ratio falls below one for good, between two measured lengths on logarithmic scales."""
    tokens = sorted(ratios)
    slower = [each for each in tokens if ratios[each] > 1]
    if not slower:
        return f"from fewer than {tokens[0]:,} tokens"
    if slower[-1] == tokens[-1]:
        return f"not up to {tokens[-1]:,} tokens"
    low, high = slower[-1], tokens[tokens.index(slower[-1]) + 1]
    share = math.log(ratios[low]) / (math.log(ratios[low]) - math.log(ratios[high]))
    return f"from {low * (high / low) ** share:,.0f} tokens"
