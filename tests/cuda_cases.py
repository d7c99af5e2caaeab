"""Inputs of a scan laid out as in the model, without Triton."""

import shutil
import sys

import pytest
import torch

emulated = pytest.mark.skipif(
    shutil.which("g++") is None or sys.platform != "linux", reason="the emulation is built by g++ on Linux"
)


def scan_inputs(k, b, l, d, n, *, device, dtype=torch.float32, seed=0):
    """Random inputs of a scan; z, B and C are strided views, as in the model."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    u, delta = (x.to(device, dtype) for x in (draw(k, b, l, d), draw(k, b, l, d) - 1))
    A, rows = -torch.exp(draw(k, d, n)).to(device), draw(k, b, l, 4 + 2 * n).to(device, dtype)
    B, C, z = rows[..., 4 : 4 + n], rows[..., 4 + n :], draw(b, l, 2 * d).to(device, dtype)[..., d:]
    return [u, delta, A, B, C, draw(k, d).to(device), z, draw(k, d).to(device)]


def error(a, b):
    """Relative error, 0 where both are 0."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm().clamp(min=1e-300))
