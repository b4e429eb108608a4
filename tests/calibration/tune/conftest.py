"""Searches on tiny bundles, on a machine whose times are known."""

from pathlib import Path

import pytest

from flowturbo_trt.bundle.store import read_manifest
from flowturbo_trt.calibration.tune.candidates import Space
from flowturbo_trt.tests.calibration.tune import steady


@pytest.fixture
def steady_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steady.MEASURE, steady.measure)


@pytest.fixture(scope="session")
def tiny_space(tiny_bundle: Path) -> Space:
    """Guided only, with a refiner; up to 6 evaluations and 2 steps R."""
    return Space("tiny", read_manifest(tiny_bundle), "guided", True, False, 6, 2)


@pytest.fixture(scope="session")
def golden_space(golden_bundle: Path) -> Space:
    """Guided and unguided, with a refiner; up to 6 evaluations and 2 steps R."""
    return Space("golden", read_manifest(golden_bundle), "guided", True, True, 6, 2)
