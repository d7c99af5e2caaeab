"""The mamba-ssm adapter against the reference: needs a CUDA device, mamba-ssm and causal-conv1d."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from flexvideo import VideoMamba
from flexvideo.scan import available_backends, causal_conv, selective_scan

pytestmark = pytest.mark.gpu
GOLDEN = Path(__file__).parent / "data" / "videomamba_official_a.safetensors"
LOW = {"u", "delta", "B", "C", "z", "x"}
SCAN = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
CONV = ("x", "weight", "bias")
TOLERANCES = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (1e-2, 2e-2), torch.float16: (2e-3, 4e-3)}


@pytest.fixture(autouse=True)
def _installed():
    reason = available_backends()["mamba-ssm"]
    assert reason is None, reason


def scan_inputs(k, b, l, d, n=16):
    A = -torch.exp(torch.randn(k, d, n)) * 2
    shapes = ((k, b, l, d), (k, b, l, d), (k, b, l, n), (k, b, l, n), (k, d), (b, l, d), (k, d))
    u, delta, B, C, D, z, bias = (torch.randn(*shape) for shape in shapes)
    return [u, delta * 2 - 2, A, B, C, D, z, bias]


def conv_inputs(k, b, l, d, w=4):
    return [torch.randn(b, l, d), torch.randn(k, d, w), torch.randn(k, d)]


def assert_agrees(function, inputs, names, dtype):
    """Against the reference in float64 on the very numbers that the kernel gets."""
    cast = [
        x.to("cuda", dtype if name in LOW else torch.float32).requires_grad_()
        for name, x in zip(names, inputs, strict=True)
    ]
    exact = [x.detach().double().requires_grad_() for x in cast]
    out, truth = function(*cast, backend="mamba-ssm"), function(*exact, backend="reference")
    upstream = torch.randn_like(truth).to(dtype)
    grads = torch.autograd.grad(out, cast, upstream)
    truths = torch.autograd.grad(truth, exact, upstream.double())
    forward, backward = TOLERANCES[dtype]
    assert out.dtype == dtype
    assert error(out, truth) < forward
    for name, grad, expected, x in zip(names, grads, truths, cast, strict=True):
        assert grad.dtype == x.dtype, name
        assert grad.shape == x.shape, name
        assert error(grad, expected) < backward, name


def error(a, b):
    # The gradient of A at length 1 is exactly zero, which nothing can be relative to.
    return float((a.detach().double() - b.detach()).norm() / b.detach().norm().clamp(min=1e-3))


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize(
    "shape", [(2, 2, 197, 64), (1, 3, 50, 32), (2, 1, 2100, 16), (2, 2, 7, 12), (2, 1, 1, 8)]
)
def test_scan_agrees(shape, dtype):
    assert_agrees(selective_scan, scan_inputs(*shape), SCAN, dtype)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("shape", [(2, 2, 197, 64), (1, 3, 50, 32), (2, 2, 7, 12), (2, 1, 5, 6)])
def test_conv_agrees(shape, dtype):
    assert_agrees(causal_conv, conv_inputs(*shape), CONV, dtype)


def test_halves_of_a_projection():
    """The mixer passes views whose rows lie apart."""
    x, z = torch.randn(2, 33, 64, device="cuda").chunk(2, dim=-1)
    weight, bias = torch.randn(2, 32, 4, device="cuda"), torch.randn(2, 32, device="cuda")
    expected = causal_conv(x.contiguous(), weight, bias, backend="reference")
    torch.testing.assert_close(
        causal_conv(x, weight, bias, backend="mamba-ssm"), expected, rtol=1e-4, atol=1e-5
    )
    inputs = [t.cuda() for t in scan_inputs(2, 2, 33, 32)]
    inputs[6] = z
    expected = selective_scan(*inputs, backend="reference")
    torch.testing.assert_close(selective_scan(*inputs, backend="mamba-ssm"), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.unchecked
def test_operator_contract():
    scan = [x.cuda().requires_grad_() for x in scan_inputs(2, 1, 9, 8)]
    conv = [x.cuda().requires_grad_() for x in conv_inputs(2, 1, 9, 8)]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        torch.ops.flexvideo.selective_scan.default, (*scan, True, "mamba-ssm"), test_utils=tests
    )
    torch.library.opcheck(torch.ops.flexvideo.causal_conv.default, (*conv, "mamba-ssm"), test_utils=tests)


def test_official_numbers(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with safe_open(GOLDEN, "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in list(file.keys())}
    model = VideoMamba(**config, drop_path_rate=0.0, scan_backend="mamba-ssm").eval()
    model.load_state_dict({k.removeprefix("state."): x for k, x in tensors.items() if k.startswith("state.")})
    logits = model.cuda()(tensors["input"].cuda())
    assert error(logits.cpu(), tensors["logits"].double()) < 1e-5
    logits.square().mean().backward()
    parameters = dict(model.named_parameters())
    for key in (key for key in tensors if key.startswith("grad.")):
        grad = parameters[key.removeprefix("grad.")].grad
        assert error(grad.cpu(), tensors[key].double()) < 1e-4, key


def test_bfloat16_autocast():
    model = VideoMamba(
        img_size=32, depth=2, embed_dim=64, num_frames=2, drop_path_rate=0.0, init="mamba"
    ).eval()
    x = torch.randn(2, 3, 2, 32, 32)
    truth = model(x).double()
    for layer in model.cuda().layers:
        layer.mixer.scan_backend = "mamba-ssm"
    with torch.autocast("cuda", dtype=torch.bfloat16):
        out = model(x.cuda())
    assert error(out.cpu(), truth) < 0.03
    out.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
