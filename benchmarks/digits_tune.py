"""What `tune` finds on the digits: a schedule that dominates the bundle's default, and the whole front."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from flowturbo_trt.benchmarks.tables import RESULTS
from flowturbo_trt.bundle.amend import save_schedule
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.endpoints import find_endpoints, make_rows
from flowturbo_trt.calibration.solver_table import FitOptions, fit_table
from flowturbo_trt.calibration.tune.description import describe
from flowturbo_trt.calibration.tune.figure import draw
from flowturbo_trt.calibration.tune.front import Budget
from flowturbo_trt.calibration.tune.options import TuneOptions
from flowturbo_trt.calibration.tune.preparation import prepared
from flowturbo_trt.calibration.tune.results import Tuned
from flowturbo_trt.calibration.tune.tuning import tune
from flowturbo_trt.evaluation.report import Check
from flowturbo_trt.evaluation.torch_reference import TorchOptions, load_torch_networks
from flowturbo_trt.examples.digits.bundle import digits_options
from flowturbo_trt.export.build import build
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.sampling.schedule import Schedule

FIGURE = "digits_tune.png"
SECONDS = 900
# A short fit: that tables take part is what counts here, digits_solver fits one with care.
TABLE = FitOptions(evaluations=7, steps=100)
TRAJECTORIES, HELD_OUT, FIRST_SEED = 128, 32, 10_000


def measure(folder: Path) -> tuple[dict[str, Any], list[Check]]:
    """Build the bundle with a solver table, and search; about 15 minutes on two cores."""
    options = replace(digits_options(), variants=("guided", "unguided"))
    bundle = add_table(build(options, folder / "digits"))
    (folder / "tuned").mkdir()
    started = time.monotonic()
    with prepared(TuneOptions(bundle.path)) as found:
        tuned = tune(found, folder / "tuned", tell)
        seconds = time.monotonic() - started
        draw(found, tuned, Budget(), RESULTS / FIGURE)
        described = describe(found, tuned, Budget())
    figures = {
        "precision": "fp32",
        "backend": "onnxruntime",
        "guidance": described["guidance"][0],
        "seconds": seconds,
        **{name: described[name] for name in ("tried", "trajectories", "held_out", "reference", "batch")},
        **{name: described[name] for name in ("latency_model_error", "latency_drift")},
        **{name: described[name] for name in ("baseline", "own", "front", "dominating")},
    }
    return figures, checks(tuned, seconds)


def add_table(bundle: Bundle) -> Bundle:
    """Fit a table and write it into a bundle."""
    with Pipeline.load(bundle.path) as pipeline:
        train, held_out = (
            find_endpoints(pipeline, make_rows(bundle.manifest, count, seed), TuneOptions.reference, tell)
            for count, seed in ((TRAJECTORIES, FIRST_SEED), (HELD_OUT, FIRST_SEED + TRAJECTORIES))
        )
    fit = fit_table(load_torch_networks(bundle, TorchOptions()), "lms7", train, held_out, TABLE)
    return save_schedule(bundle, Schedule.of_table(fit.table))


def checks(tuned: Tuned, seconds: float) -> list[Check]:
    """Hold what was found against the bundle's default schedule."""
    baseline = tuned.baseline
    fast = [result for result in tuned.front if result.latency.ms <= baseline.latency.ms]
    best = min(fast, key=lambda result: result.error)
    ratio, interval = best.error_ratio(baseline)
    return [
        Check("minutes of the search", seconds / 60, f"at most {SECONDS // 60}", seconds <= SECONDS),
        Check(
            f"error, the most exact schedule not slower than {baseline.name} / {baseline.name}",
            ratio,
            "below 1",
            interval[1] < 1,
            interval,
        ),
        Check(
            "largest error of an expected latency",
            tuned.model_error,
            "at most 0.1",
            tuned.model_error <= 0.1,
        ),
    ]


def tell(what: str, done: int, total: int) -> None:
    """Say what has been done, now and then."""
    if done == total:
        click.echo(f"  {what}", err=True)
