"""Rows that trials are made on."""

from pathlib import Path

import numpy as np
import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.precision.trials import some_rows
from flowturbo_trt.calibration.recording.trajectories import Recording


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [0]), (2, [0, 2]), (3, [0, 1, 2]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3])]
)
def test_rows_from_all_over(
    tiny_bundle: Path, tiny_recording: Recording, count: int, expected: list[int]
) -> None:
    """At even distances, but for one that meets the same classes only: here are three of them."""
    manifest = Bundle.open(tiny_bundle).manifest
    everything = np.concatenate([rows.calls[0].state for rows in tiny_recording.read(manifest)])
    parts = some_rows(tiny_recording, manifest, count)
    found = np.concatenate([rows.calls[0].state for rows in parts])
    np.testing.assert_array_equal(found, everything[expected])
    assert sum(len(rows.request) for rows in parts) == len(expected)
