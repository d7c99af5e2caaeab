"""Tables as text: Markdown, LaTeX, CSV."""

import csv
import io
from collections.abc import Callable

from flexvideo.evaluate.tables import Table

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "$": r"\$",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "%": r"\%",
        "&": r"\&",
        "_": r"\_",
        "#": r"\#",
        "±": r"$\pm$",
        "Δ": r"$\Delta$",
    }
)


def markdown(table: Table) -> str:
    """Write a table for people and for GitHub: columns are lined up, the best is bold.

    Args:
        table: the table.

    Example:
        >>> print(markdown(Table("Sums", ("a", "b"), (("x", "10"), ("y", "9")), frozenset({(0, 1)}))))
        **Sums**
        <BLANKLINE>
        | a |      b |
        |---|-------:|
        | x | **10** |
        | y |      9 |
    """
    rows = [table.columns, *_marked(table, "**{}**")]
    widths = [max(len(text) for text in column) for column in zip(*rows, strict=True)]
    left = _words(table)

    def line(texts: tuple[str, ...]) -> str:
        placed = (
            text.ljust(width) if n < left else text.rjust(width)
            for n, (text, width) in enumerate(zip(texts, widths, strict=True))
        )
        return f"| {' | '.join(placed)} |"

    rules = ("-" * (width + 2) if n < left else "-" * (width + 1) + ":" for n, width in enumerate(widths))
    lines = [f"**{table.title}**", "", line(rows[0]), f"|{'|'.join(rules)}|", *map(line, rows[1:])]
    return "\n".join([*lines, *(f"\n{note}" for note in table.notes)])


def latex(table: Table) -> str:
    """Write a table for a paper that uses booktabs.

    Args:
        table: the table.

    Example:
        >>> print(latex(Table("Sums", ("a", "b"), (("x_1", "10"), ("y", "9")), frozenset({(0, 1)}))))
        \\begin{table}
        \\caption{Sums}
        \\begin{tabular}{lr}
        \\toprule
        a & b \\\\
        \\midrule
        x\\_1 & \\textbf{10} \\\\
        y & 9 \\\\
        \\bottomrule
        \\end{tabular}
        \\end{table}
    """
    left = _words(table)
    rows = _marked(
        Table("", (), tuple(tuple(map(_escaped, row)) for row in table.rows), table.best), r"\textbf{{{}}}"
    )
    lines = [r"\begin{table}", rf"\caption{{{' '.join(map(_escaped, (table.title, *table.notes)))}}}"]
    lines += [rf"\begin{{tabular}}{{{'l' * left}{'r' * (len(table.columns) - left)}}}", r"\toprule"]
    lines += [" & ".join(map(_escaped, table.columns)) + r" \\", r"\midrule"]
    for number, row in enumerate(rows):
        lines += [r"\midrule"] if number and row[0] and "" in {row[0] for row in rows} else []
        lines.append(" & ".join(row) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def comma_separated(table: Table) -> str:
    """Write a table for a spreadsheet, without title and notes; every row says what it belongs to.

    Args:
        table: the table.

    Example:
        >>> print(comma_separated(Table("Sums", ("a", "b"), (("x", "1, 2"), ("", "3")))))
        a,b
        x,"1, 2"
        x,3
    """
    text, above = io.StringIO(), ""
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    for first, *others in table.rows:
        above = first or above
        writer.writerow((above, *others))
    return text.getvalue().rstrip("\n")


def _marked(table: Table, bold: str) -> list[tuple[str, ...]]:
    return [
        tuple(bold.format(text) if (row, column) in table.best else text for column, text in enumerate(texts))
        for row, texts in enumerate(table.rows)
    ]


def _words(table: Table) -> int:
    """How many columns, from the left, hold words."""
    named = ("Data set", "Model", "task")
    return max((n + 1 for n, column in enumerate(table.columns) if column in named), default=1)


def _escaped(text: str) -> str:
    return text.translate(_LATEX)


FORMATS: dict[str, Callable[[Table], str]] = {"md": markdown, "latex": latex, "csv": comma_separated}
