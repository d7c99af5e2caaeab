"""The CUDA kernel that gathers weights: emulated on the CPU, and compiled where NVRTC is installed."""

import cuda_cpu
import pytest
import torch
from scan_cases import emulated, with_nvrtc

from flexvideo.errors import BackendError
from flexvideo.scan import nvrtc
from flexvideo.scan.cuda_gather import gather
from flexvideo.scan.stacking import Stack, firsts, stacked

WIDE, HALF, NARROW = torch.float32, torch.float16, torch.bfloat16


def weights_of(width, rank, old, new, device="cpu"):
    """The weights of a mixer, more or less: with gaps along either dimension, a decay, and single ones."""

    def pair(*shape, dtype=old):
        return [torch.randn(*shape).to(device, dtype) for _ in range(2)]

    weights = [x.t() for x in pair(width, rank + 32)]  # not contiguous
    weights += pair(width, rank) + pair(width, 1, 4) + pair(width) + pair(width, 16, dtype=WIDE)
    stacks = Stack(2, new, (0, rank, -rank % 8)), Stack(2, new, (1, rank, -rank % 8))
    stacks += Stack(2, WIDE), Stack(2, WIDE), Stack(2, WIDE, decay=True), Stack(1, new)
    return [*weights, pair(3 * width, width)[0]], stacks


def check(weights, stacks, **options):
    outs = gather(weights, stacks, **options), stacked(weights, stacks)
    for found, expected, stack, first in zip(*outs, stacks, firsts(stacks), strict=True):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.shape == stack.shape(weights[first].shape)
        assert found.is_contiguous()
        torch.testing.assert_close(found, expected, rtol=1e-6 if stack.decay else 0, atol=0)


@emulated
@pytest.mark.parametrize(("old", "new"), [(WIDE, NARROW), (WIDE, HALF), (HALF, NARROW), (WIDE, WIDE)])
@pytest.mark.parametrize(("width", "rank"), [(48, 12), (48, 8), (37, 3), (120, 5)])
def test_agrees_with_torch(width, rank, old, new):
    torch.manual_seed(0)
    check(*weights_of(width, rank, old, new), run=cuda_cpu.run)


@emulated
def test_weights_at_odd_addresses_and_in_float64():
    torch.manual_seed(0)
    odd, even = torch.randn(65)[1:].view(8, 8), torch.randn(8, 8)
    stacks = Stack(2, NARROW, (1, 4, 4)), Stack(1, WIDE)
    for weights in ([odd, odd.double(), odd], [even, even.double(), odd]):  # of one plan
        check(weights, stacks, run=cuda_cpu.run)


def test_weights_on_two_devices_are_refused():
    message = "^The weights of one mixer lie on cpu and meta: move the whole model to one device.$"
    with pytest.raises(BackendError, match=message):
        gather([torch.ones(4), torch.ones(4, device="meta")], (Stack(2, WIDE),))


def test_float64_is_refused():
    with pytest.raises(BackendError, match=r"float16 and bfloat16, got torch\.float64: use 'reference'"):
        gather([torch.ones(4)], (Stack(1, torch.float64),))


@pytest.mark.slow
@with_nvrtc
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("dtype", range(3))
def test_compiles(architecture, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(nvrtc, "_folder", lambda: tmp_path)
    assert nvrtc.compiled("cuda_gather.cu", (("DTYPE", dtype), ("PARTS", 16), ("EACH", 2)), architecture)


@pytest.mark.gpu
@pytest.mark.parametrize(("old", "new"), [(WIDE, NARROW), (HALF, NARROW), (WIDE, WIDE)])
@pytest.mark.parametrize(("width", "rank"), [(1152, 36), (384, 12), (37, 3)])
def test_agrees_on_the_device(width, rank, old, new):
    check(*weights_of(width, rank, old, new, "cuda"))
