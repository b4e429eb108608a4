"""What a process that makes one image costs: time from its start, and memory. Measured in fresh processes."""

import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.runtime.request import make_request
from flowturbo_trt.sampling.errors import FlowTurboError

RUNS = 5
# What this process imports from, and not from the folder it happens to be in.
CHILD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from flowturbo_trt.evaluation.speed.startup import main
main(sys.argv[2])
"""


class StartupError(FlowTurboError):
    """A fresh process did not get to its first image."""


@dataclass(frozen=True)
class Work:
    """What the process does: load a bundle, make one batch."""

    path: str
    backend: str
    device: str
    provider: str | None
    threads: int
    schedule: str
    batch: int
    guidance: float
    decode: bool


@dataclass(frozen=True)
class Startup:
    """Medians over processes: seconds from process start to the first image (or latents), bytes of memory.

    `loaded_bytes` is resident after loading, `peak_bytes` the most that was resident; None on systems
    that do not tell (they are read from Linux's /proc).
    """

    seconds: float
    runs: int
    loaded_bytes: int | None
    peak_bytes: int | None


def measure_startup(work: Work, runs: int = RUNS) -> Startup:
    """Start processes one after the other; raises StartupError."""
    found = [_run(work) for _ in range(runs)]
    return Startup(
        statistics.median(run["seconds"] for run in found),
        runs,
        _median([run["loaded_bytes"] for run in found]),
        _median([run["peak_bytes"] for run in found]),
    )


def _run(work: Work) -> dict[str, Any]:
    started = time.time()
    command = [sys.executable, "-P", "-c", CHILD, json.dumps(sys.path), json.dumps(asdict(work))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise StartupError(f"{work.path}: a fresh process failed before its first image: {reason}")
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report | {"seconds": report["finished"] - started}


def _median(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return int(statistics.median(known)) if known else None


def _memory(field: str) -> int | None:
    """Read a field of this process's memory in bytes."""
    # Not from `resource`: its peak is the parent's where that is larger.
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = next((line.split() for line in lines if line.startswith(f"{field}:")), None)
    return None if found is None else 1024 * int(found[1])


def main(argument: str) -> None:
    """Do the work and print when it was done and what memory it took."""
    work = Work(**json.loads(argument))
    pipeline = Pipeline.load(
        work.path, backend=work.backend, device=work.device, threads=work.threads, provider=work.provider
    )
    loaded = _memory("VmRSS")
    labels = [0] * work.batch
    request = make_request(pipeline.manifest.model, {"label": labels}, None, work.guidance, None)
    pipeline.generate(request, work.schedule, decode=work.decode)
    report = {"finished": time.time(), "loaded_bytes": loaded, "peak_bytes": _memory("VmHWM")}
    print(json.dumps(report))
