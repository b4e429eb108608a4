"""Latency measured side by side: machines drift, so alternatives take turns within one run."""

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved_medians(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Run the calls in turn `repeats` times after one warm-up each; return median seconds by name."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}
