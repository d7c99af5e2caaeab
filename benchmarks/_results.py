"""Where benchmarks leave their figures: one JSON file for a benchmark, a machine and a day."""

import datetime
import json
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent
PACKAGES = ("torch", "triton", "mamba-ssm", "av", "numpy")


def write_results(benchmark: str, rows: list[dict[str, object]]) -> Path:
    """Write rows of plain figures beside what they were measured on; returns the file."""
    machine = torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"cpu {os.cpu_count()} cores"
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    name = f"{day}_{re.sub(r'[^a-z0-9]+', '-', machine.lower()).strip('-')}_{benchmark}.json"
    path = ROOT / "results" / name
    path.parent.mkdir(exist_ok=True)
    record = {
        "benchmark": benchmark,
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": day,
        "machine": machine,
        "cpu": cpu_name(),
        "load": round(os.getloadavg()[0], 1),  # runnable processes: above the cores, timings are too long
        "versions": {"python": platform.python_version(), **versions()},
        "commit": commit(),
        "rows": rows,
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def cpu_name() -> str:
    """The processor's own name where the system tells it."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of the packages that matter, of those that are installed."""
    known = {}
    for package in PACKAGES:
        try:
            known[package] = version(package)
        except PackageNotFoundError:
            continue
    return known


def commit() -> str | None:
    """The commit that was measured, marked when the package's files differ from it; None outside git."""
    head = _git("rev-parse", "--short=12", "HEAD")
    if head is None:
        return None
    return head + (" with changes" if _git("status", "--porcelain", "--", "flexvideo") else "")


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
