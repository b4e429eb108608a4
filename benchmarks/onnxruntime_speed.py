"""ONNX Runtime on the CPU at a published size: beside its matrix products alone, and in memory."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowturbo_trt.benchmarks.random_weights import write_checkpoints
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.report import Check
from flowturbo_trt.evaluation.speed.benchmark import Benchmark, BenchmarkOptions, Measured
from flowturbo_trt.evaluation.speed.latency import QUIET_SECONDS, Stability
from flowturbo_trt.evaluation.speed.latency import measure as timed
from flowturbo_trt.export.build import build
from flowturbo_trt.export.options import BuildOptions
from flowturbo_trt.models.sit import SiTConfig
from flowturbo_trt.runtime.backend_onnxruntime import OnnxRuntimeBackend
from flowturbo_trt.sampling.schedule import Schedule

MODEL, SCHEDULE, GUIDANCE = "SiT-B/4", "H1P5R3", 1.5
BATCHES = (1, 8)
STABILITY = Stability(precision=0.03, at_least=9, seconds=150)
MIN_SHARE_OF_SGEMM, MAX_RESIDENT = 0.7, 1.3
# What a process holds before it loads a bundle: the interpreter, NumPy, ONNX Runtime.
EMPTY = """
import flowturbo_trt.runtime.pipeline, flowturbo_trt.runtime.backend_onnxruntime
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")))
"""


def measure(folder: Path) -> tuple[dict[str, Any], list[Check]]:
    """Build the bundle in `folder` and time it; wants a machine with nothing else to do."""
    config = write_checkpoints(folder, MODEL)
    options = BuildOptions(
        predictor=folder / "predictor.pt",
        refiner=folder / "refiner.pt",
        model=MODEL,
        batches=BATCHES,
        schedules=(SCHEDULE,),
    )
    bundle = build(options, folder / "bundle")
    benchmark = Benchmark(bundle, BenchmarkOptions(guidance=GUIDANCE, stability=STABILITY))
    cases = [benchmark.case(Schedule.parse(SCHEDULE), batch) for batch in BATCHES]
    rows = [row(benchmark.measure(case, lambda text: None), config, bundle) for case in cases]
    figures = {
        "model": MODEL,
        "schedule": SCHEDULE,
        "guidance": GUIDANCE,
        "precision": "fp32",
        "backend": "onnxruntime",
        "batches": rows,
    }
    return figures, [check for found in rows for check in checks(found)]


def row(measured: Measured, config: SiTConfig, bundle: Bundle) -> dict[str, Any]:
    """Put together what was measured at one batch size."""
    assert measured.startup.loaded_bytes is not None
    batch = measured.case.batch
    loaded = measured.startup.loaded_bytes - empty_process()
    return {
        "batch": batch,
        "milliseconds": round(1000 * measured.timing.median, 1),
        "share_of_sgemm": round(share_of_sgemm(bundle, config, batch), 3),
        "loaded_megabytes": round(loaded / 1e6, 1),
        "weight_megabytes": round(measured.weight_bytes / 1e6, 1),
    }


def checks(found: dict[str, Any]) -> list[Check]:
    batch, share = found["batch"], found["share_of_sgemm"]
    resident = found["loaded_megabytes"] / found["weight_megabytes"]
    return [
        Check(
            f"{MODEL}, batch {batch}: time of the best sgemm on the same products / evaluation",
            share,
            f"at least {MIN_SHARE_OF_SGEMM}",
            share >= MIN_SHARE_OF_SGEMM,
        ),
        Check(
            f"{MODEL}, batch {batch}: resident memory of a loaded pipeline / its weights",
            resident,
            f"at most {MAX_RESIDENT}",
            resident <= MAX_RESIDENT,
        ),
    ]


def share_of_sgemm(bundle: Bundle, config: SiTConfig, batch: int) -> float:
    """Divide the time that its matrix products take in the best library by a predictor evaluation's."""
    engine = bundle.manifest.engine("predictor", "guided", "onnxruntime")
    arrays = {t.name: np.zeros((batch, *map(int, t.shape[1:])), t.dtype) for t in engine.inputs}
    evaluate = partial(OnnxRuntimeBackend(bundle, 0).evaluate, "predictor", "guided", arrays)
    pairs = products(config, batch)
    timings = timed(
        {"evaluation": evaluate, "torch": partial(multiply, pairs), "numpy": as_numpy(pairs)},
        STABILITY,
        pause=QUIET_SECONDS,
    )
    best = min(timings["torch"].median, timings["numpy"].median)
    return best / timings["evaluation"].median


def products(config: SiTConfig, batch: int) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    """Return a guided evaluation's matrix products as (how often, left, right)."""
    D, rows = config.hidden_size, 2 * batch
    N, heads = config.grid**2, config.num_heads
    shapes = [
        ((rows * N, D), (D, 3 * D)),
        ((rows * heads, N, D // heads), (rows * heads, D // heads, N)),
        ((rows * heads, N, N), (rows * heads, N, D // heads)),
        ((rows * N, D), (D, D)),
        ((rows * N, D), (D, 4 * D)),
        ((rows * N, 4 * D), (4 * D, D)),
    ]
    return [(config.depth, torch.randn(left), torch.randn(right)) for left, right in shapes]


def multiply(pairs: list[tuple[int, Any, Any]]) -> None:
    for count, left, right in pairs:
        for _ in range(count):
            left @ right


def as_numpy(pairs: list[tuple[int, torch.Tensor, torch.Tensor]]) -> Callable[[], None]:
    return partial(multiply, [(count, left.numpy(), right.numpy()) for count, left, right in pairs])


def empty_process() -> int:
    """Return the bytes resident before a bundle is loaded."""
    done = subprocess.run([sys.executable, "-c", EMPTY], capture_output=True, text=True, check=True)
    return 1024 * int(done.stdout)
