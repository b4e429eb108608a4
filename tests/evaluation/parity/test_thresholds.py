"""Limits of 8-bit engines: the usual ones, or what a recipe's gate let pass where that is more."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.parity.comparison import row_relative_l2
from flowturbo_trt.evaluation.parity.options import ParityOptions
from flowturbo_trt.evaluation.parity.results import ParityReport
from flowturbo_trt.evaluation.parity.thresholds import THRESHOLDS, bundle_thresholds, loosest, promised
from flowturbo_trt.evaluation.parity.verification import verify
from flowturbo_trt.export.build import build
from flowturbo_trt.export.options import BuildOptions
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.tests.bundles import edit_manifest, latents
from flowturbo_trt.tests.export.recipes import recipe_for, saved
from flowturbo_trt.tests.faults import plant, scale_weight

OPTIONS = ParityOptions(threads=1)
# Of an input scale: steps this many times as large.
COARSE = 10.0
INT8 = THRESHOLDS["int8"]


@pytest.fixture
def coarse(
    tiny_options: BuildOptions, tiny_bundle: Path, tmp_path: Path, instant_export: list[str]
) -> Callable[..., Path]:
    """Give a function that builds with an INT8 recipe which is far too coarse, judged with a budget."""

    def make(budget: float, *, passed: bool = True) -> Path:
        recipe = recipe_for(tiny_bundle)
        layers = {
            name: {layer: replace(how, scale=COARSE * how.scale) for layer, how in of.items()}
            for name, of in recipe.layers.items()
        }
        findings = {"budgets": {"H1P1R1": budget, "H2": 0.001}}
        path = saved(recipe, tmp_path / "r.json", layers=layers, findings=findings, passed=passed)
        options = replace(tiny_options, precisions=("int8",), recipes=(path,), force=not passed)
        return build(options, tmp_path / "bundle").path

    return make


def failed(report: ParityReport) -> int:
    return report.count("failed")


def error_of(bundle: Path, tiny_pipeline: Pipeline) -> float:
    """Return the mean trajectory error, as a gate measures it."""
    labels = [0, 1, 2] * 8
    found, expected = (latents(p, labels) for p in (Pipeline.load(bundle, threads=1), tiny_pipeline))
    return float(np.mean(row_relative_l2(found, expected)))


def test_engines_within_their_budget(coarse: Callable[..., Path], tiny_pipeline: Pipeline) -> None:
    """What the gate let pass is no fault, but one beside it still is."""
    error = error_of(coarse(1.0), tiny_pipeline)
    bundle = coarse(1.05 * error)
    assert 1.05 * error > INT8.trajectory_relative_l2 / 3
    report = verify(Bundle.open(bundle), OPTIONS)
    assert failed(report) == 0
    assert any(note.startswith("limits of int8 are wider than usual: its recipe's") for note in report.notes)
    plant(bundle, "predictor", scale_weight("network.blocks.0.mlp.fc2.input_scale", 50))
    report = verify(Bundle.open(bundle), OPTIONS)
    (result,) = (result for result in report.engines if result.status == "failed")
    assert result.engine.name == "predictor guided"
    assert result.file_fault is None


@pytest.mark.parametrize(("budget", "passed"), [(0.01, True), (1.0, False)])
def test_engines_beyond_it(coarse: Callable[..., Path], budget: float, passed: bool) -> None:
    """A recipe that did not pass its gate has kept to nothing."""
    report = verify(Bundle.open(coarse(budget, passed=passed)), OPTIONS)
    assert failed(report) > 0
    assert not any("wider than usual" in note for note in report.notes)


def test_limits_are_those_of_the_largest_budget(coarse: Callable[..., Path]) -> None:
    bundle = coarse(0.4)
    manifest = Bundle.open(bundle).manifest
    limits = bundle_thresholds(manifest)
    assert limits["int8"] == promised(INT8, 0.4)
    assert limits["fp32"] == THRESHOLDS["fp32"]
    assert loosest({"fp32", "int8"}, limits) == "int8"
    edit_manifest(bundle, lambda data: data["options"].update(recipes=[{"kind": "int8", "passed": True}]))
    assert bundle_thresholds(Bundle.open(bundle).manifest)["int8"] == INT8


@pytest.mark.parametrize("budget", [1e-6, 0.008])
def test_small_budgets_narrow_nothing(budget: float) -> None:
    assert promised(INT8, budget) == INT8


def test_wide_limits() -> None:
    limits = promised(INT8, 0.2)
    assert limits.call_relative_l2 == pytest.approx(0.8)
    assert limits.trajectory_relative_l2 == pytest.approx(0.6)
    assert limits.image_psnr == pytest.approx(-20 * math.log10(0.6))
    # A cosine is lost with the square of what turns a vector.
    assert 1 - limits.call_cosine == pytest.approx((0.8 / 0.05) ** 2 * 2e-3)
    assert (limits.decoder_psnr, limits.weight_relative_l2) == (INT8.decoder_psnr, 0)
