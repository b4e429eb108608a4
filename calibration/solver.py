"""Calibrating a bundle's solver: a table of its own, held against other schedules on noise it never saw."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowturbo_trt.bundle.amend import with_schedule
from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.calibration.endpoints import (
    CalibrationError,
    Endpoints,
    Progress,
    endpoint_errors,
    find_endpoints,
    make_rows,
)
from flowturbo_trt.calibration.solver_table import Fit, FitOptions, LearnableTable, fit_table
from flowturbo_trt.evaluation.torch_reference import TorchNetworks
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.sampling.schedule import Schedule


@dataclass(frozen=True)
class SolverOptions:
    """What a table is fitted to and judged by.

    It is fitted on `trajectories` noises and judged on `held_out` others, at the scales of `guidance` in
    turn (none: the bundle's own) and then at each of `also_at`, which it is not fitted at. The ends of the
    `reference` schedule are taken for the true ones. It is held against the schedules `beside` (none: the
    bundle's default, and the best known method of as many evaluations, Adams–Bashforth's of order 2).
    """

    name: str = ""
    trajectories: int = 256
    held_out: int = 64
    guidance: tuple[float, ...] = ()
    also_at: tuple[float, ...] = ()
    reference: str = "H50"
    beside: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.trajectories < 1 or self.held_out < 1 or self.seed < 0:
            raise CalibrationError(
                f"{self.trajectories} trajectories, {self.held_out} held out and seed {self.seed}, "
                "expected at least 1, 1 and 0"
            )


@dataclass(frozen=True)
class Solver:
    """A fit, and mean endpoint errors (relative L2) by schedule: on held-out noise, and by further scale."""

    fit: Fit
    errors: Mapping[str, float]
    errors_at: Mapping[float, Mapping[str, float]]

    @property
    def schedule(self) -> Schedule:
        """The schedule of the table."""
        return Schedule.of_table(self.fit.table)

    def describe(self) -> dict[str, Any]:
        return {
            **self.fit.describe(),
            "endpoint_errors": dict(self.errors),
            "endpoint_errors_at": {f"{scale:g}": dict(errors) for scale, errors in self.errors_at.items()},
        }


def calibrate_solver(
    pipeline: Pipeline,
    networks: TorchNetworks,
    options: SolverOptions,
    fitting: FitOptions,
    progress: Progress = lambda what, done, total: None,
) -> Solver:
    """Fit a table to a pipeline's model, whose networks are those in torch, and judge it.

    What cannot work is refused before anything long begins; raises CalibrationError, BundleError and
    ScheduleError.
    """
    fitting.check_trajectories(options.trajectories)
    manifest = pipeline.manifest
    name = options.name or default_name(fitting)
    # What would be written afterwards must fit into the bundle, whatever its numbers will be.
    template = Schedule.of_table(LearnableTable.adams_bashforth(1, fitting).table(name))
    with_schedule(manifest, template)
    reference = _reference(manifest, options.reference, fitting)
    judged = options.beside or (manifest.default_schedule, f"AB2x{fitting.evaluations}")
    beside = [manifest.schedule(text) for text in dict.fromkeys(judged)]

    def ends(count: int, seed: int, guidance: Sequence[float]) -> Endpoints:
        return find_endpoints(pipeline, make_rows(manifest, count, seed, guidance), str(reference), progress)

    unseen = options.seed + options.trajectories
    train = ends(options.trajectories, options.seed, options.guidance)
    held_out = ends(options.held_out, unseen, options.guidance)
    fit = fit_table(networks, name, train, held_out, fitting, progress)
    schedules = [Schedule.of_table(fit.table), *beside]
    return Solver(
        fit,
        _errors(pipeline, held_out, schedules),
        {
            scale: _errors(pipeline, ends(options.held_out, unseen, [scale]), schedules)
            for scale in options.also_at
        },
    )


def default_name(fitting: FitOptions) -> str:
    """Return lmsN, or lmsNrM with M refined steps."""
    return f"lms{fitting.evaluations}" + (f"r{fitting.refined}" if fitting.refined else "")


def _reference(manifest: Manifest, text: str, fitting: FitOptions) -> Schedule:
    """Parse the reference; one that is no finer than the table would teach it its own errors."""
    reference = manifest.schedule(text)
    evaluations = reference.evaluations()["predictor"]
    needed = 2 * (fitting.evaluations + fitting.refined)
    if evaluations < needed:
        raise CalibrationError(
            f"reference {text}: evaluates the predictor {evaluations} times, expected at least {needed}, "
            "twice the table's steps; try H50"
        )
    return reference


def _errors(pipeline: Pipeline, endpoints: Endpoints, schedules: Sequence[Schedule]) -> dict[str, float]:
    return {str(s): float(np.mean(endpoint_errors(pipeline, endpoints, s))) for s in schedules}
