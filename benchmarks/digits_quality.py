"""What the digits example promises of its images: recognition, the refiner's worth, distance to real ones."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file

from flowturbo_trt.evaluation.metrics import bootstrap_interval, frechet_distance, row_errors
from flowturbo_trt.evaluation.report import Check
from flowturbo_trt.examples.digits.bundle import GUIDANCE, build_digits
from flowturbo_trt.examples.digits.classifier import DigitClassifier, load_classifier
from flowturbo_trt.examples.digits.data import load_split, to_uint8
from flowturbo_trt.examples.digits.loop import WEIGHTS
from flowturbo_trt.models.checkpoints import load_checkpoint
from flowturbo_trt.runtime.pipeline import Generated, Pipeline
from flowturbo_trt.runtime.request import make_request
from flowturbo_trt.sampling.schedule import Schedule

SAMPLES = 1000
SCHEDULES = ("H1P5R3", "H1P5R3:consistent", "H1P5R3:single", "H1P5", "H8", "H25")
TRUTH = "H100"


def measure(folder: Path) -> tuple[dict[str, Any], list[Check]]:
    """Build the bundles in `folder` and judge their images; about 15 minutes on two cores."""
    pipeline = Pipeline.load(build_digits(folder / "digits").path)
    unrefined = Pipeline.load(build_digits(folder / "zeroed", refiner=zeroed_refiner(folder)).path)
    labels = np.arange(SAMPLES) % 10
    classifier = load_classifier()
    judge = load_split("judge")
    judged = to_uint8(judge.images).numpy()
    truth = generate(pipeline, labels, TRUTH).latents
    rows, errors = [], {}
    for text in SCHEDULES:
        made = generate(pipeline, labels, text)
        errors[text] = row_errors(made.latents, truth)
        rows.append(describe(text, made, labels, classifier, classifier.features(judged), errors[text]))
    zeroed = row_errors(generate(unrefined, labels, "H1P5R3").latents, truth)
    accuracy = float((classifier.predict(judged) == judge.labels.numpy()).mean())
    figures = {
        "precision": "fp32",
        "backend": "onnxruntime",
        "guidance": GUIDANCE,
        "samples": SAMPLES,
        "schedules": rows,
    }
    return figures, quality_checks(rows, accuracy, zeroed, errors["H1P5R3"])


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


def describe(
    text: str,
    made: Generated,
    labels: NDArray[np.int64],
    classifier: DigitClassifier,
    real: NDArray[np.float32],
    errors: NDArray[np.float64],
) -> dict[str, Any]:
    """Put one schedule's figures together."""
    assert made.images is not None
    features = classifier.features(made.images)
    return {
        "schedule": text,
        "evaluations": dict(Schedule.parse(text).evaluations()),
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
