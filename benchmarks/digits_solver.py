"""Solver tables of the digits' own: against other solvers of as many evaluations, at other scales too."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.benchmarks.digits_quality import TRUTH, Judge, Judgement, ratio_check
from flowturbo_trt.calibration.endpoints import endpoint_errors, find_endpoints, make_rows
from flowturbo_trt.calibration.solver import Solver, SolverOptions, calibrate_solver
from flowturbo_trt.calibration.solver_table import FitOptions
from flowturbo_trt.evaluation.metrics import frechet_distance
from flowturbo_trt.evaluation.report import Check
from flowturbo_trt.evaluation.torch_reference import TorchOptions, load_torch_networks
from flowturbo_trt.examples.digits.bundle import GUIDANCE, build_digits
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.sampling.schedule import Schedule

SAMPLES = 500
# Noise that no judge looks at.
SEED = 1_000_000
SOLVER = SolverOptions(seed=SEED)
SCALES = (1.0, 1.5, 2.0, 3.0)
AT_SCALES = 100
TABLES: Mapping[str, tuple[SolverOptions, FitOptions]] = {
    "5 evaluations": (SOLVER, FitOptions(evaluations=5)),
    "7 evaluations": (SOLVER, FitOptions()),
    "7 evaluations, scales 1 to 3": (replace(SOLVER, guidance=SCALES, name="scales"), FitOptions()),
    "7 evaluations, 3 refined": (SOLVER, FitOptions(refined=3)),
    "10 evaluations": (SOLVER, FitOptions(evaluations=10)),
}
OURS, EVERY_SCALE, REFINED = "7 evaluations", "7 evaluations, scales 1 to 3", "7 evaluations, 3 refined"
# By evaluations of the predictor.
OTHERS = ("AB2x5", "AB2x7", "AB3x7", "H1P5", "H1P5R3", "AB2x10", "AB2x16", "H8")
BESIDE = ("AB2x7", "H1P5R3")
MINUTES = 10


def measure(folder: Path) -> tuple[dict[str, Any], list[Check]]:
    """Fit TABLES and judge them; about half an hour on two cores."""
    bundle = build_digits(folder / "digits")
    pipeline = Pipeline.load(bundle.path)
    networks = load_torch_networks(bundle, TorchOptions())
    tables = {}
    for name, (options, fitting) in TABLES.items():
        started = time.monotonic()
        solver = calibrate_solver(pipeline, networks, options, fitting)
        tables[name] = Fitted(solver, time.monotonic() - started)
    judge = Judge(pipeline, SAMPLES)
    judged = {name: judge(table.solver.schedule) for name, table in tables.items()}
    others = {text: judge(text) for text in OTHERS}
    at_scales = errors_at_scales(pipeline, tables)
    figures = {
        "precision": "fp32",
        "backend": "onnxruntime",
        "guidance": GUIDANCE,
        "samples": SAMPLES,
        "tables": [
            {"name": name, **tables[name].describe(), **figures_of(judgement, judge)}
            for name, judgement in judged.items()
        ],
        "others": [
            {
                "name": text,
                "evaluations": dict(Schedule.parse(text).evaluations()),
                **figures_of(judgement, judge),
            }
            for text, judgement in others.items()
        ],
        "errors_at_scales": {
            name: {f"{scale:g}": float(errors.mean()) for scale, errors in by_scale.items()}
            for name, by_scale in at_scales.items()
        },
    }
    seconds = tables[OURS].seconds
    return figures, [
        *_checks(judged, others),
        *_scale_checks(at_scales),
        Check(f"table of {OURS}, minutes", seconds / 60, f"at most {MINUTES}", seconds <= 60 * MINUTES),
    ]


@dataclass(frozen=True)
class Fitted:
    """A table, and how long it took with the trajectories it needs."""

    solver: Solver
    seconds: float

    def describe(self) -> dict[str, Any]:
        evaluations = dict(self.solver.schedule.evaluations())
        return {
            **self.solver.fit.describe(),
            "all_seconds": self.seconds,
            "evaluations": evaluations,
        }


def figures_of(judged: Judgement, judge: Judge) -> dict[str, float]:
    return {
        "recognised": float(judged.recognised.mean()),
        "frechet_distance": frechet_distance(judged.features, judge.real),
        "endpoint_error": float(judged.errors.mean()),
    }


def errors_at_scales(
    pipeline: Pipeline, tables: Mapping[str, Fitted]
) -> dict[str, dict[float, NDArray[np.float64]]]:
    """Return the endpoint errors (AT_SCALES) of some tables and of BESIDE, by scale."""
    names = (OURS, EVERY_SCALE, REFINED)
    schedules: dict[str, str | Schedule] = {name: tables[name].solver.schedule for name in names}
    schedules |= {text: text for text in BESIDE}
    found: dict[str, dict[float, NDArray[np.float64]]] = {name: {} for name in schedules}
    for scale in SCALES:
        request = make_rows(pipeline.manifest, AT_SCALES, 0, [scale])
        truth = find_endpoints(pipeline, request, TRUTH, lambda what, done, total: None)
        for name, schedule in schedules.items():
            found[name][scale] = endpoint_errors(pipeline, truth, schedule)
    return found


def _checks(judged: Mapping[str, Judgement], others: Mapping[str, Judgement]) -> list[Check]:
    ours = judged[OURS].errors
    return [
        ratio_check("endpoint error, AB2x7 / table of 7 evaluations", others["AB2x7"].errors, ours, 1.67),
        ratio_check("endpoint error, H1P5R3 / table of 7 evaluations", others["H1P5R3"].errors, ours, 1.0),
        ratio_check(
            "endpoint error, AB2x5 / table of 5 evaluations",
            others["AB2x5"].errors,
            judged["5 evaluations"].errors,
            1.67,
        ),
        ratio_check(
            "endpoint error, AB2x10 / table of 10 evaluations",
            others["AB2x10"].errors,
            judged["10 evaluations"].errors,
            1.67,
        ),
        ratio_check(
            "endpoint error, table of 7 evaluations / with 3 refined", ours, judged[REFINED].errors, 1.0
        ),
    ]


def _scale_checks(at_scales: Mapping[str, Mapping[float, NDArray[np.float64]]]) -> list[Check]:
    """Hold the table fitted at GUIDANCE against AB2x7 at scales that it was not fitted at."""
    further: Sequence[float] = [scale for scale in SCALES if scale != GUIDANCE]
    return [
        ratio_check(
            f"endpoint error at guidance {scale:g}, AB2x7 / table fitted at {GUIDANCE:g}",
            at_scales["AB2x7"][scale],
            at_scales[OURS][scale],
            1.0,
        )
        for scale in further
    ]
