"""Sensitivity, against engines of which one group of layers is quantised for good."""

from pathlib import Path

import numpy as np
import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.endpoints import CalibrationError
from flowturbo_trt.calibration.precision.groups import find_candidates, make_groups
from flowturbo_trt.calibration.precision.quantized_view import quantized_view
from flowturbo_trt.calibration.precision.scales import Arrangement, Scales
from flowturbo_trt.calibration.precision.sensitivity import Sensitivity, measure_sensitivity
from flowturbo_trt.calibration.precision.trials import Trials, find_truth, some_rows
from flowturbo_trt.calibration.recording.float32 import float32_view
from flowturbo_trt.calibration.recording.replaying import follow, velocity_errors
from flowturbo_trt.calibration.recording.trajectories import Recording
from flowturbo_trt.evaluation.parity.comparison import row_relative_l2
from flowturbo_trt.runtime.backend_onnxruntime import OnnxRuntimeBackend

KINDS = ("attn.qkv", "mlp.fc2")
NETWORKS = ("predictor", "refiner")


def silent(what: str, done: int, total: int) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def view(golden_bundle: Path) -> Bundle:
    return float32_view(Bundle.open(golden_bundle))


@pytest.fixture(scope="module")
def layers(view: Bundle, golden_recording: Recording) -> dict[str, dict[str, object]]:
    macs = find_candidates(view, golden_recording.sites, NETWORKS, KINDS)
    found = {}
    for name, candidates in macs.items():
        network, variant = name.split(" ")
        scales = Scales(view, golden_recording, (network, variant), 1, silent)
        found[name] = scales.arrange(candidates, "int8", Arrangement("maximum", 0.5))
    return found  # type: ignore[return-value]  # what layers are is nothing to these tests


@pytest.fixture(scope="module")
def sensitivity(view: Bundle, golden_recording: Recording, layers: dict[str, object]) -> Sensitivity:
    truth = find_truth(view, golden_recording, 3, None, 1)
    macs = find_candidates(view, golden_recording.sites, NETWORKS, KINDS)
    trials = Trials(truth, layers, "int8")  # type: ignore[arg-type]
    return measure_sensitivity(
        trials, make_groups(macs, 48), golden_recording.sites, golden_recording.schedules
    )


def test_against_engines(
    view: Bundle,
    golden_recording: Recording,
    layers: dict[str, dict[str, object]],
    sensitivity: Sensitivity,
    tmp_path: Path,
) -> None:
    """Every error is what an engine with this one group in 8 bits shows, on the same rows."""
    parts = some_rows(golden_recording, view.manifest, 3)
    for row in (0, len(sensitivity.groups) - 1):
        group = sensitivity.groups[row]
        alone = {name: {n: layers[name][n] for n in of} for name, of in group.layers.items()}
        folder = tmp_path / str(row)
        folder.mkdir()
        changed = quantized_view(view, alone, "int8", folder)  # type: ignore[arg-type]
        backend = OnnxRuntimeBackend(changed, 1)
        errors = velocity_errors(backend, changed.manifest, parts, golden_recording.sites)
        for column, site in enumerate(golden_recording.sites):
            if f"{site.network} {site.variant}" in group.layers:
                assert sensitivity.velocity[row, column] == pytest.approx(errors[site].mean(), rel=0.1)
            else:
                assert np.isnan(sensitivity.velocity[row, column])
                assert errors[site].max() < 1e-6
        plain = OnnxRuntimeBackend(view, 1)
        for schedule, error in sensitivity.of(group).items():
            ends = [
                [follow(b, view.manifest, schedule, "guided", part.request) for part in parts]
                for b in (backend, plain)
            ]
            of_rows = [row_relative_l2(f, e) for f, e in zip(*ends, strict=True)]
            assert error == pytest.approx(np.concatenate(of_rows).mean(), rel=0.1)


def test_description(sensitivity: Sensitivity, golden_recording: Recording) -> None:
    data = sensitivity.describe()
    assert len(data["calls"]) == len(golden_recording.sites)
    assert [group["name"] for group in data["groups"]] == [group.name for group in sensitivity.groups]
    refiner = next(group for group in data["groups"] if group["name"].startswith("refiner"))
    called = [error is not None for error in refiner["velocity"]]
    assert called == [site.network == "refiner" for site in golden_recording.sites]
    assert set(refiner["trajectory"]) == set(golden_recording.schedules)
    # H2 calls no refiner.
    first, second = refiner["trajectory"].values()
    assert first > 1e-6
    assert second == 0


def test_rows_from_all_over(view: Bundle, golden_recording: Recording) -> None:
    """So many rows as are asked for or are there, in batches as recorded, and of different classes."""
    labels = np.concatenate(
        [rows.request.conditions["label"] for rows in golden_recording.read(view.manifest)]
    )
    for count, expected in ((2, 2), (5, 5), (99, 5)):
        parts = some_rows(golden_recording, view.manifest, count)
        found = np.concatenate([rows.request.conditions["label"] for rows in parts])
        assert len(found) == expected
        assert all(len(rows.calls[0].state) == len(rows.request) for rows in parts)
        assert set(found) <= set(labels)
    (first, second) = some_rows(golden_recording, view.manifest, 5)[:2]
    assert not np.array_equal(first.calls[0].state[0], second.calls[0].state[0])


def test_distance_of_the_schedule(view: Bundle, golden_recording: Recording) -> None:
    """From where a finer schedule ends that is guided at the same times; else it is no measure."""
    truth = find_truth(view, golden_recording, 2, "H8", 1)
    backend = OnnxRuntimeBackend(view, 1)
    for schedule in golden_recording.schedules:
        ends = [
            [follow(backend, view.manifest, text, "guided", part.request) for part in truth.parts]
            for text in (schedule, f"H8{schedule.removeprefix('H1P1R1').removeprefix('H2')}")
        ]
        errors = np.concatenate([row_relative_l2(f, e) for f, e in zip(*ends, strict=True)])
        assert truth.distances[schedule] == pytest.approx(errors.mean(), rel=1e-5)
    with pytest.raises(CalibrationError, match=r"H2:guided=0.2..0.6: H3 is not twice .*--budget-error"):
        find_truth(view, golden_recording, 2, "H3", 1)
    assert find_truth(view, golden_recording, 2, None, 1).distances == {}
