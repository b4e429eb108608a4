"""Calibrating a bundle's solver: a table of its own, held against other schedules on noise it never saw."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowturbo_trt.bundle.amend import lower
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
from flowturbo_trt.runtime.programs import choose_variant
from flowturbo_trt.sampling.schedule import Schedule


@dataclass(frozen=True)
class SolverOptions:
    """What a table is fitted to and judged by.

    It is fitted on `trajectories` noises, with the fit ended by `held_out` others, and judged on `judged`
    further ones: at the scales of `guidance` in turn (none: the bundle's own) and then at each of `also_at`,
    which it is not fitted at. The ends of the `reference` schedule are taken for the true ones. It is held
    against the schedules `beside` (none: the bundle's default, and Adams–Bashforth's of order 2 with as many
    evaluations). Noise is that of `seed` and those after it, far from where other commands begin by default:
    what they judge a table by, it was not fitted on.
    """

    name: str = ""
    trajectories: int = 256
    held_out: int = 64
    judged: int = 64
    guidance: tuple[float, ...] = ()
    also_at: tuple[float, ...] = ()
    reference: str = "H50"
    beside: tuple[str, ...] = ()
    seed: int = 1_000_000

    def __post_init__(self) -> None:
        if min(self.trajectories, self.held_out, self.judged) < 1 or self.seed < 0:
            raise CalibrationError(
                f"{self.trajectories} trajectories, {self.held_out} held out, {self.judged} judged and seed "
                f"{self.seed}, expected at least 1, 1, 1 and 0"
            )


@dataclass(frozen=True)
class Solver:
    """A fit, and mean endpoint errors (relative L2) on other noise, by schedule; and so by further scale."""

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
    programs = lower(manifest, template(options, fitting))
    is_unguided = make_rows(manifest, len(options.guidance) or 1, 0, options.guidance).is_unguided
    networks.load(programs[choose_variant(manifest, is_unguided=is_unguided)], decode=False)
    reference = _reference(manifest, options.reference, fitting)
    judged = options.beside or (manifest.default_schedule, f"AB2x{fitting.evaluations}")
    beside = [manifest.schedule(text) for text in dict.fromkeys(judged)]

    def ends(count: int, seed: int, guidance: Sequence[float]) -> Endpoints:
        return find_endpoints(pipeline, make_rows(manifest, count, seed, guidance), str(reference), progress)

    train = ends(options.trajectories, options.seed, options.guidance)
    held_out = ends(options.held_out, options.seed + len(train), options.guidance)
    fit = fit_table(networks, table_name(options, fitting), train, held_out, fitting, progress)
    schedules = [Schedule.of_table(fit.table), *beside]
    unseen = options.seed + len(train) + len(held_out)

    def errors(guidance: Sequence[float]) -> dict[str, float]:
        return _errors(pipeline, ends(options.judged, unseen, guidance), schedules)

    return Solver(fit, errors(options.guidance), {scale: errors([scale]) for scale in options.also_at})


def template(options: SolverOptions, fitting: FitOptions) -> Schedule:
    """Return the schedule that would be found but for its numbers: what it needs is known beforehand.

    Raises TableError for a name that is none.
    """
    return Schedule.of_table(LearnableTable.adams_bashforth(1, fitting).table(table_name(options, fitting)))


def table_name(options: SolverOptions, fitting: FitOptions) -> str:
    """Return the name given, else lmsN, or lmsNrM with M refined steps."""
    return options.name or f"lms{fitting.evaluations}" + (f"r{fitting.refined}" if fitting.refined else "")


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
