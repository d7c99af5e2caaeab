"""Where benchmarks leave their figures: one JSON file for a benchmark, a machine and a day."""

import datetime
import functools
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent
PACKAGES = ("torch", "triton", "mamba-ssm", "causal-conv1d", "av", "numpy")


def results_path(benchmark: str, folder: Path | None = None) -> Path:
    """The file of a benchmark on this machine and day, in `benchmarks/results` or another folder."""
    name = f"{_today()}_{re.sub(r'[^a-z0-9]+', '-', machine().lower()).strip('-')}_{benchmark}.json"
    return (folder or ROOT / "results") / name


def write_results(benchmark: str, rows: Sequence[dict[str, object]], *, folder: Path | None = None) -> Path:
    """Write rows of plain figures beside what they were measured on; returns the file."""
    path = results_path(benchmark, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "benchmark": benchmark,
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": _today(),
        "machine": machine(),
        "driver": driver(),
        "cpu": cpu_name(),
        "load": round(os.getloadavg()[0], 1),  # runnable processes: above the cores, timings are too long
        "versions": {"python": platform.python_version(), **versions()},
        "commit": commit(),
        "rows": rows,
    }
    whole = path.with_suffix(".part")  # what stops the process cannot leave half a file
    whole.write_text(json.dumps(record, indent=1) + "\n")
    whole.replace(path)
    return path


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def machine() -> str:
    """The GPU's name, or that there is none."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"cpu {os.cpu_count()} cores"


@functools.cache
def driver() -> str | None:
    """Version of the NVIDIA driver; None without one."""
    info = Path("/proc/driver/nvidia/version")
    found = re.search(r"\b\d{3}\.\d[\d.]*", info.read_text()) if info.exists() else None
    if found:
        return found[0]
    told = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return told.splitlines()[0] if told else None


def cpu_name() -> str:
    """The processor's own name where the system tells it."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the packages that matter, of those that are installed, and of CUDA."""
    known = {"cuda": torch.version.cuda} if torch.version.cuda else {}
    for package in PACKAGES:
        try:
            known[package] = version(package)
        except PackageNotFoundError:
            continue
    return known


@functools.cache
def commit() -> str | None:
    """The commit that was measured, marked when the package's files differ from it.

    A copy outside git is told it by the environment variable FLEXVIDEO_COMMIT; else None.
    """
    head = _git("rev-parse", "--short=12", "HEAD")
    if head is None:
        return os.environ.get("FLEXVIDEO_COMMIT")
    return head + (" with changes" if _git("status", "--porcelain", "--", "flexvideo") else "")


def _git(*arguments: str) -> str | None:
    return _output("git", "-C", str(ROOT), *arguments)


def _output(*command: str) -> str | None:
    """What a command prints; None where it fails or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
