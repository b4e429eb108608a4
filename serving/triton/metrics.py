"""What a served model tells of its work, beside what the server counts by itself, for Prometheus."""

import threading
import time
from collections import defaultdict
from typing import Any

import triton_python_backend_utils as pb_utils

# To add to a counter is a round trip to the server's process, which no request should wait for.
FLUSH_SECONDS = 1.0

# Family and the labels that come beside model and version.
_Key = tuple[str, tuple[tuple[str, str], ...]]

FAMILIES = {
    "flowturbo_rows_total": "Images generated",
    "flowturbo_padded_rows_total": "Rows that only filled a batch up",
    "flowturbo_evaluations_total": "Runs of a network's engine, whatever their batch",
    "flowturbo_stage_milliseconds_total": (
        "Time by kind of step, decode and preview, or of whole trajectories; noise counts to the first step"
    ),
    "flowturbo_stages_total": "How many stages of a kind were timed",
    "flowturbo_cancelled_requests_total": "Requests answered with CANCELLED",
    "flowturbo_failed_requests_total": "Requests refused as invalid, or failed for an internal reason",
}


class Metrics:
    """Counters of one instance of a model; those of all its instances add up.

    They reach the server within FLUSH_SECONDS, and when closed.
    """

    def __init__(self, model: str, version: str) -> None:
        self._labels = {"model": model, "version": version}
        self._families = {
            name: pb_utils.MetricFamily(name=name, description=text, kind=pb_utils.MetricFamily.COUNTER)
            for name, text in FAMILIES.items()
        }
        self._counters: dict[_Key, Any] = {}
        self._lock = threading.Lock()
        self._added: dict[_Key, float] = defaultdict(float)
        # An alert on a rate needs the counter before anything has gone wrong.
        self.add("flowturbo_rows_total", 0)
        self.add("flowturbo_padded_rows_total", 0)
        self.add("flowturbo_cancelled_requests_total", 0)
        for reason in ("invalid", "internal"):
            self.add("flowturbo_failed_requests_total", 0, reason=reason)
        self.flush()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep_flushing, name="metrics", daemon=True)
        self._thread.start()

    def add(self, family: str, amount: float, **labels: str) -> None:
        """Add to a counter of FAMILIES; `labels` come beside model and version."""
        with self._lock:
            self._added[family, tuple(sorted(labels.items()))] += amount

    def flush(self) -> None:
        """Tell the server what has been added since the last time."""
        with self._lock:
            added, self._added = self._added, defaultdict(float)
        for key, amount in added.items():
            if key not in self._counters:
                family, labels = key
                self._counters[key] = self._families[family].Metric(labels=self._labels | dict(labels))
            self._counters[key].increment(amount)

    def close(self) -> None:
        """Tell the server the rest."""
        self._closed.set()
        self._thread.join()
        self.flush()

    def _keep_flushing(self) -> None:
        while not self._closed.wait(FLUSH_SECONDS):
            self.flush()


class StageTimer:
    """Times what goes on from one `end` to the next, the first from its own making."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._began = time.perf_counter()

    def end(self, stage: str) -> None:
        """Count the time since the last stage ended for this one."""
        now = time.perf_counter()
        self._metrics.add("flowturbo_stage_milliseconds_total", (now - self._began) * 1000, stage=stage)
        self._metrics.add("flowturbo_stages_total", 1, stage=stage)
        self._began = now
