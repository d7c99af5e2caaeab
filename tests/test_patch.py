"""Patch embedding: folded convolution and product equal the 3-D convolution, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from flexvideo.patch import PatchConv3d, patch_conv3d, patch_product

EACH = pytest.mark.parametrize("function", [patch_conv3d, patch_product])


@EACH
@settings(deadline=None, max_examples=20)
@given(
    tubelet=st.integers(1, 3),
    patch=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    rest=st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 4)),
    biased=st.booleans(),
)
def test_equals_conv3d(function, tubelet, patch, grid, rest, biased):
    kernel = (tubelet, *patch)
    size = [g * k + r % k for g, k, r in zip(grid, kernel, rest, strict=True)]
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, *kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True) if biased else None
    ours, theirs = function(x, weight, bias), F.conv3d(x, weight, bias, stride=kernel)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn_like(ours)
    inputs = [x, weight] if bias is None else [x, weight, bias]
    for a, b in zip(
        torch.autograd.grad(ours, inputs, upstream),
        torch.autograd.grad(theirs, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("tubelet", [1, 2])
def test_module_is_a_conv3d_with_its_state(tubelet):
    ours = PatchConv3d(3, 8, (tubelet, 4, 6))
    plain = torch.nn.Conv3d(3, 8, (tubelet, 4, 6), stride=(tubelet, 4, 6))
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 4, 12, 18)
    torch.testing.assert_close(ours(x), plain(x))
    assert isinstance(ours, torch.nn.Conv3d)
    assert ours.stride == ours.kernel_size


@EACH
def test_gradients_of_gradients(function):
    x = torch.randn(1, 2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 2, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(function, (x, weight))


def test_product_is_in_the_dtype_of_autocast_and_its_tokens_are_a_view():
    x, weight = torch.randn(2, 3, 4, 12, 19), torch.randn(8, 3, 2, 4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        low, double = patch_product(x, weight), patch_product(x.double(), weight.double())
    exact = F.conv3d(x.bfloat16().double(), weight.bfloat16().double(), stride=(2, 4, 6))
    assert (low.dtype, double.dtype) == (torch.bfloat16, torch.float64)
    torch.testing.assert_close(low.double(), exact, rtol=4e-3, atol=4e-3 * float(exact.std()))
    for out in (low, patch_product(x, weight)):
        assert out.flatten(3).permute(0, 2, 3, 1).is_contiguous()


@pytest.mark.gpu
def test_product_and_convolution_agree_on_the_device():
    x = torch.randn(2, 3, 4, 47, 60)
    model = PatchConv3d(3, 32, (1, 13, 13)).requires_grad_(False)
    expected = model.double()(x.double())
    assert model.float().cuda()(x.cuda()).stride(1) == 1
    torch.testing.assert_close(model(x.cuda()).cpu().double(), expected, rtol=1e-4, atol=1e-4)
    with torch.autocast("cuda", torch.bfloat16):
        torch.testing.assert_close(model(x.cuda()).cpu().double(), expected, rtol=0.02, atol=0.02)
