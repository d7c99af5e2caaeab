"""The least time that a forward pass or a training step can take on an H100, counted.

Every part of the work is bound by one of four rates: bytes moved, products in the tensor cores, exponentials
in the special-function units, instructions issued. Its floor is the longest of the four times, and the floor
of a model the sum over its parts, in the order in which ours runs them: nothing of one part is hidden behind
another. Counted are bfloat16 sequences with a float32 residual, state 16, both directions.
"""

import math
from dataclasses import dataclass

# An H100 SXM, a second: copied as measured, multiplied as measured, and by the clock of its 132 SMs
# 16 special functions and 128 instructions of a lane each.
BYTES, FLOPS = 3.0e12, 790e12
CLOCKS = 132 * 1.7e9
EXPS, ISSUES = 16 * CLOCKS, 128 * CLOCKS

STATE, EXPAND, DIRECTIONS = 16, 2, 2
# Special functions a channel and token: an exponential a state, two for softplus; of a convolution the SiLU.
SCAN_EXPS, CONV_EXPS, GATE_EXPS = STATE + 2, 1, 1
BACKWARD_EXPS = (
    2.2  # a state: the decay, again where a block's states are found anew, and the rest shared out
)
# Instructions a state, counted in compiled prototypes: forward, and backward from states kept every 64 steps.
FORWARD_ISSUES, BACKWARD_ISSUES = 7.3, 24
ADAMW_BYTES = 28  # a weight: weight and two moments read and written, gradient read


@dataclass(frozen=True)
class Work:
    """What a part of the work needs."""

    bytes: float = 0
    flops: float = 0
    exps: float = 0
    issues: float = 0

    @property
    def milliseconds(self) -> float:
        """Its longest time."""
        times = (self.bytes / BYTES, self.flops / FLOPS, self.exps / EXPS, self.issues / ISSUES)
        return 1e3 * max(times)


def model_floor(*, width: int, depth: int, weights: int, batch: int, tokens: int, train: bool) -> float:
    """Milliseconds of a VideoMamba's blocks, and of AdamW over its weights when it trains.

    Args:
        width: of the tokens.
        depth: number of blocks.
        weights: number of all weights.
        batch: clips.
        tokens: of a clip.
        train: forward, backward and optimizer; else forward alone.
    """
    m = batch * tokens
    parts = forward_parts(m, width) + (backward_parts(m, width) if train else [])
    update = Work(bytes=ADAMW_BYTES * weights if train else 0)
    return depth * sum(part.milliseconds for part in parts) + update.milliseconds


def forward_parts(m: int, width: int) -> list[Work]:
    """One block on m tokens: norm; in-projection; convolution with x_proj; scan with dt_proj; out-projection.

    The convolution is found twice instead of being kept: each time x is read once.
    """
    inner, rows = EXPAND * width, small_rows(width)
    small = Work(bytes=2 * m * (inner + DIRECTIONS * rows), flops=DIRECTIONS * product(m, inner, rows).flops)
    scan = scan_forward(m, inner, directions_read=1)
    fused = Work(
        bytes=scan.bytes,
        flops=DIRECTIONS * product(m, rows - 2 * STATE, inner).flops,
        exps=scan.exps + DIRECTIONS * CONV_EXPS * m * inner,
        issues=scan.issues,
    )
    return [norm_forward(m, width), product(m, width, 2 * inner), small, fused, product(m, inner, width)]


def backward_parts(m: int, width: int) -> list[Work]:
    """The same block backward: two products for each of the forward's."""
    inner, rows = EXPAND * width, small_rows(width)
    low = rows - 2 * STATE
    products = [product(m, *shape) for shape in ((inner, width), (width, 2 * inner))]
    products += [product(m, *shape) for shape in ((inner, rows), (low, inner)) for _ in range(DIRECTIONS)]
    return [scan_backward(m, inner), conv_backward(m, inner), norm_backward(m, width), *products * 2]


def small_rows(width: int) -> int:
    """Columns of x_proj: the rank of the step sizes, B and C."""
    return math.ceil(width / 16) + 2 * STATE


def product(m: int, k: int, n: int) -> Work:
    """A matrix product in bfloat16."""
    return Work(bytes=2 * (m * k + k * n + m * n), flops=2 * m * k * n)


def norm_forward(m: int, width: int) -> Work:
    """Added to the float32 residual and normalised: 2 and 4 bytes read, 4 and 2 written."""
    return Work(bytes=12 * m * width)


def norm_backward(m: int, width: int) -> Work:
    """The residual and its gradient read, 2 bytes of the other, and both gradients written."""
    return Work(bytes=(4 + 4 + 2 + 4 + 2) * m * width)


def conv_forward(m: int, inner: int) -> Work:
    """The convolution alone: read once, written for both directions."""
    return Work(bytes=2 * (1 + DIRECTIONS) * m * inner, exps=DIRECTIONS * CONV_EXPS * m * inner)


def conv_backward(m: int, inner: int) -> Work:
    """x and the gradients of both directions read, one gradient written."""
    return Work(bytes=2 * (1 + DIRECTIONS + 1) * m * inner, exps=DIRECTIONS * CONV_EXPS * m * inner)


def scan_forward(m: int, inner: int, *, directions_read: int = 2 * DIRECTIONS) -> Work:
    """Both directions, gated: `directions_read` sequences (u and the step sizes) and z read, one written."""
    states = DIRECTIONS * m * inner * STATE
    return Work(
        bytes=2 * m * ((directions_read + 2) * inner + 2 * DIRECTIONS * STATE),
        exps=(DIRECTIONS * SCAN_EXPS + GATE_EXPS) * m * inner,
        issues=FORWARD_ISSUES * states,
    )


def scan_backward(m: int, inner: int) -> Work:
    """u, step sizes, gate and gradient read, all their gradients written, from states kept every 64 steps."""
    states = DIRECTIONS * m * inner * STATE
    sequences = 2 * (2 * DIRECTIONS) + 3  # u and step sizes of both directions twice; z twice; the gradient
    return Work(
        bytes=2 * m * inner * sequences + 4 * states / 64,
        exps=BACKWARD_EXPS * states,
        issues=BACKWARD_ISSUES * states,
    )
