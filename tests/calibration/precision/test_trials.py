"""Rows that trials are made on, and what schedules are held against."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.endpoints import CalibrationError, make_rows
from flowturbo_trt.calibration.precision.trials import check_reference, some_rows, spread
from flowturbo_trt.calibration.recording.trajectories import Recording


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
def test_rows_as_recorded(tiny_bundle: Path, tiny_recording: Recording, count: int) -> None:
    """Each is a row of the recording, with its noise; of three classes all, once there are three."""
    manifest = Bundle.open(tiny_bundle).manifest
    everything = list(tiny_recording.read(manifest))
    states = np.concatenate([rows.calls[0].state for rows in everything])
    labels = np.concatenate([rows.request.conditions["label"] for rows in everything])
    parts = some_rows(tiny_recording, manifest, count)
    found = np.concatenate([rows.calls[0].state for rows in parts])
    assert sum(len(rows.request) for rows in parts) == len(found) == min(count, 4)
    places = [int(np.flatnonzero((states == state).all(axis=(1, 2, 3)))[0]) for state in found]
    assert places == sorted(set(places))
    own = np.concatenate([rows.request.conditions["label"] for rows in parts])
    np.testing.assert_array_equal(own, labels[places])
    assert len(set(own)) == min(count, 3)


def test_scales_are_all_tried(golden_bundle: Path, golden_recording: Recording) -> None:
    parts = some_rows(golden_recording, Bundle.open(golden_bundle).manifest, 2)
    assert sorted(np.concatenate([rows.request.guidance for rows in parts])) == [1.5, 3.0]


@pytest.mark.parametrize("scales", [(1.0, 2.0, 4.0), (1.0, 4.0), (1.0, 2.0, 3.0, 4.0)])
def test_even_among_classes_and_scales(golden_bundle: Path, scales: tuple[float, ...]) -> None:
    """A stride that suits the classes may meet one scale alone: 16 of 64 rows of ten classes, every third."""
    manifest = Bundle.open(golden_bundle).manifest
    guidance = make_rows(manifest, 64, 0, scales).guidance
    labels = np.arange(64) % 10
    chosen = spread([labels, guidance], 16)
    assert len(set(chosen.tolist())) == 16
    of_scales = Counter(guidance[chosen].tolist())
    assert set(of_scales) == set(scales)
    assert max(of_scales.values()) - min(of_scales.values()) <= 1
    assert set(Counter(labels[chosen].tolist()).values()) == {1, 2}


def test_rows_from_all_over() -> None:
    """Classes in order, each once: those chosen are far apart."""
    chosen = spread([np.arange(64)], 8)
    assert np.diff([-1, *chosen.tolist(), 64]).max() <= 16


def test_reference_is_guided_when_the_schedule_is(golden_bundle: Path) -> None:
    manifest = Bundle.open(golden_bundle).manifest
    found = check_reference(manifest, ("H2", "H2:guided=0.2..0.6"), "H8")
    assert found == {"H2": "H8", "H2:guided=0.2..0.6": "H8:guided=0.2..0.6"}
    with pytest.raises(CalibrationError, match=r"H8:guided=0..1: is guided when each schedule is; leave out"):
        check_reference(manifest, ("H2",), "H8:guided=0..1")
