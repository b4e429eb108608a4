"""Recordings that cannot be made, and folders that hold none of the bundle's model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.bundle.manifest import BundleError
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.endpoints import CalibrationError
from flowturbo_trt.calibration.recording.files import DESCRIPTION
from flowturbo_trt.calibration.recording.trajectories import Recording, open_recording, record
from flowturbo_trt.sampling.schedule import ScheduleError


@pytest.fixture
def golden(golden_bundle: Path) -> Bundle:
    return Bundle.open(golden_bundle)


@pytest.fixture
def tiny(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.mark.parametrize(
    ("schedule", "error", "message"),
    [
        ("H1X2", ScheduleError, "unknown step"),
        ("table:none", ScheduleError, "no such table"),
        ("H2:guided=0.2..0.6", ScheduleError, "needs unguided engines; build the bundle with --variant"),
        ("H1R1", BundleError, "no guided refiner engine"),
    ],
)
def test_schedules_that_cannot_run(
    tiny: Bundle, tmp_path: Path, schedule: str, error: type[Exception], message: str
) -> None:
    """Are refused before an earlier recording is lost."""
    manifest = tiny.manifest
    graphs = tuple(graph for graph in manifest.graphs if "refiner" not in graph.network)
    without_refiner = Bundle(tiny.path, replace(manifest, graphs=graphs))
    earlier = record(tiny, ("H1",), tmp_path, rows=1, threads=1)
    with pytest.raises(error, match=message):
        record(without_refiner, ("H1", schedule), tmp_path, rows=1)
    assert open_recording(tmp_path) == earlier


def test_nothing_to_record(tiny: Bundle, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="0 rows of 1 schedules, expected at least 1 of each"):
        record(tiny, ("H1",), tmp_path / "new", rows=0)
    with pytest.raises(CalibrationError, match="4 rows of 0 schedules, expected at least 1 of each"):
        record(tiny, (), tmp_path / "new", rows=4)
    assert not (tmp_path / "new").exists()


def test_velocities_that_are_not_finite(broken_bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "recording"
    message = r"H1: the guided predictor gives numbers that are not finite at t = 0; look at the bundle"
    with pytest.raises(CalibrationError, match=message):
        record(broken_bundle, ("H1",), folder, rows=1, threads=1)
    with pytest.raises(CalibrationError, match="holds no finished recording"):
        open_recording(folder)


def test_recording_of_another_model(tiny: Bundle, golden: Bundle, tiny_recording: Recording) -> None:
    with pytest.raises(CalibrationError, match="was recorded of another predictor than the bundle's"):
        tiny_recording.of(golden.manifest)
    refined = tiny.manifest.sources | {"refiner": {"sha256": "another"}}
    with pytest.raises(CalibrationError, match="was recorded of another refiner than the bundle's"):
        tiny_recording.of(replace(tiny.manifest, sources=refined))
    guidance = replace(tiny.manifest.model.guidance, channels=1)
    guided_otherwise = replace(tiny.manifest, model=replace(tiny.manifest.model, guidance=guidance))
    with pytest.raises(CalibrationError, match="recorded with 2 channels guided, the bundle guides 1"):
        tiny_recording.of(guided_otherwise)
    with pytest.raises(CalibrationError, match="was recorded of another predictor than the bundle's"):
        list(tiny_recording.read(golden.manifest))
    larger = replace(tiny.manifest, model=replace(tiny.manifest.model, latent=(2, 8, 8)))
    with pytest.raises(CalibrationError, match=r"does not fit its description or the model \(noise is"):
        list(tiny_recording.read(larger))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sites": []}, "holds 4 of 4 rows, of 0 calls; record again"),
        ({"rows": 5}, "holds 4 of 5 rows"),
        ({"shards": []}, "holds 0 of 4 rows"),
        ({"sites": [{"schedule": "H1"}]}, "holds no recording that can be read"),
        ({"shards": 7}, "holds no recording that can be read"),
        ({"more": 1}, "holds no recording that can be read"),
    ],
)
def test_description_that_is_none(
    tiny_recording: Recording, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    document = json.loads((tiny_recording.folder / DESCRIPTION).read_text())
    (tmp_path / DESCRIPTION).write_text(json.dumps(document | change))
    with pytest.raises(CalibrationError, match=message):
        open_recording(tmp_path)


def test_calls_that_were_not_recorded(tiny: Bundle, tiny_recording: Recording) -> None:
    """Of a description that was altered: the shards hold others."""
    sites = (*tiny_recording.sites, replace(tiny_recording.sites[0], index=9))
    with pytest.raises(CalibrationError, match=r"does not fit its description .*H1P1R1/9.*record again"):
        list(replace(tiny_recording, sites=sites).read(tiny.manifest))


def test_missing_shard(tiny: Bundle, tiny_recording: Recording, tmp_path: Path) -> None:
    moved = replace(tiny_recording, folder=tmp_path)
    with pytest.raises(CalibrationError, match=r"rows-00000.safetensors: cannot be read"):
        list(moved.read(tiny.manifest))
