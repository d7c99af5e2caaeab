"""Time and memory of one call: CUDA events on a GPU, the clock on a CPU."""

import statistics
import time
from collections.abc import Callable

import torch

Run = Callable[[], object]
LEAST, MOST, SECONDS = 3, 20, 0.4  # calls timed, and about how long in all


def measure(prepare: Callable[[], Run], device: torch.device) -> tuple[float, float | None]:
    """Median milliseconds of what `prepare` returns, and the peak of allocated GiB on a GPU.

    The first call compiles and allocates, and its time does not count. Memory counts from the preparation on,
    where graphs allocate theirs. The caches of the device are not flushed: the caller gives more data than
    they hold.
    """
    timer = _events if device.type == "cuda" else _clock
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    run = prepare()
    run()
    times = [timer(run)]
    while len(times) < LEAST or (len(times) < MOST and sum(times) < 1e3 * SECONDS):
        times.append(timer(run))
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    return statistics.median(times), peak


def _events(run: Run) -> float:
    """From an idle device to an idle device: launches are part of it where the device waits for them."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def _clock(run: Run) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def capture(run: Run) -> Run:
    """The same work as one CUDA graph, replayed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
