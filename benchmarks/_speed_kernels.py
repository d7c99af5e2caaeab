"""Kernels alone, a column each, on inputs laid out as a VideoMamba's are.

A call goes over several sets of inputs where one of them would stay in the GPU's cache, and the time of a
call is divided by their number. "official" is what the official model asks of the kernels of mamba-ssm and
causal-conv1d for both directions: two launches each, without the flips and the addition around them.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from _speed_floor import (
    conv_backward,
    conv_forward,
    norm_backward,
    norm_forward,
    scan_backward,
    scan_forward,
)
from _speed_official import CHUNK, extension, official_add_norm
from _speed_plan import BASELINES, Case
from _speed_timing import Run, capture
from torch import Tensor

from flexvideo.models.mixer import STATE, TAPS
from flexvideo.scan import causal_conv, selective_scan

WIDTH, RANK = 576, 36
INNER = 2 * WIDTH
CACHE = 100e6  # bytes: twice the second-level cache of an H100
FLOORS = {
    "scan": (scan_forward, scan_backward, INNER),
    "conv": (conv_forward, conv_backward, INNER),
    "norm": (norm_forward, norm_backward, WIDTH),
}
Call = Callable[[], object]
Outputs = Callable[[], Tensor | tuple[Tensor, ...]]


class KernelSubject:
    """The calls of one kernel and column, forward and backward, one for each set of inputs."""

    notes: Mapping[str, object] = {}

    def __init__(self, case: Case, device: torch.device) -> None:
        length = case.tokens + (-case.tokens % CHUNK if case.column == "padded" else 0)
        bytes_of_a_set = 2 * case.batch * length * (WIDTH if case.what == "norm" else 5 * INNER)
        self.calls = -(-int(CACHE) // bytes_of_a_set) if device.type == "cuda" else 1
        made = [pair(case, length, device) for _ in range(self.calls)]
        self.forwards, self.backwards = zip(*made, strict=True)

    def run(self, step: str) -> Run:
        """One step on all sets."""
        if step == "backward":
            return all_of([prepare() for prepare in self.backwards])

        def forward() -> None:
            with torch.no_grad():
                for each in self.forwards:
                    each()

        return capture(forward) if step == "forward graphed" else forward


def all_of(calls: Sequence[Call]) -> Run:
    def run() -> None:
        for call in calls:
            call()

    return run


def kernel_floor(case: Case) -> float:
    """Milliseconds below which the kernel does not go."""
    forward, backward, width = FLOORS[case.what]
    work = backward if case.step == "backward" else forward
    return work(case.batch * case.tokens, width).milliseconds


def pair(case: Case, length: int, device: torch.device) -> tuple[Call, Callable[[], Call]]:
    """A forward call, and what prepares a backward call."""
    if case.column in BASELINES:
        return {"scan": official_scan, "conv": official_conv, "norm": official_norm}[case.what](
            case.batch, length, device
        )
    backend = case.column.removeprefix("ours ")
    function, inputs = {"scan": our_scan, "conv": our_conv, "norm": our_norm}[case.what](
        case.batch, length, backend, device
    )
    return differentiated(function, inputs)


def differentiated(function: Outputs, inputs: Sequence[Tensor]) -> tuple[Call, Callable[[], Call]]:
    """The backward pass as autograd runs it, its forward pass run beforehand."""

    def prepare() -> Call:
        out = function()
        outs = [each for each in (out if isinstance(out, tuple) else (out,)) if each.requires_grad]
        grads = [torch.randn_like(each) for each in outs]
        return lambda: torch.autograd.grad(outs, inputs, grads, retain_graph=True)

    return function, prepare


def draw(*shape: int, device: torch.device) -> Tensor:
    return torch.randn(*shape, device=device, dtype=torch.bfloat16)


def wide(*shape: int, device: torch.device) -> Tensor:
    return torch.randn(*shape, device=device)


def decays(*shape: int, device: torch.device) -> Tensor:
    """A as Mamba begins it."""
    return -torch.arange(1.0, STATE + 1, device=device).expand(*shape, INNER, STATE).contiguous()


def our_scan(b: int, l: int, backend: str, device: torch.device) -> tuple[Outputs, list[Tensor]]:
    """Both directions; B and C are parts of the rows of x_proj, the gate is half of the in-projection."""
    u, delta = draw(2, b, l, INNER, device=device), draw(2, b, l, INNER, device=device) * 0.5
    rows, gate = draw(2, b, l, RANK + 2 * STATE, device=device), draw(b, l, 2 * INNER, device=device)
    skip, bias = wide(2, INNER, device=device), wide(2, INNER, device=device) - 3
    B, C = rows[..., RANK : RANK + STATE], rows[..., RANK + STATE :]
    inputs = [u, delta, decays(2, device=device), B, C, skip, gate[..., INNER:], bias]
    inputs = [x.requires_grad_() for x in inputs]
    return lambda: selective_scan(*inputs, backend=backend), inputs


def our_conv(b: int, l: int, backend: str, device: torch.device) -> tuple[Outputs, list[Tensor]]:
    x = draw(b, l, 2 * INNER, device=device)[..., :INNER]
    inputs = [x, wide(2, INNER, TAPS, device=device), wide(2, INNER, device=device)]
    inputs = [x.requires_grad_() for x in inputs]
    return lambda: causal_conv(*inputs, backend=backend), inputs


def official_scan(b: int, l: int, device: torch.device) -> tuple[Call, Callable[[], Call]]:
    """The kernels called as they are, without autograd: gate, bias and softplus fused, out of (E, B, L)."""
    kernel = extension("selective_scan_cuda")
    u, delta, z, grad = (draw(INNER, b, l, device=device).transpose(0, 1) for _ in range(4))
    B, C = (draw(b, 1, STATE, l, device=device) for _ in range(2))
    skip, bias, A = wide(INNER, device=device), wide(INNER, device=device) - 3, decays(device=device)
    inputs = (u, delta * 0.5, A, B, C, skip, z, bias)

    def prepare() -> Call:
        out, states, _ = kernel.fwd(*inputs, True)
        return all_of([lambda: kernel.bwd(*inputs, grad, states, out, None, True, False)] * 2)

    return all_of([lambda: kernel.fwd(*inputs, True)] * 2), prepare


def official_conv(b: int, l: int, device: torch.device) -> tuple[Call, Callable[[], Call]]:
    kernel = extension("causal_conv1d_cuda")
    x, grad, out, d_x = (draw(INNER, b, l, device=device).transpose(0, 1) for _ in range(4))
    weight, bias = wide(INNER, TAPS, device=device), wide(INNER, device=device)
    slopes = torch.zeros_like(weight), torch.zeros_like(bias)
    inputs = (x, weight, bias)
    forward = all_of([lambda: kernel.causal_conv1d_fwd(*inputs, None, None, out, None, True)] * 2)
    backward = all_of(
        [lambda: kernel.causal_conv1d_bwd(*inputs, grad, None, None, None, d_x, *slopes, None, True)] * 2
    )
    return forward, lambda: backward


def norm_inputs(b: int, l: int, device: torch.device) -> list[Tensor]:
    """Output of a mixer, the residual, and the weight."""
    hidden, residual = draw(b, l, WIDTH, device=device), wide(b, l, WIDTH, device=device)
    return [x.requires_grad_() for x in (hidden, residual, torch.ones(WIDTH, device=device))]


def our_norm(b: int, l: int, backend: str, device: torch.device) -> tuple[Outputs, list[Tensor]]:
    """Added to the residual and normalised."""
    hidden, residual, weight = inputs = norm_inputs(b, l, device)
    add_norm = torch.ops.flexvideo.add_norm
    return lambda: add_norm(hidden, residual, weight, 1e-5, torch.bfloat16, backend), inputs


def official_norm(b: int, l: int, device: torch.device) -> tuple[Call, Callable[[], Call]]:
    """mamba-ssm's fused kernel."""
    add_norm, (hidden, residual, weight) = official_add_norm(), norm_inputs(b, l, device)
    norm = torch.nn.RMSNorm(WIDTH, eps=1e-5, device=device)
    norm.weight = torch.nn.Parameter(weight.detach())
    return differentiated(lambda: add_norm(hidden, norm, residual), [hidden, residual, norm.weight])
