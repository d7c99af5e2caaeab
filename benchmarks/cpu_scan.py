"""The selective scan on a CPU: our C kernel, numba and torch side by side, and the scan's share of a forward.

    python benchmarks/cpu_scan.py --threads 2

VideoMamba-tiny and -middle, 16 x 224, batch 1. Times are the best of several runs in milliseconds; where
other processes use the cores, compare the columns rather than the numbers.
"""

import argparse
import time
from collections.abc import Callable

import torch
from _results import write_results
from torch.profiler import ProfilerActivity, profile

import flexvideo as fv
from flexvideo.scan import causal_conv, selective_scan

LENGTH, STATE = 1 + 16 * 14 * 14, 16
MODELS = {"tiny": fv.videomamba_tiny, "middle": fv.videomamba_middle}


def inputs(width: int) -> list[torch.Tensor]:
    k, b = 2, 1
    r = torch.randn
    A = -torch.arange(1.0, STATE + 1).repeat(k, width, 1)
    B, C = r(k, b, LENGTH, STATE), r(k, b, LENGTH, STATE)
    u, delta = r(k, b, LENGTH, width), r(k, b, LENGTH, width) - 4
    return [u, delta, A, B, C, r(k, width), r(b, LENGTH, width), r(k, width)]


def best(function: Callable[[], object], seconds: float = 4.0) -> float:
    function()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or not times:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return round(min(times) * 1e3, 1)


def numba_scan(threads: int) -> Callable[[list[torch.Tensor]], torch.Tensor]:
    """The same algorithm in numba: blocks of 64 channels, a polynomial for the exponential."""
    import numba
    import numpy as np

    numba.set_num_threads(threads)
    block = 64

    @numba.njit(inline="always", fastmath={"contract", "nsz", "arcp"})
    def exp2(x):
        x = max(x, np.float32(-126))
        whole = np.floor(x + np.float32(0.5))
        f = x - whole
        p = np.float32(1.339086735e-03) * f + np.float32(9.666373693e-03)
        p = p * f + np.float32(5.550357104e-02)
        p = p * f + np.float32(2.402234894e-01)
        p = p * f + np.float32(6.931471880e-01)
        p = p * f + np.float32(1)
        return p * np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)

    @numba.njit(parallel=True, fastmath={"contract", "nsz", "arcp"})
    def scan(u, dt, A, B, C, D, gate):
        K, batch, length, width = u.shape
        out = np.zeros((batch, length, width), np.float32)
        blocks = width // block
        for task in numba.prange(batch * blocks):
            b, c = task // blocks, task % blocks * block
            y = np.empty(block, np.float32)
            for k in range(K):
                h = np.zeros((A.shape[1], block), np.float32)
                for i in range(length):
                    t = length - 1 - i if k else i
                    for j in range(block):
                        y[j] = out[b, t, c + j] + D[k, c + j] * u[k, b, t, c + j]
                    for n in range(A.shape[1]):
                        b_n, c_n = B[k, b, t, n], C[k, b, t, n]
                        for j in range(block):
                            step = dt[k, b, t, c + j]
                            state = exp2(step * A[k, n, c + j]) * h[n, j] + step * u[k, b, t, c + j] * b_n
                            h[n, j] = state
                            y[j] += state * c_n
                    for j in range(block):
                        out[b, t, c + j] = y[j]
        return out * gate

    def run(tensors: list[torch.Tensor]) -> torch.Tensor:
        u, delta, A, B, C, D, z, bias = tensors
        dt = torch.nn.functional.softplus(delta + bias[:, None, None])
        A2 = (A.mT * 1.4426950408889634).contiguous()
        gate = torch.nn.functional.silu(z)
        return torch.from_numpy(scan(*(x.numpy() for x in (u, dt, A2, B, C, D, gate))))

    return run


def side_by_side(width: int, threads: int) -> dict[str, object]:
    tensors = inputs(width)
    truth = selective_scan(*(x.double() for x in tensors), backend="chunked")
    candidates: dict[str, Callable[[], torch.Tensor]] = {
        name: lambda name=name: selective_scan(*tensors, backend=name) for name in ("cpu", "chunked")
    }
    compiled = numba_scan(threads)
    candidates["numba"] = lambda: compiled(tensors)
    row: dict[str, object] = {}
    for name, function in candidates.items():
        row[f"{name}_forward_ms"] = best(function)
        row[f"{name}_error"] = float((function() - truth).norm() / truth.norm())
    leaves = [x.requires_grad_() for x in tensors]
    for name in ("cpu", "chunked"):
        out = selective_scan(*leaves, backend=name)
        row[f"{name}_backward_ms"] = best(
            lambda out=out: torch.autograd.grad(out, leaves, out.detach(), retain_graph=True)
        )
    x, weight, bias = torch.randn(1, LENGTH, width), torch.randn(2, width, 4), torch.randn(2, width)
    row["cpu_conv_ms"] = best(lambda: causal_conv(x, weight, bias, backend="cpu"))
    return row


def share(name: str, runs: int) -> dict[str, object]:
    """Self time of the scan and of the convolution within whole forwards, by torch's profiler."""
    model = MODELS[name](num_frames=16, num_classes=400).eval()
    clip = torch.randn(1, 3, 16, 224, 224)
    rows = []
    with torch.inference_mode():
        model(clip)
        for _ in range(runs):
            with profile(activities=[ProfilerActivity.CPU]) as record:
                model(clip)
            times = {event.key: event.self_cpu_time_total / 1e3 for event in record.key_averages()}
            total = sum(times.values())
            scan, conv = times["flexvideo::selective_scan"], times["flexvideo::causal_conv"]
            rows.append((total, scan / total, conv / total))
    total, scan, conv = min(rows)
    return {"forward_ms": round(total, 1), "scan_share": round(scan, 3), "conv_share": round(conv, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3, help="forwards of each model")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, object]] = []
    for name, width in (("tiny", 384), ("middle", 1152)):
        row = {"model": name, "threads": arguments.threads}
        row |= side_by_side(width, arguments.threads) | share(name, arguments.runs)
        rows.append(row)
        print(row)
    print(write_results("cpu_scan", rows))


if __name__ == "__main__":
    main()
