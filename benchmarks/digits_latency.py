"""What the digits example costs: latency by schedule, start of a process, overhead of the runtime."""

import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flowturbo_trt.benchmarks.digits_quality import SCHEDULES
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.report import Check
from flowturbo_trt.evaluation.speed.breakdown import breakdown
from flowturbo_trt.evaluation.speed.latency import Stability, interleaved_medians
from flowturbo_trt.examples.digits.bundle import BATCHES, GUIDANCE, build_digits
from flowturbo_trt.runtime.backend_onnxruntime import OnnxRuntimeBackend
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.sampling.schedule import Schedule

REPEATS = 21
START = "from flowturbo_trt import Pipeline; Pipeline.load({path!r})(labels=[3])"
FORBIDDEN = ("torch", "onnx", "diffusers", "safetensors")


def measure(folder: Path) -> tuple[dict[str, Any], list[Check]]:
    """Build the bundle in `folder` and time it; wants a machine with nothing else to do."""
    bundle = build_digits(folder / "digits")
    milliseconds = latency(Pipeline.load(bundle.path))
    rows = [
        {
            "schedule": text,
            "evaluations": dict(Schedule.parse(text).evaluations()),
            "ms_per_image": {str(batch): round(ms, 3) for batch, ms in milliseconds[text].items()},
        }
        for text in SCHEDULES
    ]
    figures = {
        "precision": "fp32",
        "backend": "onnxruntime",
        "guidance": GUIDANCE,
        "repeats": REPEATS,
        "schedules": rows,
    }
    return figures, [start_check(bundle.path), overhead_check(bundle)]


def latency(pipeline: Pipeline) -> dict[str, dict[int, float]]:
    """Return median milliseconds per image by schedule and batch, all measured in one run."""
    calls: dict[str, Callable[[], object]] = {}
    for text in SCHEDULES:
        for batch in BATCHES:
            labels = np.arange(batch) % 10
            calls[f"{text} {batch}"] = partial(pipeline, labels, guidance=GUIDANCE, schedule=text)
    seconds = interleaved_medians(calls, REPEATS)
    return {t: {b: 1000 * seconds[f"{t} {b}"] / b for b in BATCHES} for t in SCHEDULES}


def start_check(path: Path) -> Check:
    """Time a process from start to first image, and see that it loads no training library."""
    code = START.format(path=str(path))
    watch = f"import sys; {code}; assert not [m for m in {FORBIDDEN} if m in sys.modules]"
    run = partial(subprocess.run, [sys.executable, "-c", watch], check=True)
    seconds = interleaved_medians({"start": run}, 5)["start"]
    return Check("seconds from process start to first image", seconds, "at most 3", seconds <= 3)


def overhead_check(bundle: Bundle) -> Check:
    """Compare a trajectory with its engines alone, timed in turn; batch as in the table."""
    backend = OnnxRuntimeBackend(bundle, 0)
    program = bundle.manifest.programs["H1P5R3"]["guided"]
    fixed = Stability(at_least=51, at_most=51, seconds=math.inf)
    parts = breakdown(backend, bundle.manifest, program, max(BATCHES), fixed, decode=False)
    assert parts is not None
    met = parts.overhead <= 0.01
    return Check(
        "runtime overhead over the engines alone",
        parts.overhead,
        "at most 0.01",
        met,
        parts.overhead_interval,
    )
