"""What the Triton kernels must do: run by pytest on a GPU, and as a script in Triton's interpreter."""

import sys

import torch
from scan_cases import TOLERANCES, check, conv_inputs, error, scan_inputs

from flexvideo import VideoMamba
from flexvideo.scan import causal_conv, selective_scan
from flexvideo.scan.mixing import fused
from flexvideo.scan.triton_gradients import scan_backward
from flexvideo.scan.triton_scan import Launch, launch_for, scan_forward

SCAN = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
# k, b, l, d, n: odd, prime and single lengths, part-filled programs, one direction, few and many states
SMALL = [(2, 1, 21, 20, 16), (2, 2, 1, 3, 5), (1, 2, 9, 6, 16), (2, 1, 13, 2, 33), (1, 1, 66, 4, 2)]
SPLIT = (2, 1, 150, 3, 16)


def scan_agrees(shape, device, dtype=torch.float32):
    """The scan on one shape."""
    check(selective_scan, scan_inputs(*shape, device=device, dtype=dtype), dtype, backend="triton")


def conv_agrees(device, dtype=torch.float32):
    """The convolution in one and two directions, on strided views."""
    for inputs in conv_inputs(device, dtype):
        check(causal_conv, inputs, dtype, backend="triton")


def spans_agree(device):
    """Time split in spans, in both passes, against one span."""
    inputs = scan_inputs(*SPLIT, device=device)
    upstream = torch.randn(inputs[6].shape).to(device)
    results = []
    for launch in (Launch(2, 8, 192, 1, whole=True), Launch(2, 8, 64, 3, whole=False)):
        out, states = scan_forward(*inputs, launch=launch)
        results.append((out, *scan_backward(upstream, *inputs, states, launch=launch)))
    for i, (one, many) in enumerate(zip(*results, strict=True)):
        assert error(many, one) < 1e-5, (i, error(many, one))


def output_is_remade(device, dtype=torch.float32):
    """The backward pass returns what the forward pass did, beside the same gradients."""
    inputs = scan_inputs(2, 1, 21, 4, 16, device=device, dtype=dtype)
    launch = launch_for(*inputs[0].shape, 16, 132)
    out, states = scan_forward(*inputs, launch=launch)
    upstream = torch.ones_like(out)
    *grads, again = scan_backward(upstream, *inputs, states, launch=launch, remake=True)
    assert error(again, out) < TOLERANCES[dtype][0]
    assert torch.equal(scan_forward(*inputs, launch=launch, keep=False)[0], out)
    plain = scan_backward(upstream, *inputs, states, launch=launch)
    assert all(torch.equal(a, b) for a, b in zip(grads, plain, strict=True))


def norm_agrees(device, dtype=torch.float32):
    """The sum and its normalisation, with and without a residual, against plain torch in float64."""
    for (b, l, d), first in (((2, 37, 20), False), ((1, 3, 130), False), ((1, 5, 7), True)):
        hidden = torch.randn(b, l, d).to(device, dtype).requires_grad_()
        residual = None if first else torch.randn(b, l, d).to(device).requires_grad_()
        weight = torch.randn(d).to(device).requires_grad_()
        inputs = [x for x in (hidden, residual, weight) if x is not None]
        upstream = [torch.randn(b, l, d).to(device), torch.randn(b, l, d).to(device, dtype)]
        outs = fused("triton").add_norm(hidden, residual, weight, 1e-5, dtype)
        grads = torch.autograd.grad(outs, inputs, upstream)
        exact = [x.detach().double().requires_grad_() for x in inputs]
        total = exact[0] if first else exact[0] + exact[1]
        truth = [total, torch.nn.functional.rms_norm(total, (d,), exact[-1], 1e-5)]
        truths = torch.autograd.grad(truth, exact, [x.double() for x in upstream])
        forward, backward = TOLERANCES[dtype]
        assert [x.dtype for x in outs] == [torch.float32, dtype]
        assert all(error(a, b) < forward for a, b in zip(outs, truth, strict=True))
        for grad, expected, x in zip(grads, truths, inputs, strict=True):
            assert grad.dtype == x.dtype
            assert error(grad, expected) < backward


def blocks_agree(device, dtype=torch.float32, *, outputs=(True,)):
    """A small model of the fused operators against the reference, layer by layer."""
    arguments = {
        "img_size": 16,
        "patch_size": 8,
        "embed_dim": 8,
        "depth": 2,
        "num_classes": 3,
        "num_frames": 1,
    }
    model = VideoMamba(**arguments, drop_path_rate=0.0, scan_backend="triton").to(device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    truth = VideoMamba(**arguments, drop_path_rate=0.0, scan_backend="reference").to(device)
    truth.load_state_dict(model.state_dict())
    truth, x = truth.double(), torch.randn(2, 3, 1, 16, 16).to(device)
    for all_tokens in outputs:
        with torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32):
            out = model.forward_features(x, all_tokens=all_tokens)
        expected = truth.forward_features(x.double(), all_tokens=all_tokens)
        grads = torch.autograd.grad(out.double().square().sum(), list(model.layers.parameters()))
        truths = torch.autograd.grad(expected.square().sum(), list(truth.layers.parameters()))
        forward, backward = (3 * tolerance for tolerance in TOLERANCES[dtype])
        assert error(out, expected) < forward
        for i, (grad, exact) in enumerate(zip(grads, truths, strict=True)):
            assert error(grad, exact) < backward or (grad - exact).abs().max() < 1e-6, i


def nan_propagates(device):
    """A NaN reaches everything after it in its direction, and nothing of the other samples."""
    for name in ("u", "delta", "B", "C", "z"):
        inputs = dict(zip(SCAN, scan_inputs(1, 2, 11, 4, 16, device=device), strict=True))
        value = inputs[name].clone()
        value[(0,) * (value.ndim - 2)][5] = float("nan")
        inputs[name] = value
        out = selective_scan(*inputs.values(), backend="triton")
        assert out[0, 5].isnan().all(), name
        assert not out[0, :5].isnan().any(), name
        assert not out[1].isnan().any(), name


def extremes_are_finite(device):
    """No memory, endless memory and enormous steps, against the reference."""
    for shift, scale in ((12.0, 1.0), (-20.0, 1.0), (0.0, 1e4), (0.0, 1e-7)):
        inputs = scan_inputs(2, 1, 30, 4, 16, device=device)
        inputs[1], inputs[2] = inputs[1] + shift, inputs[2] * scale
        check(selective_scan, inputs, torch.float32, backend="triton")


def launches_are_whole():
    """Every launch covers the sequence in whole blocks, without an empty span."""
    for b in (1, 4, 16):
        for l in (1, 63, 64, 197, 3137, 100353):
            launch = launch_for(2, b, l, 1152, 16, 132)
            assert launch.rows >= l > launch.rows - launch.span
            assert launch.span % 64 == 0


def main() -> None:
    """All cases in the interpreter."""
    torch.manual_seed(0)
    for shape in SMALL:
        scan_agrees(shape, "cpu")
    scan_agrees(SMALL[0], "cpu", torch.bfloat16)
    conv_agrees("cpu")
    spans_agree("cpu")
    output_is_remade("cpu")
    norm_agrees("cpu")
    norm_agrees("cpu", torch.bfloat16)
    blocks_agree("cpu")
    nan_propagates("cpu")
    extremes_are_finite("cpu")
    launches_are_whole()


if __name__ == "__main__":
    sys.exit(main())
