"""The whole of a search on a tiny bundle: what it measures, and that it goes on where it ended."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.bundle.amend import rewrite_manifest, with_schedule
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.endpoints import endpoint_errors, find_endpoints, make_rows
from flowturbo_trt.calibration.tune.description import describe
from flowturbo_trt.calibration.tune.errors import JournalError
from flowturbo_trt.calibration.tune.front import Budget
from flowturbo_trt.calibration.tune.options import FidOptions, TuneOptions
from flowturbo_trt.calibration.tune.preparation import prepared
from flowturbo_trt.calibration.tune.results import Tuned
from flowturbo_trt.calibration.tune.tuning import ENDS, JOURNAL, tune
from flowturbo_trt.runtime.pipeline import Pipeline
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
    tuned, described = search(tiny_copy, tmp_path / "tuned")
    bundle = Bundle.open(tiny_copy)
    schedule = tuned.found[0].candidate.schedule
    rewrite_manifest(bundle, with_schedule(bundle.manifest, schedule, default=True))
    assert search(tiny_copy, tmp_path / "tuned")[1] == described


@pytest.mark.usefixtures("steady_machine")
def test_another_search_is_refused(
    searched: tuple[Path, Tuned, Any], tiny_bundle: Path, golden_bundle: Path
) -> None:
    with pytest.raises(JournalError, match="is of a search with seed 0, this one has 1"):
        search(tiny_bundle, searched[0], seed=1)
    with pytest.raises(JournalError, match="is of a search with engines"):
        search(golden_bundle, searched[0], backend="onnxruntime")


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
