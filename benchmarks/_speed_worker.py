"""Measures the cases of a plan one by one, and writes the results file after each.

A case is in the file before it runs, as one that did not finish, so that a fault of the device which ends the
process costs this one figure: `speed.py` starts a new process, which goes on after it.
"""

import gc
import json
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from _results import commit, results_path, write_results
from _speed_kernels import KernelSubject, kernel_floor
from _speed_models import Subject, floor_of
from _speed_plan import KERNELS, Case, case_of, plan
from _speed_timing import measure

from flexvideo.scan import available_backends
from flexvideo.scan.registry import FAST

Row = dict[str, object]
UNFINISHED = "did not finish: the process was ended by a fault or hung"


@dataclass(frozen=True)
class Order:
    """What a worker is to do.

    Args:
        kind: "quick", "full" or "toy".
        only: words of which a case's line has to contain one; all cases where empty.
        seconds: after which no further case begins.
        resume: go on with the file where it is of the same commit and machine.
        folder: for the results file.
    """

    kind: str
    only: tuple[str, ...]
    seconds: float
    resume: bool
    folder: Path

    @property
    def benchmark(self) -> str:
        """What the results file is named after."""
        whole = {"full": "speed", "quick": "speed_quick", "toy": "speed_toy"}[self.kind]
        return "speed_part" if self.only else whole


def work(order: Order) -> Path:
    """Measure what is still to be measured."""
    end = time.monotonic() + order.seconds
    device = torch.device("cpu" if order.kind == "toy" else "cuda")
    rows = earlier(order)
    done = {case_of(row) for row in rows}
    cases = [
        case for case in plan(order.kind, backends(device)) if wanted(case, order.only) and case not in done
    ]
    subjects = Subjects(device)
    path = results_path(order.benchmark, order.folder)
    for number, case in enumerate(cases):
        if time.monotonic() > end:
            print(
                f"Out of time: {len(cases) - number} of {len(cases)} cases left; --resume goes on.",
                flush=True,
            )
            break
        write_results(order.benchmark, [*rows, {**case.row(), "error": UNFINISHED}], folder=order.folder)
        rows.append(result(case, subjects))
        path = write_results(order.benchmark, rows, folder=order.folder)
        print(line(rows[-1]), flush=True)
        if "error" in rows[-1]:
            subjects.drop()  # raises where the error left the device unusable
    return path


def backends(device: torch.device) -> list[str]:
    """Fast scan backends that run here, the one that `auto` takes first, and on a CPU a slow one beside."""
    reasons = available_backends()
    names = (*FAST[device.type], *(("chunked",) if device.type == "cpu" else ()))
    for name in names:
        if reasons[name]:
            print(f"No column 'ours {name}': {reasons[name]}", flush=True)
    return [name for name in names if reasons[name] is None]


def wanted(case: Case, only: tuple[str, ...]) -> bool:
    return not only or any(word in " ".join(line(case.row()).split()) for word in only)


def earlier(order: Order) -> list[Row]:
    """Rows of the file to go on with."""
    path = results_path(order.benchmark, order.folder)
    if not order.resume or not path.exists():
        return []
    record = json.loads(path.read_text())
    if record["commit"] == commit():
        return record["rows"]
    print(
        f"{path.name} is of commit {record['commit']}, not {commit()}: measuring everything anew.", flush=True
    )
    return []


class Subjects:
    """The model or kernel of the last case, kept for the next where that is of the same column and clips."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.last: tuple[Case, Subject | KernelSubject] | None = None

    def of(self, case: Case) -> Subject | KernelSubject:
        """What runs the case; what ran others is freed first and does not count as its memory."""
        key = replace(case, step="")
        if self.last is None or self.last[0] != key:
            self.drop()
            made = KernelSubject if case.what in KERNELS else Subject
            self.last = key, made(case, self.device)
        return self.last[1]

    def drop(self) -> None:
        self.last = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()


def result(case: Case, subjects: Subjects) -> Row:
    """The row of a case; what goes wrong is its result."""
    try:
        return {**case.row(), **figures(case, subjects)}
    except torch.OutOfMemoryError:
        error = "out of memory"
    except Exception as problem:
        error = f"{type(problem).__name__}: {str(problem).strip().partition(chr(10))[0]}"[:300]
    return {**case.row(), "error": error}


def figures(case: Case, subjects: Subjects) -> Row:
    if case.column == "floor":
        milliseconds, peak, notes = (kernel_floor if case.what in KERNELS else floor_of)(case), None, {}
    else:
        subject = subjects.of(case)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of compilers and graph capture: they would tear the table apart
            milliseconds, peak = measure(lambda: subject.run(case.step), subjects.device)
        milliseconds, notes = milliseconds / subject.calls, subject.notes
    return {
        "ms": round(milliseconds, 4),
        "clips_per_s": round(1e3 * case.batch / milliseconds, 2),
        "peak_gib": peak if peak is None else round(peak, 3),
        **notes,
    }


def line(row: Row) -> str:
    """A row on one line."""
    clip = f"{row['frames']}x{row['size']}x{row['batch']}"
    head = f"{row['what']:7} {clip:12} {row['step']:16} {row['column']:15}"
    if "error" in row:
        return f"{head} {row['error']}"
    if "ms" not in row:
        return head
    peak = "" if row["peak_gib"] is None else f"{row['peak_gib']:8.2f} GiB"
    return f"{head} {row['ms']:10.3f} ms {row['clips_per_s']:9.1f} clips/s {peak}"
