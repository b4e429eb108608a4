"""INT8 and FP8 engines: their time on the CPU beside float32's, and what TensorRT-RTX makes of them.

TensorRT-RTX's own engines have a half precision base; a plan is built of the very file that ONNX Runtime
runs as well, whose base is float32.

Weights and scales are made up, which arithmetic is no slower or faster for; every layer is smoothed, so
that the time of that counts.
"""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flowturbo_trt.benchmarks.plan_layers import plan_products
from flowturbo_trt.benchmarks.random_weights import write_checkpoints
from flowturbo_trt.bundle.manifest import Graph
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.report import Check
from flowturbo_trt.evaluation.speed.latency import QUIET_SECONDS, Stability
from flowturbo_trt.evaluation.speed.latency import measure as timed
from flowturbo_trt.export.build import build
from flowturbo_trt.export.compile import QUANTIZED, EngineRequest, Quantization
from flowturbo_trt.export.onnx_graph import load_graph
from flowturbo_trt.export.options import BuildOptions
from flowturbo_trt.export.quantization import QuantizedLinear, Recipe, linear_layers, save_recipe
from flowturbo_trt.runtime.backend import load_backend

MODEL, RTX_MODELS, SCHEDULE = "SiT-B/4", ("SiT-B/4", "SiT-B/2"), "H8"
BACKENDS = ("onnxruntime", "openvino")
# Batch → how many times as fast as float32 ONNX Runtime is to be.
PROMISED = {1: 1.4, 8: 1.8}
SAME_FILE = "onnxruntime's file,"
STABILITY = Stability(precision=0.03, at_least=9, seconds=150)
# Of values around 1, which those of normalised activations are.
SCALE, SMOOTHING = 4 / 127, 1.5


def measure(folder: Path) -> tuple[dict[str, Any], list[Check]]:
    """Build the bundles in `folder` and time them; wants a machine with nothing else to do."""
    plans: list[dict[str, Any]] = []
    checks: list[Check] = []
    for model in RTX_MODELS:
        whole, quantized = _bundles(folder / model.replace("/", "-"), model)
        for name, request, layers in _requests(whole, quantized):
            plans.append(_plan(model, name, request, layers, folder))
            checks += _plan_checks(plans[-1])
    place = folder / MODEL.replace("/", "-")
    rows = _times(*(Bundle.open(place / precision) for precision in ("float32", "int8")))
    for row in rows:
        ratio, limit = row["speed"]["onnxruntime"], PROMISED[row["batch"]]
        name = f"{MODEL}, batch {row['batch']}: onnxruntime, float32 / int8"
        checks.append(Check(name, ratio, f"at least {limit}", ratio >= limit))
    return {"model": MODEL, "cases": rows, "plans": plans}, checks


def _options(folder: Path, model: str) -> BuildOptions:
    return BuildOptions(
        predictor=folder / "predictor.pt",
        model=model,
        batches=tuple(PROMISED),
        backends=BACKENDS,
        schedules=(SCHEDULE,),
    )


def _bundles(folder: Path, model: str) -> tuple[Bundle, Bundle]:
    """Build a model in float32 and in INT8."""
    folder.mkdir()
    write_checkpoints(folder, model)
    options = _options(folder, model)
    whole = build(options, folder / "float32")
    recipe = Recipe(
        "int8",
        {"predictor guided": _layers(whole, _graph(whole))},
        {"predictor": whole.manifest.sources["predictor"]["sha256"]},
        passed=True,
        guided_channels=whole.manifest.model.guidance.channels,
        schedules=(SCHEDULE,),
        timed=(),
    )
    save_recipe(recipe, folder / "recipe.json")
    eight = replace(options, precisions=("int8",), recipes=(folder / "recipe.json",))
    return whole, build(eight, folder / "int8")


def _times(whole: Bundle, quantized: Bundle) -> list[dict[str, Any]]:
    """Time an evaluation in turn on all backends, in float32 and in INT8."""
    calls: dict[str, Callable[..., object]] = {}
    for backend in BACKENDS:
        for precision, bundle in (("fp32", whole), ("int8", quantized)):
            evaluate = load_backend(backend, bundle, "cpu", 0).evaluate
            calls[f"{backend} {precision}"] = partial(evaluate, "predictor", "guided")
    return [_row(calls, whole, batch) for batch in PROMISED]


def _row(calls: dict[str, Callable[..., object]], bundle: Bundle, batch: int) -> dict[str, Any]:
    random = np.random.default_rng(0)
    arrays = {
        t.name: random.standard_normal((batch, *map(int, t.shape[1:]))).astype(t.dtype)
        for t in _graph(bundle).inputs
    }
    timings = timed(
        {name: partial(call, arrays) for name, call in calls.items()}, STABILITY, pause=QUIET_SECONDS
    )
    milliseconds = {name: round(1000 * timing.median, 1) for name, timing in timings.items()}
    speed = {b: round(milliseconds[f"{b} fp32"] / milliseconds[f"{b} int8"], 2) for b in BACKENDS}
    return {"model": MODEL, "batch": batch, "milliseconds": milliseconds, "speed": speed}


def _requests(whole: Bundle, quantized: Bundle) -> Iterator[tuple[str, EngineRequest, int]]:
    """Yield plans of the predictor: a name, what it is built of, how many layers are in 8 bits."""
    graph = _graph(whole)
    batch = max(whole.manifest.batches)
    half = EngineRequest(
        graph.network,
        graph.variant,
        _checked(whole, graph.file, graph.data),
        graph.inputs,
        graph.outputs,
        "fp16",
        (batch,),
    )
    yield half.precision, half, 0
    quantization = Quantization(_layers(whole, graph), half.precision)
    for kind in QUANTIZED:
        yield kind, replace(half, precision=kind, quantization=quantization), len(quantization.layers)
    engine = quantized.manifest.engine("predictor", "guided", "onnxruntime")
    file = _checked(quantized, engine.file, engine.data)
    yield (
        f"{SAME_FILE} {engine.precision}",
        replace(half, graph=file, precision="fp32"),
        len(quantization.layers),
    )


def _checked(bundle: Bundle, file: str, data: tuple[str, ...]) -> Path:
    """Return a graph's file, its hash and those of its weights' files checked."""
    for other in data:
        bundle.file(other)
    return bundle.file(file)


def _plan(model: str, name: str, request: EngineRequest, layers: int, folder: Path) -> dict[str, Any]:
    size, products = plan_products(importlib.import_module("tensorrt_rtx"), request, folder)
    return {
        "model": model,
        "precision": name,
        "batch": request.batches[0],
        "megabytes": round(size / 1e6, 1),
        "products": products,
        "quantized_layers": layers,
    }


def _plan_checks(row: dict[str, Any]) -> Iterator[Check]:
    if not row["quantized_layers"]:
        return
    low = "FP8 × FP8" if row["precision"] == "fp8" else "Int8 × Int8"
    found = row["products"].get(low, 0)
    name = f"{row['model']}, tensorrt-rtx {row['precision']}: products of 8-bit inputs and weights"
    yield Check(name, found, f"{row['quantized_layers']}", found == row["quantized_layers"])


def _graph(bundle: Bundle) -> Graph:
    return next(graph for graph in bundle.manifest.graphs if graph.network == "predictor")


def _layers(bundle: Bundle, graph: Graph) -> dict[str, QuantizedLinear]:
    """Quantise every linear layer of the blocks."""
    products = linear_layers(load_graph(bundle.file(graph.file)))
    layers = {}
    for name, node in products.items():
        weight = node.inputs[1]
        assert weight is not None
        assert weight.shape is not None
        if name.startswith("blocks."):
            layers[name] = QuantizedLinear(SCALE, (SMOOTHING,) * int(weight.shape.numpy()[0]))
    return layers
