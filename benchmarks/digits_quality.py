"""What the digits example promises of its images: recognition, the refiner's worth, distance to real ones."""

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

SAMPLES = 1000
# H1P5 has the predictor evaluations of H1P5R3, H4 and H1P7 about its cost.
SCHEDULES = ("H1P5R3", "H1P5R3:consistent", "H1P5R3:single", "H1P5", "H1P7", "H4", "H8", "H25")
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
    real = classifier.features(judged)
    judgements = {
        text: judge_images(generate(pipeline, labels, text), labels, classifier, truth) for text in SCHEDULES
    }
    zeroed = row_errors(generate(unrefined, labels, "H1P5R3").latents, truth)
    accuracy = float((classifier.predict(judged) == judge.labels.numpy()).mean())
    figures = {
        "precision": "fp32",
        "backend": "onnxruntime",
        "guidance": GUIDANCE,
        "samples": SAMPLES,
        "schedules": [j.row(text, real) for text, j in judgements.items()],
    }
    return figures, quality_checks(judgements, accuracy, zeroed, real)


@dataclass(frozen=True)
class Judgement:
    """Of N images: whether each is recognised (N), its features (N,K), its latent's endpoint error (N)."""

    recognised: NDArray[np.bool_]
    features: NDArray[np.float32]
    errors: NDArray[np.float64]

    def row(self, text: str, real: NDArray[np.float32]) -> dict[str, Any]:
        """Put a schedule's figures together; `real` are the features of real digits."""
        return {
            "schedule": text,
            "evaluations": dict(Schedule.parse(text).evaluations()),
            "recognised": float(self.recognised.mean()),
            "frechet_distance": frechet_distance(self.features, real),
            "endpoint_error": float(self.errors.mean()),
        }


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


def judge_images(
    made: Generated, labels: NDArray[np.int64], classifier: DigitClassifier, truth: NDArray[np.float32]
) -> Judgement:
    """Judge images by the classifier and their latents by the true endpoints (N,C,H,W)."""
    assert made.images is not None
    recognised = classifier.predict(made.images) == labels
    return Judgement(recognised, classifier.features(made.images), row_errors(made.latents, truth))


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

    def worth(i: NDArray[np.int64]) -> float:
        return float(zeroed[i].mean() / ours.errors[i].mean())

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
        Check(
            "endpoint error, refiner zeroed / trained",
            worth(every),
            "at least 1.3",
            worth(every) >= 1.3,
            bootstrap_interval(worth, SAMPLES),
        ),
        Check(
            "Fréchet distance, H1P5R3 / H25",
            distance(every),
            "at most 1.25",
            distance(every) <= 1.25,
            bootstrap_interval(distance, SAMPLES, resamples=200),
        ),
    ]
