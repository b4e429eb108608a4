"""Comparisons to look at: one made up, whose figures are round, and what a real small one is asked for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flowturbo_trt.evaluation.comparison.findings import Comparison, Figure, Row, Setting, Shown
from flowturbo_trt.evaluation.comparison.options import ComparisonOptions
from flowturbo_trt.evaluation.speed.latency import Stability
from flowturbo_trt.tests.evaluation.quality.extractors import random_images, write_extractor

# Three turns: what is timed is real, how long it takes is not looked at.
QUICK = Stability(at_least=3, at_least_seconds=0, at_most=3)
NUM = 24


def small_options(bundle: Path, folder: Path, **changed: Any) -> ComparisonOptions:
    """Return what to compare on the tiny networks, judged by pixels."""
    reference = folder / "reference.npz"
    np.savez(reference, arr_0=random_images(40, seed=1, side=8))
    options = ComparisonOptions(
        bundle=bundle,
        reference=reference,
        extractor=write_extractor(folder / "extractor.onnx"),
        schedules=("H2", "H1P1R1", "AB2x3", "H30"),
        num=NUM,
        seed=7,
        baseline="H4",
        metrics=("fid", "precision", "recognised"),
        threads=1,
        truth_schedule="H30",
        truth_num=21,
        stability=QUICK,
    )
    return replace(options, **changed)


def row(schedule: str, predictor: int, refiner: int = 0, *notes: str, **figures: Any) -> Row:
    """Make a row of numbers, or of tuples (number, low, high)."""
    made = {
        key: Figure(value[0], (value[1], value[2])) if isinstance(value, tuple) else Figure(value)
        for key, value in figures.items()
    }
    evaluations = {"predictor": predictor} | ({"refiner": refiner} if refiner else {})
    return Row(schedule, evaluations, made, notes)


ROWS = (
    row("H8", 16, 0, "shared", "mine", gflop=12655.0, ms_per_image=100.0, acceleration=0.0, fid=3.68,
        endpoint_error=(0.01, 0.009, 0.011)),
    row("H1P5R3", 7, 6, "shared", "own", gflop=4046.0, ms_per_image=(40.0, 39.5, 41.25),
        acceleration=(0.6, 0.59, 0.61), fid=(2.5, 2.25, 2.75), endpoint_error=0.02),
    row("E4", 4, 0, "shared", gflop=1948.0, ms_per_image=25.04, acceleration=0.75, endpoint_error=0.2),
)  # fmt: skip
SETTING = Setting(
    bundle="model",
    bundle_sha256="b" * 64,
    backend="onnxruntime",
    device="cpu",
    provider=None,
    threads=2,
    precision="fp32",
    guidance=1.5,
    count=2000,
    labels="balanced",
    seed=3,
    extractor="features.onnx",
    extractor_sha256="e" * 64,
    reference="real",
    reference_sha256="f" * 64,
    reference_count=10_000,
    metrics=("fid",),
    baseline="H8",
    truth="H100",
    endpoint_count=200,
    latency_batch=8,
)


def made_up(**changed: Any) -> Comparison:
    """Return three schedules, of which one has no FID, and two shown images of 2×3 pixels."""
    images = {
        name: random_images(2, seed, side=4)[:, :2, :3] for seed, name in enumerate(("H8", "H1P5R3", "E4"))
    }
    comparison = Comparison(
        setting=SETTING,
        rows=ROWS,
        shown=Shown((4, 5), (11, 2**64 - 1), images, random_images(2, 9, side=4)[:, :2, :3]),
        decoder_gflop=622.0,
        notes=("something of all",),
        machine={"cpu": "a CPU", "cores": 2, "system": "Linux 6", "gpu": None},
        versions={"flowturbo_trt": "0.1.0", "numpy": "2.4"},
        measured_at="2026-01-02 03:04 UTC",
    )
    return replace(comparison, **changed)
