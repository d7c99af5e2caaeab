"""Many names in few lines, for people to read."""

import re
from collections.abc import Iterable

_NAMES, _LINES = 6, 8


def alike(names: Iterable[str]) -> list[str]:
    """Names with those together that differ in the numbers of their layers only.

    Args:
        names: dotted paths.

    Example:
        >>> alike(["size", "layers.0.size", "layers.1.size", "layers.7.size"])
        ['size', 'layers.{0,1,7}.size']
    """
    found: dict[str, list[str]] = {}
    for name in names:
        number = re.search(r"(?<=\.)\d+(?=\.)", name)
        key = name if number is None else f"{name[: number.start()]}{{}}{name[number.end() :]}"
        found.setdefault(key, []).append("" if number is None else number.group())
    return [
        key.replace("{}", numbers[0] if len(numbers) == 1 else "{" + ",".join(numbers) + "}")
        for key, numbers in found.items()
    ]


def together(lines: Iterable[str], mark: str) -> list[str]:
    """Lines that say the same of several names as one line each of several names.

    Args:
        lines: a name, a mark, and what is said of it.
        mark: what stands between them.

    Example:
        >>> together(["a.0.size = 3", "a.1.size = 3", "b = 4"], " = ")
        ['a.{0,1}.size = 3', 'b = 4']
    """
    found: dict[str, list[str]] = {}
    for line in lines:
        name, _, said = line.partition(mark)
        found.setdefault(said, []).append(name)
    return [f"{', '.join(shortened(alike(names), _NAMES))}{mark}{said}" for said, names in found.items()]


def shortened(lines: list[str], count: int = _LINES) -> list[str]:
    """The first lines, and how many more there are.

    Args:
        lines: any number of them.
        count: how many to keep.

    Example:
        >>> shortened(["a", "b", "c"], 1)
        ['a', 'and 2 more']
    """
    rest = len(lines) - count
    return [*lines[:count], f"and {rest} more"] if rest > 0 else lines


def times(sizes: Iterable[int]) -> str:
    """Sizes as they are written: 14 x 14.

    Args:
        sizes: any number of them.

    Example:
        >>> times((8, 14, 14))
        '8 x 14 x 14'
    """
    return " x ".join(map(str, sizes))


def columns(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows of a table as lines of columns.

    Args:
        rows: their cells, of one number in every row.

    Example:
        >>> columns([("part", "from"), ("stem", "16")])
        ['part  from', 'stem  16']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
    return list(padded)
