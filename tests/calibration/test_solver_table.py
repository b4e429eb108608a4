"""Fitted solver tables: the sampler that is fitted is the one that runs, and the fit keeps its best."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.endpoints import (
    CalibrationError,
    Endpoints,
    endpoint_errors,
    find_endpoints,
    make_rows,
)
from flowturbo_trt.calibration.solver_table import (
    Fit,
    FitOptions,
    LearnableTable,
    _Sampler,
    fit_table,
)
from flowturbo_trt.evaluation.torch_reference import TorchNetworks, TorchOptions
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.sampling.schedule import Schedule

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = FitOptions(evaluations=3, steps=30, batch=8, look_every=5)


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


class Fitting:
    """A bundle in both worlds, with endpoints to fit on and to judge by."""

    def __init__(self, path: Path, guidance: float) -> None:
        self.pipeline = Pipeline.load(path, threads=1)
        self.networks = TorchNetworks(Bundle.open(path), TorchOptions())
        self.train, self.held_out = (
            find_endpoints(
                self.pipeline, make_rows(self.pipeline.manifest, count, seed, [guidance]), "H30", silent
            )
            for count, seed in ((16, 0), (6, 16))
        )

    def fit(self, **options: Any) -> Fit:
        return fit_table(self.networks, "ours", self.train, self.held_out, replace(OPTIONS, **options))


@pytest.fixture(scope="module")
def tiny(tiny_bundle: Path) -> Fitting:
    """All channels guided: one half."""
    return Fitting(tiny_bundle, 2.0)


@pytest.fixture(scope="module")
def golden(golden_bundle: Path) -> Fitting:
    """Three of four channels guided, and a refiner."""
    return Fitting(golden_bundle, 1.5)


def rms(errors: np.ndarray[Any, Any]) -> float:
    return float(np.sqrt(np.mean(errors**2)))


@pytest.mark.parametrize("refined", [0, 2])
@pytest.mark.parametrize("recompute", [False, True])
def test_what_is_fitted_is_what_runs(golden: Fitting, refined: int, recompute: bool) -> None:
    """The errors that the fit sees are those of the table in the pipeline, in other batches too."""
    options = replace(OPTIONS, refined=refined, recompute=recompute, batch=4)
    learnable = LearnableTable.adams_bashforth(3, options)
    with torch.no_grad():
        learnable.logits += torch.tensor([0.3, -0.2, 0.1, 0.4, 0.0][: 3 + refined])
        for row in learnable.rows:
            row += 0.05 * torch.arange(len(row))
    found = _Sampler(golden.networks, options).error(learnable, golden.held_out)
    schedule = Schedule.of_table(learnable.table("ours"))
    expected = rms(endpoint_errors(golden.pipeline, golden.held_out, schedule))
    assert found == pytest.approx(expected, rel=1e-4)
    assert schedule.evaluations()["refiner"] == refined


def test_unguided_rows(golden_bundle: Path) -> None:
    """Are evaluated without the other half."""
    fitting = Fitting(golden_bundle, 1.0)
    learnable = LearnableTable.adams_bashforth(2, OPTIONS)
    found = _Sampler(fitting.networks, OPTIONS).error(learnable, fitting.held_out)
    expected = rms(endpoint_errors(fitting.pipeline, fitting.held_out, "AB2x3"))
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_fit_starts_from_adams_bashforth(tiny: Fitting, order: int) -> None:
    text = "E3" if order == 1 else f"AB{order}x3"
    fit = tiny.fit(steps=1)
    expected = rms(endpoint_errors(tiny.pipeline, tiny.held_out, text))
    assert fit.initial[order] == pytest.approx(expected, rel=1e-4)
    assert fit.initial[fit.order] == min(fit.initial.values())


def test_fit_is_better_on_other_noise(golden: Fitting) -> None:
    """By what it says, and by what the pipeline makes of the table."""
    fit = golden.fit(steps=40, learning_rate=0.01)
    assert fit.error < 0.5 * min(fit.initial.values())
    found = rms(endpoint_errors(golden.pipeline, golden.held_out, Schedule.of_table(fit.table)))
    assert found == pytest.approx(fit.error, rel=1e-3)
    assert (fit.table.times[0], fit.table.times[-1]) == (0, 1)
    assert fit.describe()["table"]["name"] == "ours"


def test_same_arguments_same_table(tiny: Fitting) -> None:
    assert tiny.fit(steps=10).table == tiny.fit(steps=10).table != tiny.fit(steps=10, seed=1).table


def test_table_of_one_step(tiny: Fitting) -> None:
    fit = tiny.fit(evaluations=1, steps=10)
    assert fit.table.times == (0, 1)
    assert fit.error <= fit.initial[1]


def test_best_table_is_kept(tiny: Fitting) -> None:
    """Where all that comes is worse, the first."""
    fit = tiny.fit(learning_rate=10.0, steps=20, look_every=1, patience=4)
    assert fit.looks[-1].step < 20
    best = min(fit.looks, key=lambda look: look.error)
    assert fit.error == best.error
    found = rms(endpoint_errors(tiny.pipeline, tiny.held_out, Schedule.of_table(fit.table)))
    assert found == pytest.approx(fit.error, rel=1e-3)


def test_time_that_is_up(tiny: Fitting) -> None:
    fit = tiny.fit(seconds=1e-9)
    assert [look.step for look in fit.looks] == [0, 1]


def test_error_that_is_not_finite(tiny: Fitting) -> None:
    broken = replace(tiny.train, latents=tiny.train.latents * np.float32("nan"))
    with pytest.raises(CalibrationError, match="the error is nan at step 1; use a smaller learning_rate"):
        fit_table(tiny.networks, "ours", broken, tiny.held_out, OPTIONS)


def test_divergence_after_something_better(golden: Fitting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends the fit with what was found."""
    losses = _Sampler.losses
    asked: list[int] = []

    def diverge(self: _Sampler, table: LearnableTable, endpoints: Endpoints, rows: Any) -> Any:
        found = losses(self, table, endpoints, rows)
        asked.extend([1] if endpoints is golden.train else [])
        return found * float("nan") if len(asked) > 12 else found

    whole = golden.fit(learning_rate=0.003, steps=20)
    monkeypatch.setattr(_Sampler, "losses", diverge)
    fit = golden.fit(learning_rate=0.003, steps=20)
    assert fit.looks == whole.looks[:3]
    assert fit.error < fit.looks[0].error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evaluations": 0}, "evaluations is 0, expected at least 1"),
        ({"batch": 0}, "batch is 0"),
        ({"refined": -1}, "refined is -1 and seed 0"),
        ({"learning_rate": 0.0}, "learning_rate > 0"),
        ({"seconds": float("nan")}, "seconds > 0"),
        ({"batch": 17}, "batch is 17, there are 16 trajectories to fit on"),
    ],
)
def test_options_out_of_range(tiny: Fitting, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        tiny.fit(**options)


def test_rows_spread_over_classes_and_scales(tiny: Fitting) -> None:
    request = make_rows(tiny.pipeline.manifest, 13, 5, [1.0, 2.0, 4.0])
    labels = request.conditions["label"]
    pairs = set(zip(labels.tolist(), request.guidance.tolist(), strict=True))
    assert len(pairs) == 9
    assert request.seeds == tuple(range(5, 18))
    assert set(make_rows(tiny.pipeline.manifest, 4, 0).guidance.tolist()) == {2.0}


def test_endpoints_are_where_the_schedule_ends(tiny: Fitting) -> None:
    told: list[tuple[int, int]] = []
    request = make_rows(tiny.pipeline.manifest, 5, 0)

    def progress(what: str, done: int, total: int) -> None:
        told.append((done, total))

    found: Endpoints = find_endpoints(tiny.pipeline, request, "H4", progress)
    assert endpoint_errors(tiny.pipeline, found, "H4").max() == 0
    assert endpoint_errors(tiny.pipeline, found, "E4").min() > 0
    assert told[-1] == (20, 20)
    assert told == sorted(told)
