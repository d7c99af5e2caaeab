"""The support matrix of the README, found by running every case.

`python tests/support_matrix.py` prints it; `python tests/support_matrix.py README.md` puts it between the two
markers of that file.
"""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from cases import POLICIES, Case, all_cases, all_size_free
from torch import nn

import flexvideo as fv
from flexvideo.errors import NothingToFlexError, PlanError

START, END = "<!-- support matrix: start -->", "<!-- support matrix: end -->"
HEADER = ("model", "what flexes", *POLICIES, "checked on", "notes")


def row(case: Case) -> tuple[str, ...]:
    """One line: a policy applies when clips of three sizes run under it and the base stays as it is."""
    plain = case.build()
    expected = case.call(plain, case.clip(case.base))
    ticks = []
    for policy in POLICIES:
        try:
            model = fv.make_flexible(plain, policy=policy, plan=case.plan)
        except PlanError:
            ticks.append("")
            continue
        assert torch.equal(case.call(model, case.clip(case.base)), expected)
        for size in case.sizes_under(policy):
            case.call(model, case.clip(size))
        fv.restore(model)
        ticks.append("yes")
    return case.name, case.flexes, *ticks, case.checked, case.notes


def size_free_row(name: str, make: Callable[[], nn.Module], checked: str) -> tuple[str, ...]:
    """One line for a model that `make_flexible` refuses because there is nothing to do."""
    try:
        fv.make_flexible(make())
    except NothingToFlexError:
        return name, "nothing: takes any size", *[""] * len(POLICIES), checked, ""
    raise AssertionError(f"{name} was made flexible")


@torch.no_grad()
def markdown(cases: Iterable[Case]) -> str:
    """The table for some cases, and for the models that take any size as they are."""
    rows = [row(case) for case in cases] + [size_free_row(*case) for case in all_size_free()]
    rule = tuple("---" if name not in POLICIES else ":-:" for name in HEADER)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (HEADER, rule, *rows))


def write(path: Path, table: str) -> None:
    """Put the table between the two markers of a file."""
    text = path.read_text()
    before, rest = text.split(START)
    path.write_text(f"{before}{START}\n\n{table}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        write(Path(sys.argv[1]), markdown(all_cases()))
    else:
        print(markdown(all_cases()))
