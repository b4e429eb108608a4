"""Calibrating precision from end to end, and what it is worth to look at trajectories."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.benchmarks.random_batch import compare_calibrations
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.endpoints import CalibrationError
from flowturbo_trt.calibration.precision.gate import GateOptions
from flowturbo_trt.calibration.precision.quantize import (
    PrecisionOptions,
    calibrate_precision,
    find_recording,
    is_timed,
    speed_notes,
)
from flowturbo_trt.calibration.recording.float32 import float32_view
from flowturbo_trt.calibration.recording.trajectories import Recording
from flowturbo_trt.evaluation.parity.recording import NoReferenceError
from flowturbo_trt.evaluation.speed.latency import Stability
from flowturbo_trt.examples.digits.loop import WEIGHTS
from flowturbo_trt.export.build import build
from flowturbo_trt.export.options import BuildOptions
from flowturbo_trt.export.quantization import load_recipe, save_recipe
from flowturbo_trt.tests.bundles import changed_copy

GATE = GateOptions(4, stability=Stability(at_least=2, at_least_seconds=0, seconds=0.05), threads=1)
OPTIONS = PrecisionOptions(
    "int8", schedules=("H1P1R1",), rows=4, trial_rows=3, methods=("maximum", "error"), gate=GATE
)
CANDIDATES = {f"blocks.0.{kind}" for kind in PrecisionOptions.layers}


def silent(what: str, done: int, total: int) -> None:
    """Say nothing."""


def calibrate(bundle: Path, folder: Path, **changes: Any) -> Any:
    return calibrate_precision(Bundle.open(bundle), replace(OPTIONS, **changes), folder)


def test_recipe(tiny_bundle: Path, tmp_path: Path) -> None:
    """Everything within a generous budget stays quantised, in the best of the ways tried."""
    found = calibrate(tiny_bundle, tmp_path / "r", budget_error=10.0)
    recipe = found.recipe
    assert recipe.kind == "int8"
    assert set(recipe.layers) == {"predictor guided"}
    assert set(recipe.layers["predictor guided"]) == CANDIDATES
    assert set(recipe.sources) == {"predictor", "refiner"}
    assert found.choice.put_back == ()
    assert {str(a) for a in found.arrangements} == {
        f"{method}, {smoothing}"
        for method in ("maximum", "error")
        for smoothing in ("no smoothing", "smoothing 0.5")
    }
    assert found.arrangements[found.arrangement] == min(found.arrangements.values())
    smoothed = [name for name, layer in recipe.layers["predictor guided"].items() if layer.smooth]
    expected = [] if found.arrangement.smoothing is None else ["blocks.0.attn.qkv", "blocks.0.mlp.fc1"]
    assert smoothed == expected
    assert recipe.passed is found.gate.passed
    assert [check["met"] for check in recipe.findings["checks"]] == [c.met for c in found.gate.checks]
    save_recipe(recipe, tmp_path / "recipe.json")
    assert load_recipe(tmp_path / "recipe.json").layers == recipe.layers


def test_budget_puts_layers_back(tiny_bundle: Path, tmp_path: Path) -> None:
    """A budget that all of them just meet, but not by the margin that other noise asks for."""
    everything = calibrate(tiny_bundle, tmp_path / "r", budget_error=10.0)
    (error,) = everything.choice.errors[0].values()
    found = calibrate(tiny_bundle, tmp_path / "r", budget_error=1.05 * error)
    assert found.choice.met
    assert 0 < len(found.choice.put_back) < len(CANDIDATES)
    put_back = {layer for group in found.choice.put_back for of in group.layers.values() for layer in of}
    assert set(found.recipe.layers["predictor guided"]) == CANDIDATES - put_back
    (last,) = found.choice.errors[-1].values()
    assert last <= 0.9 * 1.05 * error


def test_no_layer_meets_it(tiny_bundle: Path, tmp_path: Path) -> None:
    found = calibrate(tiny_bundle, tmp_path / "r", budget_error=1e-9)
    assert not found.choice.met
    assert not found.recipe.passed
    (layers,) = found.recipe.layers.values()
    assert len(layers) == 1


def test_default_budget(tiny_bundle: Path, tmp_path: Path) -> None:
    """Half of the schedule's own distance from the reference."""
    found = calibrate(tiny_bundle, tmp_path / "r", reference="H8")
    assert found.distances["H1P1R1"] > 0
    assert found.budgets == {"H1P1R1": 0.5 * found.distances["H1P1R1"]}


def test_refiner_if_asked(tiny_bundle: Path, tmp_path: Path) -> None:
    found = calibrate(tiny_bundle, tmp_path / "r", budget_error=10.0, networks=("refiner",))
    assert set(found.recipe.layers) == {"refiner guided"}
    assert {site.network for site in found.sensitivity.sites} == {"refiner"}


def test_kind_that_is_only_emulated(tiny_bundle: Path, tmp_path: Path) -> None:
    """FP8 passes on its errors, and its speed is not claimed."""
    found = calibrate(tiny_bundle, tmp_path / "r", kind="fp8", budget_error=10.0, smoothing=(None,))
    assert found.gate.speeds == ()
    assert found.recipe.passed
    (note,) = found.gate.notes
    assert note.startswith("speed on onnxruntime: not measured, its CPU provider only emulates fp8; build")
    assert is_timed(Bundle.open(tiny_bundle), "int8")
    assert speed_notes(Bundle.open(tiny_bundle), "int8") == ()
    other = changed_copy(tiny_bundle, tmp_path, rename_backend)
    assert not is_timed(Bundle.open(other), "int8")
    (note,) = speed_notes(Bundle.open(other), "int8")
    assert note.startswith("speed on tensorrt: not measured, recipes are timed on onnxruntime alone; build")


def rename_backend(data: dict[str, Any]) -> None:
    for engine in data["engines"]:
        engine["backend"] = "tensorrt"


def test_recording_is_used_again(tiny_bundle: Path, tmp_path: Path) -> None:
    view = float32_view(Bundle.open(tiny_bundle))
    first = find_recording(view, OPTIONS, tmp_path / "r", silent)
    again = find_recording(view, OPTIONS, tmp_path / "r", silent)
    assert again == first
    for changes, words in (
        ({"rows": 5}, "rows 4, asked for is 5"),
        ({"seed": 1}, "seed 0, asked for is 1"),
        ({"guidance": (1.5,)}, r"guidance 2.0, asked for is 1.5"),
        ({"schedules": ("H2",)}, "schedules H1P1R1, asked for is H2"),
    ):
        with pytest.raises(CalibrationError, match=f"was recorded with {words}; ask for the same, or give"):
            find_recording(view, replace(OPTIONS, **changes), tmp_path / "r", silent)


def test_recording_of_another_model(golden_bundle: Path, tiny_recording: Recording, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_recording.folder, tmp_path / "other"))
    with pytest.raises(CalibrationError, match="was recorded of another predictor than the bundle's"):
        find_recording(float32_view(Bundle.open(golden_bundle)), OPTIONS, copy, silent)


def test_stripped_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = changed_copy(tiny_bundle, tmp_path, lambda data: data.update(graphs=[]))
    with pytest.raises(NoReferenceError, match="no float32 graphs"):
        calibrate(bundle, tmp_path / "r")


def test_trajectories_against_a_random_batch(tmp_path: Path) -> None:
    """Ranges of one batch of noise at one time are worse for the first and the last calls of digits."""
    options = BuildOptions(
        predictor=WEIGHTS / "predictor.safetensors",
        config=WEIGHTS / "config.json",
        batches=(10,),
        schedules=("H4",),
        conditioning="fused",
        preflight=False,
    )
    bundle = build(options, tmp_path / "digits")
    trajectories, random = compare_calibrations(bundle, tmp_path, 20, t=0.5)
    first, *_, last = random / trajectories
    assert first > 1.3
    assert last > 1.2
