"""What the digits example promises of its images: recognition, the refiner's worth, distance to real ones."""

from collections.abc import Sequence
from dataclasses import dataclass
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

SAMPLES = 2000
# Endpoints are held against the true ones of the first noises: an endpoint costs 200 evaluations.
ENDPOINTS = 500
TRUTH = "H100"
# By evaluations of the predictor; those with R are followed by themselves without it.
SCHEDULES = (
    *("H1P5R3", "H1P5", "AB2x7"),
    *("H4", "AB2x8"),
    *("H8", "AB2x16"),
    *("H8P9R5", "H8P9"),
    *("H25",),
)


def measure(folder: Path) -> tuple[dict[str, Any], list[Check]]:
    """Build the bundles in `folder` and judge their images; about 20 minutes on two cores."""
    judge = Judge(Pipeline.load(build_digits(folder / "digits").path), SAMPLES)
    unrefined = Pipeline.load(build_digits(folder / "zeroed", refiner=zeroed_refiner(folder)).path)
    judgements = {text: judge(text) for text in SCHEDULES}
    zeroed = row_errors(generate(unrefined, judge.labels[:ENDPOINTS], "H1P5R3").latents, judge.truth)
    digits = load_split("judge")
    predicted = judge.classifier.predict(to_uint8(digits.images).numpy())
    figures = {
        "precision": "fp32",
        "backend": "onnxruntime",
        "guidance": GUIDANCE,
        "samples": SAMPLES,
        "schedules": rows(judgements, judge.real),
    }
    accuracy = float((predicted == digits.labels.numpy()).mean())
    return figures, quality_checks(judgements, accuracy, zeroed, judge.real)


@dataclass(frozen=True)
class Judgement:
    """Of N images whether each is recognised (N) and its features (N,K); the first ones' endpoint errors."""

    recognised: NDArray[np.bool_]
    features: NDArray[np.float32]
    errors: NDArray[np.float64]


class Judge:
    """Judges schedules of a pipeline, always from the same noise.

    `real` are the features of real digits (M,K), `truth` the latents (n,C,H,W) that the first n of the
    noises lead to.
    """

    def __init__(self, pipeline: Pipeline, samples: int, endpoints: int = ENDPOINTS) -> None:
        self.pipeline = pipeline
        self.labels = np.arange(samples) % 10
        self.classifier: DigitClassifier = load_classifier()
        self.real = self.classifier.features(to_uint8(load_split("judge").images).numpy())
        self.truth = generate(pipeline, self.labels[:endpoints], TRUTH).latents

    def __call__(self, schedule: str | Schedule, pipeline: Pipeline | None = None) -> Judgement:
        """Generate with a schedule, on another pipeline if one is given, and judge what comes out."""
        made = generate(pipeline or self.pipeline, self.labels, schedule)
        assert made.images is not None
        return Judgement(
            self.classifier.predict(made.images) == self.labels,
            self.classifier.features(made.images),
            row_errors(made.latents[: len(self.truth)], self.truth),
        )


def generate(pipeline: Pipeline, labels: NDArray[np.int64], schedule: str | Schedule) -> Generated:
    """Generate one image per label from seeds 0 … N−1."""
    request = make_request(pipeline.manifest.model, {"label": labels}, range(len(labels)), GUIDANCE, None)
    return pipeline.generate(request, schedule)


def rows(judgements: dict[str, Judgement], real: NDArray[np.float32]) -> list[dict[str, Any]]:
    """Put the schedules' figures together; `gain` is the error without R steps over that with them."""
    return [
        {
            "schedule": text,
            "evaluations": dict(Schedule.parse(text).evaluations()),
            "recognised": float(judged.recognised.mean()),
            "frechet_distance": frechet_distance(judged.features, real),
            "endpoint_error": float(judged.errors.mean()),
            "gain": _gain(judgements, text),
        }
        for text, judged in judgements.items()
    ]


def _gain(judgements: dict[str, Judgement], text: str) -> float | None:
    without, found, _ = text.partition("R")
    if not found:
        return None
    return float(judgements[without].errors.mean() / judgements[text].errors.mean())


def zeroed_refiner(folder: Path) -> Path:
    """Write the committed refiner with its last layer zeroed, so that its offsets are zero."""
    state = dict(load_checkpoint(WEIGHTS / "refiner.safetensors").weights)
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        state[name] = state[name] * 0
    path = folder / "zeroed.safetensors"
    save_file(state, path)
    return path


def ratio_check(
    name: str, above: Sequence[float] | NDArray[np.float64], below: NDArray[np.float64], limit: float
) -> Check:
    """Check that a mean error is at least `limit` times another, image by image of the same noises."""
    above = np.asarray(above)

    def ratio(i: NDArray[np.int64]) -> float:
        return float(above[i].mean() / below[i].mean())

    value = ratio(np.arange(len(below)))
    return Check(name, value, f"at least {limit}", value >= limit, bootstrap_interval(ratio, len(below)))


def quality_checks(
    judgements: dict[str, Judgement],
    accuracy: float,
    zeroed: NDArray[np.float64],
    real: NDArray[np.float32],
) -> list[Check]:
    """Hold the figures against what the example promises."""
    ours, reference = judgements["H1P5R3"], judgements["H25"]

    def recognised(i: NDArray[np.int64]) -> float:
        return float(ours.recognised[i].mean())

    def distance(i: NDArray[np.int64]) -> float:
        return frechet_distance(ours.features[i], real) / frechet_distance(reference.features[i], real)

    every = np.arange(SAMPLES)
    return [
        Check("classifier accuracy on held-out digits", accuracy, "at least 0.97", accuracy >= 0.97),
        Check(
            "H1P5R3 samples recognised",
            recognised(every),
            "at least 0.95",
            recognised(every) >= 0.95,
            bootstrap_interval(recognised, SAMPLES),
        ),
        ratio_check("endpoint error, refiner zeroed / trained", zeroed, ours.errors, 1.3),
        ratio_check("endpoint error, H1P5 / H1P5R3", judgements["H1P5"].errors, ours.errors, 1.0),
        ratio_check("endpoint error, AB2x7 / H1P5R3", judgements["AB2x7"].errors, ours.errors, 1.0),
        Check(
            "Fréchet distance, H1P5R3 / H25",
            distance(every),
            "at most 1.25",
            distance(every) <= 1.25,
            bootstrap_interval(distance, SAMPLES, resamples=200),
        ),
    ]
