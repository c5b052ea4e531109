"""Times on a GPU by events, medians with their spread; on the CPU by the clock, to try the scripts."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

__all__ = ["device_facts", "event_times", "graph_times", "summary", "times"]

_FEWEST, _MOST = 5, 60


def summary(milliseconds: Sequence[float], how: str) -> dict[str, Any]:
    """Median, and the first and last decile, in milliseconds."""
    ordered = sorted(milliseconds)
    last = len(ordered) - 1
    return {
        "ms": statistics.median(ordered),
        "low": ordered[round(0.1 * last)],
        "high": ordered[round(0.9 * last)],
        "repeats": len(ordered),
        "how": how,
    }


def times(
    calls: Sequence[Callable[[], Any]], device: torch.device, *, graph: bool = False, seconds: float = 0.1
) -> dict[str, Any]:
    """Time of one call, the calls made in turn.

    Args:
        calls: the same work on different inputs, so that the cache holds none of them.
        device: where they run.
        graph: record the calls in a CUDA graph and time its replays; where that is refused, time the calls.
        seconds: how long to measure, within 5 to 60 repeats.
    """
    if device.type != "cuda":
        return _clock_times(calls, seconds)
    if not graph:
        return event_times(calls, seconds)
    try:
        return graph_times(calls, seconds)
    except RuntimeError as error:
        torch.cuda.synchronize()  # raises if the device is lost
        return {**event_times(calls, seconds), "no_graph": str(error).splitlines()[0][:200]}


def event_times(calls: Sequence[Callable[[], Any]], seconds: float) -> dict[str, Any]:
    """One pair of events a call. The device first sleeps, so that the host runs ahead and no launch is waited for."""
    for call in calls:
        call()
    repeats = _repeats(lambda: [call() for call in calls], seconds) * len(calls)
    repeats = min(repeats, _MOST)
    pairs = [(_event(), _event()) for _ in range(repeats)]
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000)  # about a millisecond
    for index, (start, end) in enumerate(pairs):
        start.record()
        calls[index % len(calls)]()
        end.record()
    torch.cuda.synchronize()
    return summary([start.elapsed_time(end) for start, end in pairs], "events")


def graph_times(calls: Sequence[Callable[[], Any]], seconds: float) -> dict[str, Any]:
    """Replays of one CUDA graph that holds all calls, divided by their number.

    Raises:
        RuntimeError: a call does what cannot be captured.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            for call in calls:
                call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call() for call in calls]  # kept, so that every call has memory of its own for its results
    graph.replay()
    repeats = _repeats(graph.replay, seconds)
    pairs = [(_event(), _event()) for _ in range(repeats)]
    torch.cuda.synchronize()
    for start, end in pairs:
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    result = summary([start.elapsed_time(end) / len(calls) for start, end in pairs], "graph")
    del kept
    graph.reset()
    return result


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


def _repeats(call: Callable[[], Any], seconds: float) -> int:
    torch.cuda.synchronize()
    start, end = _event(), _event()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return min(max(int(seconds / max(start.elapsed_time(end) / 1e3, 1e-6)), _FEWEST), _MOST)


def _clock_times(calls: Sequence[Callable[[], Any]], seconds: float) -> dict[str, Any]:
    calls[0]()
    found, end = [], time.perf_counter() + seconds
    while len(found) < 3 or (time.perf_counter() < end and len(found) < _MOST):
        start = time.perf_counter()
        calls[len(found) % len(calls)]()
        found.append(1e3 * (time.perf_counter() - start))
    return summary(found, "clock")


def device_facts(device: torch.device) -> dict[str, Any]:
    """Copy bandwidth in bytes read and written, the rate of a bf16 matrix product, on random data."""
    size = 2**30 if device.type == "cuda" else 2**22
    source = torch.randn(size, device=device)  # 4 GiB
    target = torch.empty_like(source)
    copy = times([lambda: target.copy_(source)], device, seconds=0.1)
    copied = 2 * source.nbytes
    source = target = None
    side = 8192 if device.type == "cuda" else 128
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = times([lambda: a @ b], device, seconds=0.1)
    return {
        "copy_bytes_per_s": copied / copy["ms"] * 1e3,
        "bf16_flop_per_s": 2 * side**3 / product["ms"] * 1e3,
        "copy": copy,
        "product": product,
    }
