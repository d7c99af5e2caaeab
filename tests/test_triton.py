"""The Triton kernels: through Triton's interpreter on the CPU, and on a GPU."""

import importlib.util
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
    if importlib.util.find_spec("triton") is None:
        assert available_backends()["triton"] == "the module 'triton' is not installed."
    elif not torch.cuda.is_available():
        assert available_backends()["triton"] == "it needs a CUDA device."


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
