"""The paper's claims about its refiner, on the digits; and what each choice in training it changes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flowturbo_trt.benchmarks.digits_quality import Judge, Judgement, ratio_check
from flowturbo_trt.evaluation.metrics import frechet_distance
from flowturbo_trt.evaluation.report import Check
from flowturbo_trt.examples.digits.bundle import GUIDANCE, build_digits
from flowturbo_trt.examples.digits.encode import encode_generator_split
from flowturbo_trt.examples.digits.recipe import REFINER_FILE
from flowturbo_trt.examples.digits.train_predictor import CONFIG_FILE, WEIGHTS_FILE
from flowturbo_trt.models.checkpoints import load_checkpoint, load_predictor, load_refiner, read_config
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.training.config import TrainingConfig
from flowturbo_trt.training.data import LatentCache
from flowturbo_trt.training.train_refiner import train_refiner

SAMPLES = 500
# A last Heun step made by the refiner: H(n−1)R1 against H(n), for each n.
LAST_STEPS = (3, 4, 6)
# The same steps in another order; those that begin with R have no velocity to refine.
ORDERS = ("H1P5R3", "H1R3P5", "P5H1R3", "P5R3H1")
# Short trainings of about the same cost each; the committed refiner was trained for longer.
SHORT = TrainingConfig(
    steps=500, batch=64, learning_rate=5e-4, ema=0.99, seed=5, checkpoint_every=500, keep=1
)
GUIDED = {"guidance_low": 1.0, "guidance_high": 2.0}
# A step on policy evaluates the predictor at every step of the schedule.
ON_POLICY = {**GUIDED, "batch": 32}
PAPER, FURTHER = "as in the paper", "committed, then on policy"
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    PAPER: {},
    "guided, scales 1 to 2": GUIDED,
    "warm start": {"init": "predictor"},
    "Δ up to 0.25": {"max_delta": 0.25},
    "guided, two blocks": {**GUIDED, "depth": 2},
    "on policy of H1P5R3": {**ON_POLICY, "on_policy": "H1P5R3", "steps": 120},
    FURTHER: {**ON_POLICY, "on_policy": "H1P5R3 H8P9R5", "steps": 200, "init": "refiner"},
}
# What the last is held against.
COMMITTED = "committed"
JUDGED = ("H1P5R3", "H3R1", "H8P9R5")
# The mean loss of so many steps is what a training ended with.
LAST_LOSSES = 100


def measure(folder: Path) -> tuple[dict[str, Any], list[Check]]:
    """Judge the committed refiner, then train and judge VARIANTS; about half an hour on two cores."""
    judge = Judge(Pipeline.load(build_digits(folder / "digits").path), SAMPLES)
    schedules = {text for n in LAST_STEPS for text in (f"H{n - 1}R1", f"H{n}")} | {*ORDERS, *JUDGED}
    judged = {text: judge(text) for text in sorted(schedules)}
    cache = folder / "latents.safetensors"
    encode_generator_split(cache)
    trained = {name: _train_and_judge(name, judge, cache, folder / f"{i}") for i, name in enumerate(VARIANTS)}
    trained[COMMITTED] = Trained(None, {text: judged[text] for text in JUDGED})
    figures = {
        "precision": "fp32",
        "backend": "onnxruntime",
        "guidance": GUIDANCE,
        "samples": SAMPLES,
        "schedules": {text: _figures(judgement, judge) for text, judgement in judged.items()},
        "training": {"steps": SHORT.steps, "batch": SHORT.batch},
        "variants": [{"variant": name, **variant.row(judge)} for name, variant in trained.items()],
    }
    return figures, _claims(judged) + _choices(trained)


@dataclass(frozen=True)
class Trained:
    """A refiner trained as a variant says: its last losses' mean, if known, and what its images are worth."""

    loss: float | None
    judgements: Mapping[str, Judgement]

    def row(self, judge: Judge) -> dict[str, Any]:
        figures = {text: _figures(judgement, judge) for text, judgement in self.judgements.items()}
        return {"loss": self.loss, "schedules": figures}


def _train_and_judge(name: str, judge: Judge, cache: Path, folder: Path) -> Trained:
    config = replace(SHORT, **VARIANTS[name])
    losses: list[float] = []
    predictor = load_predictor(load_checkpoint(WEIGHTS_FILE), read_config(CONFIG_FILE))
    start = load_refiner(load_checkpoint(REFINER_FILE), predictor.config)
    weights = train_refiner(
        predictor,
        None if config.on_policy else LatentCache.load(cache),
        config,
        folder,
        lambda step, loss: losses.append(loss),
        start=start if config.init == "refiner" else None,
        guided_channels=predictor.config.in_channels,
    )
    described = folder / "config.json"
    described.write_text(json.dumps({**read_config(CONFIG_FILE), "refiner_depth": config.depth}))
    bundle = build_digits(folder / "bundle", refiner=weights, config=described)
    pipeline = Pipeline.load(bundle.path)
    return Trained(float(np.mean(losses[-LAST_LOSSES:])), {text: judge(text, pipeline) for text in JUDGED})


def _figures(judgement: Judgement, judge: Judge) -> dict[str, float]:
    return {
        "endpoint_error": float(judgement.errors.mean()),
        "frechet_distance": frechet_distance(judgement.features, judge.real),
        "recognised": float(judgement.recognised.mean()),
    }


def _claims(judged: Mapping[str, Judgement]) -> list[Check]:
    """Hold what the paper says of schedules against the endpoint errors."""
    last = [
        ratio_check(
            f"endpoint error, H{n} / H{n - 1}R1", judged[f"H{n}"].errors, judged[f"H{n - 1}R1"].errors, 1.0
        )
        for n in LAST_STEPS
    ]
    first, *others = ORDERS
    orders = [
        ratio_check(f"endpoint error, {other} / {first}", judged[other].errors, judged[first].errors, 1.0)
        for other in others
    ]
    return last + orders


def _choices(trained: Mapping[str, Trained]) -> list[Check]:
    """Hold every choice in training against the paper's, and training further against not."""
    others = [name for name in VARIANTS if name not in (PAPER, FURTHER)]
    compared = [(JUDGED[0], PAPER, other) for other in others]
    compared += [(text, COMMITTED, FURTHER) for text in JUDGED]
    return [
        ratio_check(
            f"endpoint error of {text}, {first} / {second}",
            trained[first].judgements[text].errors,
            trained[second].judgements[text].errors,
            1.0,
        )
        for text, first, second in compared
    ]
