"""What the digits example promises: recognition, the refiner's worth, distance to real digits, latency."""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.latency import interleaved_medians
from flowturbo_trt.evaluation.metrics import bootstrap_interval, frechet_distance, row_errors
from flowturbo_trt.evaluation.report import Check
from flowturbo_trt.examples.digits.bundle import BATCHES, GUIDANCE, build_digits
from flowturbo_trt.examples.digits.classifier import DigitClassifier, load_classifier
from flowturbo_trt.examples.digits.data import load_split, to_uint8
from flowturbo_trt.examples.digits.loop import WEIGHTS
from flowturbo_trt.models.checkpoints import load_checkpoint
from flowturbo_trt.runtime.backend_onnxruntime import OnnxRuntimeBackend
from flowturbo_trt.runtime.host_trajectory import OUTPUTS
from flowturbo_trt.runtime.pipeline import Generated, Pipeline
from flowturbo_trt.runtime.request import make_request
from flowturbo_trt.sampling.schedule import Schedule

SAMPLES = 1000
SCHEDULES = ("H1P5R3", "H1P5R3:consistent", "H1P5R3:single", "H1P5", "H8", "H25")
TRUTH = "H100"
REPEATS = 9
START = "from flowturbo_trt import Pipeline; Pipeline.load({path!r})(labels=[3])"
FORBIDDEN = ("torch", "onnx", "diffusers", "safetensors")


def measure(folder: Path) -> tuple[dict[str, Any], list[Check]]:
    """Build the bundles in `folder` and measure everything; returns figures and checks."""
    bundle = build_digits(folder / "digits")
    unrefined = Pipeline.load(build_digits(folder / "zeroed", refiner=zeroed_refiner(folder)).path)
    pipeline = Pipeline.load(bundle.path)
    labels = np.arange(SAMPLES) % 10
    classifier = load_classifier()
    judge = load_split("judge")
    real = classifier.features(to_uint8(judge.images).numpy())
    truth = generate(pipeline, labels, TRUTH).latents
    seconds = latency(pipeline)
    rows, errors = [], {}
    for text in SCHEDULES:
        made = generate(pipeline, labels, text)
        errors[text] = row_errors(made.latents, truth)
        rows.append(describe(text, made, labels, classifier, real, seconds, errors[text]))
    zeroed = row_errors(generate(unrefined, labels, "H1P5R3").latents, truth)
    figures = {
        "batch": max(BATCHES),
        "precision": "fp32",
        "backend": "onnxruntime",
        "guidance": GUIDANCE,
        "samples": SAMPLES,
        "schedules": rows,
    }
    accuracy = float((classifier.predict(to_uint8(judge.images).numpy()) == judge.labels.numpy()).mean())
    checks = [
        *quality_checks(rows, accuracy, zeroed, errors["H1P5R3"]),
        start_check(bundle.path),
        overhead_check(bundle),
    ]
    return figures, checks


def generate(pipeline: Pipeline, labels: NDArray[np.int64], schedule: str) -> Generated:
    """Generate one image per label from seeds 0 … N−1."""
    request = make_request(pipeline.manifest.model, {"label": labels}, range(len(labels)), GUIDANCE, None)
    return pipeline.generate(request, schedule)


def zeroed_refiner(folder: Path) -> Path:
    """Write the committed refiner with its last layer zeroed, so that its offsets are zero."""
    state = dict(load_checkpoint(WEIGHTS / "refiner.safetensors").weights)
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        state[name] = state[name] * 0
    path = folder / "zeroed.safetensors"
    save_file(state, path)
    return path


def latency(pipeline: Pipeline) -> dict[str, dict[int, float]]:
    """Return median milliseconds per image by schedule and batch, all measured in one run."""
    calls: dict[str, Callable[[], object]] = {}
    for text in SCHEDULES:
        for batch in BATCHES:
            labels = np.arange(batch) % 10
            calls[f"{text} {batch}"] = partial(pipeline, labels, guidance=GUIDANCE, schedule=text)
    seconds = interleaved_medians(calls, REPEATS)
    return {t: {b: 1000 * seconds[f"{t} {b}"] / b for b in BATCHES} for t in SCHEDULES}


def describe(
    text: str,
    made: Generated,
    labels: NDArray[np.int64],
    classifier: DigitClassifier,
    real: NDArray[np.float32],
    milliseconds: dict[str, dict[int, float]],
    errors: NDArray[np.float64],
) -> dict[str, Any]:
    """Put one schedule's figures together."""
    assert made.images is not None
    features = classifier.features(made.images)
    return {
        "schedule": text,
        "evaluations": dict(Schedule.parse(text).evaluations()),
        "ms_per_image": {str(batch): round(value, 3) for batch, value in milliseconds[text].items()},
        "recognised": float((classifier.predict(made.images) == labels).mean()),
        "frechet_distance": frechet_distance(features, real),
        "endpoint_error": float(errors.mean()),
    }


def quality_checks(
    rows: list[dict[str, Any]],
    accuracy: float,
    zeroed: NDArray[np.float64],
    refined: NDArray[np.float64],
) -> list[Check]:
    """Hold the figures against what the example promises."""
    by_name = {row["schedule"]: row for row in rows}
    recognised = by_name["H1P5R3"]["recognised"]
    ratio = float(zeroed.mean() / refined.mean())
    interval = bootstrap_interval(lambda i: float(zeroed[i].mean() / refined[i].mean()), len(refined))
    distance = by_name["H1P5R3"]["frechet_distance"] / by_name["H25"]["frechet_distance"]
    return [
        Check("classifier accuracy on held-out digits", accuracy, "at least 0.97", accuracy >= 0.97),
        Check("H1P5R3 samples recognised", recognised, "at least 0.95", recognised >= 0.95),
        Check("endpoint error, refiner zeroed / trained", ratio, "at least 1.3", ratio >= 1.3, interval),
        Check("Fréchet distance, H1P5R3 / H25", distance, "at most 1.25", distance <= 1.25),
    ]


def start_check(path: Path) -> Check:
    """Time a process from start to first image, and see that it loads no training library."""
    code = START.format(path=str(path))
    watch = f"import sys; {code}; assert not [m for m in {FORBIDDEN} if m in sys.modules]"
    run = lambda: subprocess.run([sys.executable, "-c", watch], check=True)  # noqa: E731
    seconds = interleaved_medians({"start": run}, 5)["start"]
    return Check("seconds from process start to first image", seconds, "at most 3", seconds <= 3)


def overhead_check(bundle: Bundle) -> Check:
    """Compare a trajectory with its engine calls alone, timed in turn; batch as in the table."""
    backend = OnnxRuntimeBackend(bundle, "cpu", 0)
    program = bundle.manifest.programs["H1P5R3"]["guided"]
    trajectory = backend.bind(program, max(BATCHES))
    alone: list[Callable[[], None]] = []
    for (network, variant), count in program.evaluations().items():
        described = bundle.manifest.engine(network, variant, "onnxruntime")
        tensors = (*described.inputs, *described.outputs)
        arrays = {t.name: np.zeros((max(BATCHES), *map(int, t.shape[1:])), t.dtype) for t in tensors}
        output = arrays.pop(OUTPUTS[network])
        alone += [backend.engine(network, variant).bind(arrays, {OUTPUTS[network]: output})] * count

    def engines() -> None:
        for call in alone:
            call()

    calls = {"trajectory": trajectory.run, "engines": engines}
    seconds = interleaved_medians(calls, 51)
    overhead = seconds["trajectory"] / seconds["engines"] - 1
    return Check("runtime overhead over the engines alone", overhead, "at most 0.02", overhead <= 0.02)


def measure_in_scratch() -> tuple[dict[str, Any], list[Check]]:
    """Measure in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        return measure(Path(folder))
