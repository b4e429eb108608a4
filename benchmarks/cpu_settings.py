"""ONNX Runtime's settings on the CPU, each changed alone: why sessions are opened as they are."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from flowturbo_trt.benchmarks.cpu_latency import GUIDANCE, MODEL, SCHEDULE, THREADS, random_options
from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.report import Check
from flowturbo_trt.evaluation.speed.latency import Stability
from flowturbo_trt.evaluation.speed.latency import measure as timed
from flowturbo_trt.examples.digits.bundle import digits_options
from flowturbo_trt.export.build import build
from flowturbo_trt.runtime.backend_onnxruntime import OnnxRuntimeEngine
from flowturbo_trt.runtime.host_trajectory import HostTrajectory
from flowturbo_trt.runtime.onnxruntime_session import session_options

STABILITY = Stability(precision=0.02, at_least=9, seconds=30)
AS_CHOSEN = "as chosen"
# A setting may be left as it is if no other is faster by more than this.
MARGIN = 0.05


def _entry(name: str, value: str) -> Callable[[Any], None]:
    return lambda options: options.add_session_config_entry(name, value)


def _attribute(name: str, value: object) -> Callable[[Any], None]:
    return lambda options: setattr(options, name, value)


SETTINGS: dict[str, Callable[[Any], None]] = {
    AS_CHOSEN: lambda options: None,
    "threads keep spinning": _entry("session.force_spinning_stop", "0"),
    "threads never spin": _entry("session.intra_op.allow_spinning", "0"),
    "one thread": _attribute("intra_op_num_threads", 1),
    "no memory arena": _attribute("enable_cpu_mem_arena", False),
    "no memory plan": _attribute("enable_mem_pattern", False),
    "parallel branches": _attribute("execution_mode", onnxruntime.ExecutionMode.ORT_PARALLEL),
    "tiny numbers as zero": _entry("session.set_denormal_as_zero", "1"),
    "weights not packed": _entry("session.disable_prepacking", "1"),
    "basic graph rewrites only": _attribute(
        "graph_optimization_level", onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    ),
}


def measure(folder: Path) -> tuple[dict[str, Any], list[Check]]:
    """Build the bundles in `folder` and time them; wants a machine with nothing else to do."""
    digits = build(digits_options(), folder / "digits")
    random = build(random_options(folder), folder / "random")
    rows, checks = [], []
    for model, bundle, batch in (("digits", digits, 10), (MODEL, random, 1)):
        calls = {name: trajectory(bundle, batch, change) for name, change in SETTINGS.items()}
        timings = timed(calls, STABILITY)
        milliseconds = {name: round(1000 * timing.median, 2) for name, timing in timings.items()}
        rows.append({"model": model, "batch": batch, "milliseconds": milliseconds})
        fastest = min(milliseconds, key=lambda name: milliseconds[name])
        ratio = milliseconds[AS_CHOSEN] / milliseconds[fastest]
        what = f"{model}, batch {batch}: settings as chosen / the fastest ({fastest})"
        checks.append(Check(what, ratio, f"at most {1 + MARGIN}", ratio <= 1 + MARGIN))
    return {"schedule": SCHEDULE, "guidance": GUIDANCE, "threads": THREADS, "cases": rows}, checks


def trajectory(bundle: Bundle, batch: int, change: Callable[[Any], None]) -> Callable[[], object]:
    """Bind the schedule to sessions with one setting changed."""
    engines: dict[tuple[str, str | None], OnnxRuntimeEngine] = {}

    def engine(network: str, variant: str | None) -> OnnxRuntimeEngine:
        if (network, variant) not in engines:
            engines[network, variant] = _open(bundle, network, variant, change)
        return engines[network, variant]

    manifest: Manifest = bundle.manifest
    program = manifest.programs[SCHEDULE]["guided"]
    bound = HostTrajectory(program, batch, manifest, "onnxruntime", engine)
    bound.inputs.noise[...] = np.random.default_rng(0).standard_normal(bound.inputs.noise.shape)
    bound.inputs.guidance[...] = GUIDANCE
    return partial(bound.start, decode=False)


def _open(
    bundle: Bundle, network: str, variant: str | None, change: Callable[[Any], None]
) -> OnnxRuntimeEngine:
    described = bundle.manifest.engine(network, variant, "onnxruntime")
    options = session_options(THREADS)
    change(options)
    file = bundle.file(described.file)
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return OnnxRuntimeEngine(described, session)
