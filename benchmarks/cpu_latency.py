"""What a user gets on the CPU: this project's backends beside torch, whole trajectories in one run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flowturbo_trt.benchmarks.random_weights import write_checkpoints
from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.metrics import relative_l2
from flowturbo_trt.evaluation.report import Check
from flowturbo_trt.evaluation.speed.breakdown import breakdown
from flowturbo_trt.evaluation.speed.latency import QUIET_SECONDS, Stability, Timing
from flowturbo_trt.evaluation.speed.latency import measure as timed
from flowturbo_trt.evaluation.torch_reference import TorchOptions, load_torch_networks
from flowturbo_trt.examples.digits.bundle import digits_options
from flowturbo_trt.export.build import build
from flowturbo_trt.export.options import CONDITIONING, BuildOptions
from flowturbo_trt.runtime.backend import load_backend
from flowturbo_trt.runtime.backend_openvino import import_openvino, precisions
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.runtime.request import Request, make_request

SCHEDULE, GUIDANCE, MODEL, THREADS = "H1P5R3", 1.5, "SiT-B/4", 2
STABILITY = Stability(precision=0.03, at_least=7, seconds=40)
BACKENDS = ("onnxruntime", "openvino")
# The project's default, then what else it has, then torch.
DEFAULT = "onnxruntime fp32"
OURS = {DEFAULT: ("onnxruntime", "fp32"), "openvino fp32": ("openvino", "fp32")}
HALF = {"openvino bf16": ("openvino", "bf16")}
TORCH = {
    "torch eager fp32": TorchOptions(threads=THREADS),
    "torch.compile fp32": TorchOptions(compiled=True, threads=THREADS),
}
TORCH_HALF = {"torch eager bf16": TorchOptions(precision="bf16", threads=THREADS)}


@dataclass(frozen=True)
class Promise:
    """At least `factor` times as fast as `other`."""

    name: str
    other: str
    factor: float


PROMISES = (
    Promise(DEFAULT, "torch eager fp32", 2.0),
    Promise(DEFAULT, "torch.compile fp32", 1.2),
    Promise("openvino bf16", "torch eager bf16", 1.8),
    Promise("openvino bf16", "torch eager fp32", 4.0),
)
MAX_OVERHEAD, MAX_HOISTED, MAX_HOISTED_DIFFERENCE = 0.01, 1.03, 1e-5


def measure(folder: Path) -> tuple[dict[str, Any], list[Check]]:
    """Build the bundles in `folder` and time them; wants a machine with nothing else to do."""
    bundles = {
        "digits": build_both(digits_options(), folder / "digits", (8,)),
        MODEL: build_both(random_options(folder), folder / "random", (1,)),
    }
    cases = [("digits", 8), (MODEL, 1)]
    rows, checks = [], []
    for model, batch in cases:
        row = measure_case(bundles[model], batch)
        rows.append({"model": model, "batch": batch, **row})
        checks += [check for p in PROMISES for check in promised(p, model, batch, row["milliseconds"])]
        checks += hoisting_checks(model, batch, row)
    checks += [overhead_check(bundles[model]["hoisted"], model, batch) for model, batch in cases]
    figures = {"schedule": SCHEDULE, "guidance": GUIDANCE, "threads": THREADS, "cases": rows}
    return figures, checks


def random_options(folder: Path) -> BuildOptions:
    write_checkpoints(folder, MODEL)
    return BuildOptions(
        predictor=folder / "predictor.pt", refiner=folder / "refiner.pt", model=MODEL, schedules=(SCHEDULE,)
    )


def build_both(options: BuildOptions, out: Path, batches: tuple[int, ...]) -> dict[str, Bundle]:
    """Build a bundle with its conditioning hoisted, and one with it fused."""
    options = replace(options, batches=batches, backends=BACKENDS, precisions=("openvino=fp32",))
    return {way: build(replace(options, conditioning=way), Path(f"{out}-{way}")) for way in CONDITIONING}


def measure_case(bundles: dict[str, Bundle], batch: int) -> dict[str, Any]:
    """Time every alternative in turn on the same request; latents of each are held against the default's."""
    bundle = bundles["hoisted"]
    request = make_rows(bundle.manifest, batch)
    has_bf16 = "bf16" in precisions(import_openvino().Core())
    ours = OURS | (HALF if has_bf16 else {})
    torch = TORCH | (TORCH_HALF if has_bf16 else {})
    calls: dict[str, Callable[[], Any]] = {}
    for name, (backend, precision) in ours.items():
        calls[name] = latents_of(open_pipeline(in_precision(bundle, backend, precision), backend), request)
    calls[f"{DEFAULT}, fused"] = latents_of(open_pipeline(bundles["fused"], "onnxruntime"), request)
    program = bundle.manifest.programs[SCHEDULE]["guided"]
    assert request.noise is not None
    inputs = (program, request.noise, request.conditions, request.guidance)
    for name, options in torch.items():
        calls[name] = partial(load_torch_networks(bundles["fused"], options).run, *inputs, decode=False)
    expected = calls[DEFAULT]()
    difference = {name: relative_l2(call(), expected) for name, call in calls.items()}
    timings = timed(calls, STABILITY, pause=QUIET_SECONDS)
    return {
        "milliseconds": {name: round(1000 * timing.median, 2) for name, timing in timings.items()},
        "interval_ms": {name: _interval(timing) for name, timing in timings.items()},
        "relative_l2_to_default": difference,
    }


def make_rows(manifest: Manifest, batch: int) -> Request:
    labels = np.arange(batch) % (manifest.model.conditions[0].maximum + 1)
    request = make_request(manifest.model, {"label": labels}, None, GUIDANCE, None)
    noise = np.empty((batch, *manifest.model.latent), dtype=np.float32)
    request.fill_noise(slice(0, batch), noise)
    return replace(request, noise=noise)


def in_precision(bundle: Bundle, backend: str, precision: str) -> Bundle:
    """Return the bundle with another precision where that is a matter of loading, not of the file."""
    engines = tuple(
        replace(engine, precision=precision) if engine.backend == backend else engine
        for engine in bundle.manifest.engines
    )
    return Bundle(bundle.path, replace(bundle.manifest, engines=engines))


def open_pipeline(bundle: Bundle, backend: str) -> Pipeline:
    return Pipeline(bundle, load_backend(backend, bundle, "cpu", THREADS))


def latents_of(pipeline: Pipeline, request: Request) -> Callable[[], Any]:
    return lambda: pipeline.generate(request, SCHEDULE, decode=False).latents


def promised(promise: Promise, model: str, batch: int, milliseconds: dict[str, float]) -> Sequence[Check]:
    """Hold a case against a promise made for it."""
    if promise.name not in milliseconds:
        return []
    factor = milliseconds[promise.other] / milliseconds[promise.name]
    what = f"{model}, batch {batch}: {promise.other} / {promise.name}"
    return [Check(what, factor, f"at least {promise.factor}", factor >= promise.factor)]


def hoisting_checks(model: str, batch: int, row: dict[str, Any]) -> list[Check]:
    fused = f"{DEFAULT}, fused"
    ratio = row["milliseconds"][DEFAULT] / row["milliseconds"][fused]
    difference = row["relative_l2_to_default"][fused]
    where = f"{model}, batch {batch}: conditioning hoisted"
    return [
        Check(f"{where} / fused, time", ratio, f"at most {MAX_HOISTED}", ratio <= MAX_HOISTED),
        Check(
            f"{where} against fused, relative L2 of the latents",
            difference,
            f"at most {MAX_HOISTED_DIFFERENCE}",
            difference <= MAX_HOISTED_DIFFERENCE,
        ),
    ]


def overhead_check(bundle: Bundle, model: str, batch: int) -> Check:
    """Compare a trajectory with its engines alone, round by round."""
    backend = load_backend("onnxruntime", bundle, "cpu", THREADS)
    stability = Stability(at_least=15, seconds=20)
    program = bundle.manifest.programs[SCHEDULE]["guided"]
    parts = breakdown(backend, bundle.manifest, program, batch, stability, decode=False)
    assert parts is not None
    met = parts.overhead <= MAX_OVERHEAD
    name = f"{model}, batch {batch}: runtime overhead over the engines alone"
    return Check(name, parts.overhead, f"at most {MAX_OVERHEAD}", met, parts.overhead_interval)


def _interval(timing: Timing) -> list[float]:
    return [round(1000 * end, 2) for end in timing.interval]
