"""Errors of candidates: each row once, from the journal where it is."""

from pathlib import Path

import numpy as np
import pytest

from flowturbo_trt.calibration.endpoints import Endpoints, endpoint_errors, find_endpoints, make_rows
from flowturbo_trt.calibration.tune import trials as module
from flowturbo_trt.calibration.tune.candidates import Candidate
from flowturbo_trt.calibration.tune.journal import Journal
from flowturbo_trt.calibration.tune.trials import Trials, part
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.sampling.schedule import Schedule

ONE = Candidate("tiny", Schedule.parse("H1P1R1"))


@pytest.fixture(scope="module")
def endpoints(tiny_pipeline: Pipeline) -> Endpoints:
    request = make_rows(tiny_pipeline.manifest, 9, 5, (1.5, 2.0))
    return find_endpoints(tiny_pipeline, request, "H12", lambda what, done, total: None)


@pytest.fixture
def rows_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of every run."""
    counts: list[int] = []

    def counting(pipeline: Pipeline, endpoints: Endpoints, schedule: Schedule) -> object:
        counts.append(len(endpoints))
        return endpoint_errors(pipeline, endpoints, schedule)

    monkeypatch.setattr(module, "endpoint_errors", counting)
    return counts


def test_rows_are_those_of_the_whole(
    tiny_pipeline: Pipeline, endpoints: Endpoints, tmp_path: Path, rows_run: list[int]
) -> None:
    whole = endpoint_errors(tiny_pipeline, endpoints, ONE.schedule)
    trials = Trials({"tiny": tiny_pipeline}, endpoints, 6, Journal(tmp_path / "j", {}))
    np.testing.assert_allclose(trials.errors(ONE, 3), whole[:3], rtol=1e-4)
    np.testing.assert_allclose(trials.errors(ONE, 6), whole[:6], rtol=1e-4)
    np.testing.assert_allclose(trials.held_out(ONE), whole[6:], rtol=1e-4)
    np.testing.assert_array_equal(trials.errors(ONE, 3), trials.errors(ONE, 6)[:3])
    assert rows_run == [3, 3, 3]
    assert len(set(whole)) == 9


def test_the_journal_saves_the_work(
    tiny_pipeline: Pipeline, endpoints: Endpoints, tmp_path: Path, rows_run: list[int]
) -> None:
    found = []
    for _ in range(2):
        trials = Trials({"tiny": tiny_pipeline}, endpoints, 6, Journal(tmp_path / "j", {}))
        found.append((*trials.errors(ONE, 3), *trials.errors(ONE, 6), *trials.held_out(ONE)))
    assert rows_run == [3, 3, 3]
    assert found[0] == found[1]


def test_what_is_not_finite_is_infinitely_wrong(
    tiny_pipeline: Pipeline, endpoints: Endpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "endpoint_errors", lambda *given: np.array([0.1, np.nan, np.inf]))
    for _ in range(2):
        trials = Trials({"tiny": tiny_pipeline}, endpoints, 6, Journal(tmp_path / "j", {}))
        assert trials.errors(ONE, 3).tolist() == [0.1, np.inf, np.inf]


def test_parts_keep_rows_together(endpoints: Endpoints) -> None:
    found = part(endpoints, slice(2, 5))
    np.testing.assert_array_equal(found.latents, endpoints.latents[2:5])
    np.testing.assert_array_equal(found.noise, endpoints.noise[2:5])
    assert found.request.seeds == (7, 8, 9)
    assert found.request.conditions["label"].tolist() == [2, 0, 1]
    noise = np.empty_like(found.noise)
    found.request.fill_noise(slice(0, 3), noise)
    np.testing.assert_array_equal(noise, found.noise)
