"""Which kernels a VideoMamba-M consists of: shares of a forward pass and of a training step, and how many."""

from collections import Counter
from pathlib import Path

import torch
from _results import write_results
from _speed_models import Subject
from _speed_plan import Case
from _speed_worker import line
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

TOP, CALLS = 25, 3


def profile_models(*, toy: bool, folder: Path) -> None:
    """Print and store the kernels of a full batch, and those of a forward pass at batch 1."""
    what, frames, size, batch = ("toy", 2, 32, 2) if toy else ("middle", 16, 224, 16)
    device, rows = torch.device("cpu" if toy else "cuda"), []
    for number, step in ((batch, "forward"), (batch, "train"), (1, "forward")):
        case = Case(what, frames, size, number, "ours auto", step)
        rows += kernels(case, device)
    print(write_results("speed_profile", rows, folder=folder))


def kernels(case: Case, device: torch.device) -> list[dict[str, object]]:
    """The kernels of one step by total time."""
    run = Subject(case, device).run(case.step)
    for _ in range(2):
        run()
    # on a CPU operators stand for kernels: there is nothing else to count
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as record:
        for _ in range(CALLS):
            run()
        if cuda:
            torch.cuda.synchronize()
    times, counts = Counter[str](), Counter[str]()
    for event in record.events() or []:
        if not cuda or event.device_type == DeviceType.CUDA:
            microseconds = event.self_device_time_total if cuda else event.self_cpu_time_total
            times[event.name] += microseconds / CALLS / 1e3
            counts[event.name] += 1
    total, launches = sum(times.values()), sum(counts.values()) / CALLS
    print(f"\n{line(case.row())}: {total:.2f} ms in {launches:.0f} launches")
    rows: list[dict[str, object]] = []
    for name, time in times.most_common():
        share, calls = time / total, counts[name] / CALLS
        rows.append({**case.row(), "kernel": name, "ms": time, "share": share, "launches": calls})
        if len(rows) <= TOP:
            print(f"{time:10.3f} ms {share:6.1%} {calls:8.1f} x  {name[:100]}")
    return rows
