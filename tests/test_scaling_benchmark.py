"""The scaling benchmark: every size that is timed has been warmed up, and a toy run leaves its figures."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "scaling.py"


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_all_sizes_are_warmed_up(monkeypatch: pytest.MonkeyPatch, processes: int):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    scaling = importlib.import_module("scaling")
    clips = scaling.timed_clips(processes, toy=False)
    assert scaling.TIMED * scaling.BATCH <= clips / processes <= 2 * scaling.TIMED * scaling.BATCH


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--shard"]])
def test_toy_run(more: list[str], tmp_path: Path):
    command = [sys.executable, str(SCRIPT), "--toy", "--results", str(tmp_path), *more]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=200, check=True)
    one, two = json.loads(next(tmp_path.glob("*_scaling.json")).read_text())["rows"]
    assert (one["processes"], one["accumulate"], one["spread by"]) == (1, 2, None)
    assert (two["processes"], two["accumulate"], two["spread by"]) == (2, 1, "FSDP2" if more else "DDP")
    assert one["clips"] == two["clips"] > 0
    ratio = two["clips_per_second"] / one["clips_per_second"]
    assert two["scaling_percent"] == pytest.approx(50 * ratio, abs=0.1)


def test_one_gpu_is_too_few():
    command = [sys.executable, str(SCRIPT), "--gpus", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert "it takes at least two GPUs, and as many as --gpus" in done.stderr
