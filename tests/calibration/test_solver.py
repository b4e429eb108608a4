"""A bundle's solver: what a table is held against, and what is refused before it is fitted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.bundle.manifest import BundleError
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration import solver as solver_module
from flowturbo_trt.calibration.endpoints import (
    CalibrationError,
    endpoint_errors,
    find_endpoints,
    make_rows,
)
from flowturbo_trt.calibration.solver import Solver, SolverOptions, calibrate_solver
from flowturbo_trt.calibration.solver_table import FitOptions
from flowturbo_trt.evaluation.torch_reference import TorchNetworks, TorchOptions
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.sampling.schedule import Schedule, ScheduleError

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = SolverOptions(trajectories=8, held_out=4, judged=5, reference="H10", beside=("AB2x3", "H1P1R1"))
FITTING = FitOptions(evaluations=3, steps=4, batch=4, look_every=2)


def calibrate(path: Path, fitting: FitOptions = FITTING, **changed: Any) -> Solver:
    pipeline = Pipeline.load(path, threads=1)
    networks = TorchNetworks(Bundle.open(path), TorchOptions())
    return calibrate_solver(pipeline, networks, replace(OPTIONS, **changed), fitting)


def test_errors_are_of_noise_it_never_saw(tiny_bundle: Path) -> None:
    """Nor was stopped by; by the pipeline, at the scale it was fitted at and at others."""
    pipeline = Pipeline.load(tiny_bundle, threads=1)
    found = calibrate(tiny_bundle, seed=3, guidance=(2.0,), also_at=(3.0, 1.0))
    assert found.schedule == Schedule.of_table(found.fit.table)
    assert str(found.schedule) == "table:lms3"
    for scale, errors in ((2.0, found.errors), *found.errors_at.items()):
        request = make_rows(pipeline.manifest, 5, 3 + 8 + 4, [scale])
        truth = find_endpoints(pipeline, request, "H10", lambda what, done, total: None)
        assert list(errors) == ["table:lms3", "AB2x3", "H1P1R1"]
        for text, error in errors.items():
            schedule = found.schedule if text == "table:lms3" else text
            assert error == pytest.approx(endpoint_errors(pipeline, truth, schedule).mean())
    described = found.describe()
    assert described["endpoint_errors"] == found.errors
    assert list(described["endpoint_errors_at"]) == ["3", "1"]


def test_what_it_is_held_against_by_default(tiny_bundle: Path) -> None:
    default = Bundle.open(tiny_bundle).manifest.default_schedule
    found = calibrate(tiny_bundle, replace(FITTING, refined=1), beside=())
    assert list(found.errors) == ["table:lms3r1", default, "AB2x3"]
    assert found.fit.table.refined == 1


@pytest.mark.parametrize(
    ("fitting", "changed", "error", "message"),
    [
        ({}, {"reference": "H2P1"}, CalibrationError, "reference H2P1: evaluates the predictor 5 times"),
        ({"refined": 3}, {"reference": "H5"}, CalibrationError, "expected at least 12"),
        ({}, {"reference": "H1x"}, ScheduleError, "H1x"),
        ({}, {"beside": ("table:none",)}, ScheduleError, "none"),
        ({}, {"name": "a b"}, FlowTurboError, "expected a name of letters"),
        ({}, {"held_out": 0}, CalibrationError, "8 trajectories, 0 held out, 5 judged and seed 1000000"),
        ({"batch": 9}, {}, CalibrationError, "batch is 9, there are 8 trajectories to fit on"),
    ],
)
def test_refused_before_anything_long(
    tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    fitting: dict[str, Any],
    changed: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    def follow(*arguments: object) -> None:
        raise AssertionError("trajectories were followed")

    monkeypatch.setattr(solver_module, "find_endpoints", follow)
    with pytest.raises(error, match=message):
        calibrate(tiny_bundle, replace(FITTING, **fitting), **changed)


def test_scale_1_with_guided_engines_alone(tiny_bundle: Path) -> None:
    """Both fit and pipeline run the guided ones."""
    manifest = Bundle.open(tiny_bundle).manifest
    assert "unguided" not in manifest.programs[manifest.default_schedule]
    found = calibrate(tiny_bundle, guidance=(1.0,))
    assert found.errors["AB2x3"] == pytest.approx(found.fit.initial[2], rel=0.5)


def test_bundle_without_float32_graphs(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver_module, "find_endpoints", None)
    stripped = Bundle(tiny_bundle, replace(Bundle.open(tiny_bundle).manifest, graphs=()))
    with pytest.raises(FlowTurboError, match="has no graph of the guided predictor"):
        calibrate_solver(
            Pipeline.load(tiny_bundle, threads=1), TorchNetworks(stripped, TorchOptions()), OPTIONS, FITTING
        )


def test_refiner_that_is_not_there(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline.load(tiny_bundle, threads=1)
    manifest = pipeline.manifest
    without = replace(manifest, engines=tuple(e for e in manifest.engines if e.network != "refiner"))
    monkeypatch.setattr(Pipeline, "manifest", without)
    with pytest.raises(BundleError, match="needs the guided refiner, which the bundle has not"):
        calibrate_solver(
            pipeline,
            TorchNetworks(Bundle.open(tiny_bundle), TorchOptions()),
            OPTIONS,
            replace(FITTING, refined=1),
        )
