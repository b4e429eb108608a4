"""The whole of a search on a tiny bundle: what it measures, and that it goes on where it ended."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.bundle.amend import save_schedule
from flowturbo_trt.bundle.lock import held
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.endpoints import (
    CalibrationError,
    Endpoints,
    endpoint_errors,
    find_endpoints,
    make_rows,
)
from flowturbo_trt.calibration.tune.description import describe
from flowturbo_trt.calibration.tune.errors import JournalError
from flowturbo_trt.calibration.tune.front import Budget
from flowturbo_trt.calibration.tune.journal import LOCK
from flowturbo_trt.calibration.tune.options import FidOptions, TuneOptions
from flowturbo_trt.calibration.tune.preparation import prepared
from flowturbo_trt.calibration.tune.results import Tuned
from flowturbo_trt.calibration.tune.tuning import ENDS, JOURNAL, tune
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.tests.calibration.tune import steady
from flowturbo_trt.tests.evaluation.quality.extractors import write_extractor

SMALL = {
    **{"trajectories": 6, "held_out": 3, "evaluations": 4, "refined": 2, "start": 12, "rounds": 2},
    **{"children": 6, "bands": 3, "kept": 1, "reference": "H8", "threads": 1},
}


class EndedError(Exception):
    """Stands for a sudden end."""


class Progress:
    """Counts what is said; ends the search after `limit` of it."""

    def __init__(self, limit: float = float("inf")) -> None:
        self.said: list[str] = []
        self._limit = limit

    def __call__(self, what: str, done: int, total: int) -> None:
        self.said.append(what)
        if len(self.said) > self._limit:
            raise EndedError


def search(bundle: Path, out: Path, progress: Progress | None = None, **given: Any) -> tuple[Tuned, Any]:
    """Search, and return what was found and its description."""
    out.mkdir(exist_ok=True)
    options: dict[str, Any] = SMALL | given
    with prepared(TuneOptions(bundle, **options)) as found:
        tuned = tune(found, out, progress or Progress())
        return tuned, describe(found, tuned, Budget())


@pytest.fixture(scope="module")
def searched(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tuned, Any]:
    out = tmp_path_factory.mktemp("searches") / "tuned"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steady.MEASURE, steady.measure)
        return (out, *search(tiny_bundle, out))


def test_figures_are_those_of_the_schedules(searched: tuple[Path, Tuned, Any], tiny_bundle: Path) -> None:
    _, tuned, _ = searched
    with Pipeline.load(tiny_bundle, threads=1) as pipeline:
        # The rows after those that were searched on.
        request = make_rows(pipeline.manifest, 3, 6)
        endpoints = find_endpoints(pipeline, request, "H8", Progress())
        for result in (*tuned.own, *tuned.found):
            errors = endpoint_errors(pipeline, endpoints, result.candidate.schedule)
            np.testing.assert_allclose(result.errors, errors, rtol=1e-3)
            assert result.latency.ms == pytest.approx(result.expected_ms)
    assert tuned.baseline.name == "H1P1R1"
    assert tuned.baseline.latency.ms == pytest.approx(1000 * (0.004 + 3 * 0.010 + 2 * 0.002) / 3)
    assert [result.name for result in tuned.own] == ["H1P1R1", "H2"]
    times = [result.latency.ms for result in tuned.front]
    assert times == sorted(times)
    errors = [result.error for result in tuned.front]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.usefixtures("steady_machine")
@pytest.mark.parametrize("limit", [2, 9, 30, 55, 75])
def test_a_search_that_ended_goes_on(
    searched: tuple[Path, Tuned, Any], tiny_bundle: Path, tmp_path: Path, limit: int
) -> None:
    with pytest.raises(EndedError):
        search(tiny_bundle, tmp_path / "tuned", Progress(limit))
    journal = tmp_path / "tuned" / JOURNAL
    # A kill may leave half a line as well.
    journal.write_bytes(journal.read_bytes() + b'{"key": ["err')
    _, described = search(tiny_bundle, tmp_path / "tuned")
    assert described == searched[2]
    assert journal.read_bytes() == (searched[0] / JOURNAL).read_bytes()


def test_a_finished_search_measures_nothing_again(
    searched: tuple[Path, Tuned, Any], tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object, **more: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(steady.MEASURE, fail)
    for name in ("trials.endpoint_errors", "tuning.find_endpoints"):
        monkeypatch.setattr(f"flowturbo_trt.calibration.tune.{name}", fail)
    before = (searched[0] / JOURNAL).read_bytes()
    assert search(tiny_bundle, searched[0])[1] == searched[2]
    assert (searched[0] / JOURNAL).read_bytes() == before


@pytest.mark.usefixtures("steady_machine")
def test_a_bundle_that_was_given_the_winner_is_still_the_same(tiny_copy: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"evaluations": None, "rounds": 0, "start": 60}
    tuned, described = search(tiny_copy, tmp_path / "tuned", **given)
    schedules = [tried.candidate.schedule for tried in tuned.tried]
    # With this one for its own, a bundle would let candidates have more evaluations.
    schedule = max(schedules, key=lambda schedule: schedule.evaluations()["predictor"])
    assert schedule.evaluations()["predictor"] > 10
    save_schedule(Bundle.open(tiny_copy), schedule, default=True)
    assert search(tiny_copy, tmp_path / "tuned", **given)[1] == described


@pytest.mark.usefixtures("steady_machine")
def test_own_schedules_with_what_candidates_may_not_have(tiny_bundle: Path, tmp_path: Path) -> None:
    tuned, _ = search(tiny_bundle, tmp_path / "tuned", refined=0, rounds=1)
    assert [result.name for result in tuned.own] == ["H1P1R1", "H2"]
    assert not any(tried.candidate.is_refined for tried in tuned.tried)
    assert all(result.latency.ms == pytest.approx(result.expected_ms) for result in tuned.own)


def _diverging(monkeypatch: pytest.MonkeyPatch, text: str) -> list[int]:
    """Let a schedule's errors be infinite; lists the rows of all that are asked for."""
    rows: list[int] = []

    def errors(pipeline: Pipeline, endpoints: Endpoints, schedule: Schedule) -> Any:
        rows.append(len(endpoints))
        found = endpoint_errors(pipeline, endpoints, schedule)
        return found + np.inf if str(schedule) == text else found

    monkeypatch.setattr("flowturbo_trt.calibration.tune.trials.endpoint_errors", errors)
    return rows


@pytest.mark.usefixtures("steady_machine")
def test_a_default_that_diverges_ends_it_before_the_search(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = _diverging(monkeypatch, "H1P1R1")
    with pytest.raises(CalibrationError, match="H1P1R1 does not stay finite; look at the bundle with verify"):
        search(tiny_bundle, tmp_path / "tuned")
    # Those of both own schedules that are held out.
    assert rows == [3, 3]


@pytest.mark.usefixtures("steady_machine")
def test_others_that_diverge_are_left_out(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _diverging(monkeypatch, "H2")
    tuned, _ = search(tiny_bundle, tmp_path / "tuned", rounds=0)
    assert [result.name for result in tuned.own] == ["H1P1R1"]
    assert "H2" not in {result.name for result in tuned.found}


@pytest.mark.parametrize("shaky", [0, 1])
def test_times_that_are_not_stable_are_measured_anew(
    searched: tuple[Path, Tuned, Any],
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shaky: int,
) -> None:
    """The engines' (0) and those of what was found (1)."""
    measured: list[int] = []

    def measure(*given: Any, **more: Any) -> Any:
        measured.append(len(measured))
        return steady.measure(*given, **more, spread=0.3 if measured[-1] == shaky else 0.0)

    monkeypatch.setattr(steady.MEASURE, measure)
    tuned, described = search(tiny_bundle, tmp_path / "tuned")
    assert described["engines"]["tiny"]["is_stable"] is (shaky != 0)
    assert all(result.latency.stable is (shaky != 1) for result in (*tuned.own, *tuned.found))
    # What was stable is in the journal, what was not is measured once more and then is.
    assert search(tiny_bundle, tmp_path / "tuned")[1] == searched[2]
    assert search(tiny_bundle, tmp_path / "tuned")[1] == searched[2]
    assert len(measured) == 3


@pytest.mark.parametrize(("guidance", "timed"), [((1.0, 2.0), {2.0}), ((1.0,), {1.0}), ((), {1.5})])
def test_engines_are_timed_with_guidance_where_programs_have_it(
    golden_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    guidance: tuple[float, ...],
    timed: set[float],
) -> None:
    scales: set[float] = set()

    def measure(calls: Mapping[str, "partial[Any]"], *given: Any, **more: Any) -> Any:
        scales.update(float(scale) for call in calls.values() for scale in call.args[0].guidance)
        raise EndedError

    monkeypatch.setattr(steady.MEASURE, measure)
    with pytest.raises(EndedError):
        search(golden_bundle, tmp_path / "tuned", guidance=guidance, batch=1, backend="onnxruntime")
    assert scales == timed


def test_one_search_at_a_time(tiny_bundle: Path, tmp_path: Path) -> None:
    with held(tmp_path / LOCK), pytest.raises(JournalError, match="another search is at work there"):
        search(tiny_bundle, tmp_path)
    assert not (tmp_path / JOURNAL).exists()


@pytest.mark.usefixtures("steady_machine")
def test_another_search_is_refused(
    searched: tuple[Path, Tuned, Any], tiny_bundle: Path, golden_bundle: Path
) -> None:
    with pytest.raises(JournalError, match="is of a search with seed 0, this one has 1"):
        search(tiny_bundle, searched[0], seed=1)
    with pytest.raises(JournalError, match="is of a search with engines"):
        search(golden_bundle, searched[0], backend="onnxruntime")
    with pytest.raises(JournalError, match="is of a search with threads 1, this one has 2"):
        search(tiny_bundle, searched[0], threads=2)
    with pytest.raises(JournalError, match=r"with providers .*null.*, this one has .*cpu"):
        search(tiny_bundle, searched[0], provider="cpu")


@pytest.mark.usefixtures("steady_machine")
def test_true_ends_that_were_altered(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(EndedError):
        search(tiny_bundle, tmp_path / "tuned", Progress(40))
    ends = tmp_path / "tuned" / ENDS
    np.save(ends, np.load(ends) + 1)
    with pytest.raises(JournalError, match=r"ends.npy: is missing or altered"):
        search(tiny_bundle, tmp_path / "tuned")
    ends.unlink()
    with pytest.raises(JournalError, match=r"ends.npy: is missing or altered"):
        search(tiny_bundle, tmp_path / "tuned")


def test_drift_is_no_error_of_the_model(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowly = iter([1.0, 1.5])

    def measure(*given: Any, **more: Any) -> Any:
        return steady.measure(*given, **more, slower=next(slowly))

    monkeypatch.setattr(steady.MEASURE, measure)
    tuned, _ = search(tiny_bundle, tmp_path / "tuned", rounds=0)
    assert tuned.drift == pytest.approx(1.5)
    assert tuned.model_error == pytest.approx(0, abs=1e-9)


@pytest.mark.usefixtures("steady_machine")
def test_other_engines_join(tiny_bundle: Path, tiny_fused_bundle: Path, tmp_path: Path) -> None:
    tuned, described = search(tiny_bundle, tmp_path / "tuned", also=(tiny_fused_bundle,))
    assert set(described["engines"]) == {"tiny", "tiny-fused"}
    assert {t.candidate.engines for t in tuned.tried} == {"tiny", "tiny-fused"}
    assert {result.candidate.engines for result in tuned.own} == {"tiny"}
    assert json.dumps(described, allow_nan=False)


@pytest.mark.usefixtures("steady_machine")
def test_fid_of_what_was_found(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    fid = FidOptions(write_extractor(tmp_path / "extractor.onnx"), tmp_path / "images.npy", 7)
    tuned, _ = search(tiny_bundle, tmp_path / "tuned", fid=fid, rounds=0)
    values = [result.fid for result in (*tuned.own, *tuned.found)]
    assert all(value is not None and value > 0 for value in values)
    assert len(set(values)) == len(values)
    generate: Callable[..., Any] = Pipeline.generate
    monkeypatch.setattr(Pipeline, "generate", partial(_only_latents, generate))
    again, _ = search(tiny_bundle, tmp_path / "tuned", fid=fid, rounds=0)
    assert [result.fid for result in (*again.own, *again.found)] == values


def _only_latents(generate: Callable[..., Any], *given: Any, **more: Any) -> Any:
    raise AssertionError("generated again")
