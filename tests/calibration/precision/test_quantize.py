"""Calibrating precision from end to end, and what it is worth to look at trajectories."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.benchmarks.random_batch import FIRST, LAST, compare_calibrations
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.endpoints import CalibrationError
from flowturbo_trt.calibration.precision.options import GateOptions, PrecisionOptions
from flowturbo_trt.calibration.precision.quantize import (
    calibrate_precision,
    find_recording,
    is_timed,
    speed_notes,
)
from flowturbo_trt.calibration.precision.trials import find_truth, some_rows
from flowturbo_trt.calibration.recording.float32 import float32_view
from flowturbo_trt.calibration.recording.replaying import follow
from flowturbo_trt.calibration.recording.trajectories import Recording
from flowturbo_trt.evaluation.parity.comparison import row_relative_l2
from flowturbo_trt.evaluation.parity.recording import NoReferenceError
from flowturbo_trt.evaluation.speed.latency import Stability
from flowturbo_trt.examples.digits.loop import WEIGHTS
from flowturbo_trt.export.build import build
from flowturbo_trt.export.options import BuildOptions
from flowturbo_trt.export.quantization import load_recipe, save_recipe
from flowturbo_trt.runtime.backend_onnxruntime import OnnxRuntimeBackend
from flowturbo_trt.sampling.table import SolverTable
from flowturbo_trt.tests.bundles import changed_copy

GATE = GateOptions(4, stability=Stability(at_least=2, at_least_seconds=0, seconds=0.05), threads=1)
SCHEDULES = ("H1P1R1",)
OPTIONS = PrecisionOptions(
    "int8", schedules=SCHEDULES, rows=4, trial_rows=3, methods=("maximum", "error"), gate=GATE
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
    assert recipe.guided_channels == Bundle.open(tiny_bundle).manifest.model.guidance.channels == 2
    assert recipe.schedules == SCHEDULES
    assert recipe.timed == found.gate.timed
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


def test_no_budget_without_a_distance(still_bundle: Bundle, tmp_path: Path) -> None:
    """A network of zeros ends where it starts, with any schedule."""
    message = r"^H2: its distance from H8 is 0, which makes no budget; give --budget-error"
    with pytest.raises(CalibrationError, match=message):
        calibrate(still_bundle.path, tmp_path / "r", schedules=("H2",), reference="H8")


def test_budget_of_a_guidance_interval(golden_bundle: Path, tmp_path: Path) -> None:
    """What dropping guidance does to images is none of the schedule's own error."""
    schedule = "H2:guided=0.2..0.6"
    found = calibrate(
        golden_bundle, tmp_path / "r", schedules=(schedule,), reference="H8", layers=("mlp.fc2",)
    )
    view = float32_view(Bundle.open(golden_bundle))
    own = find_truth(view, found.recording, OPTIONS.trial_rows, "H8", 1).ends
    backend = OnnxRuntimeBackend(view, 1)
    parts = some_rows(found.recording, view.manifest, OPTIONS.trial_rows)
    fine = [follow(backend, view.manifest, "H8:guided=0.2..0.6", "guided", part.request) for part in parts]
    errors = [row_relative_l2(a, b) for a, b in zip(own[schedule], fine, strict=True)]
    assert found.budgets[schedule] == pytest.approx(0.5 * np.concatenate(errors).mean(), rel=1e-5)


def test_schedule_without_the_network(tiny_bundle: Path, tmp_path: Path) -> None:
    """H2 never calls the refiner: nothing changes there, and it is neither missed nor timed."""
    schedules = ("H2", "H1P1R1")
    found = calibrate(
        tiny_bundle, tmp_path / "r", schedules=schedules, networks=("refiner",), budget_error=10.0
    )
    assert found.sensitivity.schedules == schedules
    assert all(found.sensitivity.of(group)["H2"] == 0 for group in found.sensitivity.groups)
    assert found.recipe.schedules == schedules
    assert {speed.schedule for speed in found.gate.speeds} == {"H1P1R1"}


def test_mistakes_cost_no_recording(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"layers .mlp\.fc9.: the networks have none"):
        calibrate(tiny_bundle, tmp_path / "r", layers=("mlp.fc9",))
    assert not (tmp_path / "r").exists()


def test_recording_of_another_table(tiny_bundle: Path, tmp_path: Path) -> None:
    """Two tables of one name have the same text."""
    bundle = Bundle.open(tiny_bundle)
    first, other = (
        replace(bundle.manifest, tables=(SolverTable("ours", (0, time, 1), ((0.4,), (-0.2, 0.8))),))
        for time in (0.4, 0.5)
    )
    schedules, folder = ("table:ours",), tmp_path / "r"
    view = float32_view(Bundle(bundle.path, first))
    made = find_recording(view, schedules, OPTIONS, folder, silent)
    assert find_recording(view, schedules, OPTIONS, folder, silent) == made
    with pytest.raises(CalibrationError, match="was recorded with another table:ours than the bundle's"):
        find_recording(float32_view(Bundle(bundle.path, other)), schedules, OPTIONS, folder, silent)


def test_refiner_if_asked(tiny_bundle: Path, tmp_path: Path) -> None:
    found = calibrate(tiny_bundle, tmp_path / "r", budget_error=10.0, networks=("refiner",))
    assert set(found.recipe.layers) == {"refiner guided"}
    assert {site.network for site in found.sensitivity.sites} == {"refiner"}


def test_kind_that_is_only_emulated(tiny_bundle: Path, tmp_path: Path) -> None:
    """FP8 passes on its errors, and its speed is not claimed: the recipe says where it was timed."""
    found = calibrate(tiny_bundle, tmp_path / "r", kind="fp8", budget_error=10.0, smoothing=(None,))
    assert found.gate.speeds == ()
    assert found.recipe.passed
    assert found.recipe.timed == ()
    assert found.recipe.findings["notes"] == list(found.gate.notes)
    (note,) = found.gate.notes
    assert note.startswith("speed not measured on onnxruntime: its CPU provider only emulates fp8; build")
    assert is_timed(Bundle.open(tiny_bundle), "int8")
    assert speed_notes(Bundle.open(tiny_bundle), "int8") == ()
    other = changed_copy(tiny_bundle, tmp_path, rename_backend)
    assert not is_timed(Bundle.open(other), "int8")
    (note,) = speed_notes(Bundle.open(other), "int8")
    assert note.startswith("speed not measured on tensorrt: recipes are timed on onnxruntime alone; build")


def rename_backend(data: dict[str, Any]) -> None:
    for engine in data["engines"]:
        engine["backend"] = "tensorrt"


def test_recording_is_used_again(tiny_bundle: Path, tmp_path: Path) -> None:
    view = float32_view(Bundle.open(tiny_bundle))
    first = find_recording(view, SCHEDULES, OPTIONS, tmp_path / "r", silent)
    again = find_recording(view, SCHEDULES, OPTIONS, tmp_path / "r", silent)
    assert again == first
    for changes, words in (
        ({"rows": 5}, "rows 4, asked for is 5"),
        ({"seed": 1}, "seed 0, asked for is 1"),
        ({"guidance": (1.5,)}, r"guidance 2.0, asked for is 1.5"),
    ):
        with pytest.raises(CalibrationError, match=f"was recorded with {words}; ask for the same, or give"):
            find_recording(view, SCHEDULES, replace(OPTIONS, **changes), tmp_path / "r", silent)
    with pytest.raises(CalibrationError, match="was recorded with schedules H1P1R1, asked for is H2; ask"):
        find_recording(view, ("H2",), OPTIONS, tmp_path / "r", silent)


def test_recording_of_another_model(golden_bundle: Path, tiny_recording: Recording, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_recording.folder, tmp_path / "other"))
    with pytest.raises(CalibrationError, match="was recorded of another predictor than the bundle's"):
        find_recording(float32_view(Bundle.open(golden_bundle)), SCHEDULES, OPTIONS, copy, silent)


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
    assert first > FIRST
    assert last > LAST
