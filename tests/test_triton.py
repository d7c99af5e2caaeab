"""The Triton kernels: through Triton's interpreter on the CPU, and on a GPU."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flexvideo.scan import available_backends

# On Linux the test extra brings Triton, and a test without it must fail; it has no wheels for other systems.
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="Triton has wheels for Linux alone")
if sys.platform == "linux":
    import triton_cases as cases

HERE = Path(__file__).parent
GPU = {"device": "cuda"}


@on_linux
@pytest.mark.slow
def test_in_the_interpreter():
    # another process: Triton reads TRITON_INTERPRET when a kernel is defined, and for all kernels
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": f"{HERE.parent}:{HERE}"}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", HERE / "triton_cases.py"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def test_without_a_device_says_why():
    if not torch.cuda.is_available():
        assert available_backends()["triton"] == "it needs a CUDA device."


@on_linux
def test_a_compiler_is_looked_for_where_triton_does(monkeypatch):
    triton = importlib.import_module("flexvideo.scan.triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.delenv("CC", raising=False)
    for there in ("gcc", "clang"):
        monkeypatch.setattr("shutil.which", lambda name, there=there: name if name == there else None)
        assert triton.unavailable() is None
    monkeypatch.setattr("shutil.which", lambda name: name if name == "cc" else None)
    assert triton.unavailable() == (
        "Triton needs a C compiler to start a kernel, and finds none (it looks for $CC, gcc and clang)."
    )
    monkeypatch.setenv("CC", "/opt/bin/gcc-14")
    assert triton.unavailable() is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert triton.unavailable() == "it needs a GPU of compute capability 8.0 or newer."


@pytest.mark.gpu
def test_spans_agree():
    cases.spans_agree("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_as_two_operators(dtype):
    cases.output_is_remade("cuda", dtype)
    cases.norm_agrees("cuda", dtype)
    cases.blocks_agree("cuda", dtype, outputs=(True, False))


@pytest.mark.gpu
def test_nan_propagates():
    cases.nan_propagates("cuda")


@pytest.mark.gpu
def test_extremes():
    cases.extremes_are_finite("cuda")
