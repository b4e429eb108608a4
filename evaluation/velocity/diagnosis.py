"""Diagnosis of a bundle: how its velocities change along trajectories, and what a refiner is worth there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.evaluation.velocity.curvature import Curvature, curvature
from flowturbo_trt.evaluation.velocity.endpoints import ReusedVelocity, endpoint_errors
from flowturbo_trt.evaluation.velocity.networks import EngineField
from flowturbo_trt.evaluation.velocity.plan import Plan
from flowturbo_trt.evaluation.velocity.trajectory import FineTrajectory, follow
from flowturbo_trt.evaluation.velocity.worth import LagErrors, ScheduleErrors, lag_errors, schedule_errors
from flowturbo_trt.runtime.backend import Backend
from flowturbo_trt.runtime.programs import choose_variant
from flowturbo_trt.runtime.request import Request

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Diagnosis:
    """Everything found, with images in the last axis of every array.

    `lags` are errors along the trajectories that were asked for, `unguided` along those without guidance
    (None where guidance is 1 already), `in_schedule` those (E,N) of the schedule's refiner calls, without
    a refiner as if all its offsets were zero; `endpoints` (ways,N) are the errors of `plan.endings`.
    """

    plan: Plan
    curvature: Curvature
    lags: LagErrors
    unguided: LagErrors | None
    in_schedule: ScheduleErrors
    endpoints: NDArray[np.float64]


def diagnose(
    manifest: Manifest,
    name: str,
    backend: Backend,
    plan: Plan,
    progress: Progress = lambda what, done, total: None,
) -> Diagnosis:
    """Carry out a plan with the engines of a backend, whose name the manifest knows.

    Raises DiagnosisError where velocities are not finite.
    """
    batches = list(plan.batches(manifest.batches))
    trajectories = 1 if plan.request.is_unguided else 2
    tick = _Ticker(progress, len(batches) * (2 * trajectories * (plan.steps + 1) + 1))
    parts = [_cut(_diagnose_batch(manifest, name, backend, plan, rows, tick), used) for rows, used in batches]
    joined: Diagnosis = _join(parts)
    return joined


def _diagnose_batch(
    manifest: Manifest, name: str, backend: Backend, plan: Plan, request: Request, tick: "_Ticker"
) -> Diagnosis:
    noise = np.empty((len(request), *manifest.model.latent), dtype=np.float32)
    request.fill_noise(slice(0, len(request)), noise)

    def field_of(request: Request) -> EngineField:
        variant = choose_variant(manifest, is_unguided=request.is_unguided)
        return EngineField(backend, manifest, name, variant, request)

    def follow_and_estimate(field: EngineField, kind: str) -> tuple[FineTrajectory, LagErrors]:
        trajectory = follow(field, noise, plan.steps, tick.about(f"following {kind} trajectories"))
        estimating = tick.about(f"estimating {kind} velocities from older ones")
        return trajectory, lag_errors(field, trajectory, plan.lags, refines=plan.refines, tick=estimating)

    unguided = None
    if not request.is_unguided:
        without_guidance = replace(request, guidance=np.ones_like(request.guidance))
        _, unguided = follow_and_estimate(field_of(without_guidance), "unguided")
    field = field_of(request)
    trajectory, lags = follow_and_estimate(field, "unguided" if request.is_unguided else "guided")
    tick.about(f"running {plan.schedule}")()
    in_schedule = schedule_errors(field if plan.refines else ReusedVelocity(field), plan.schedule, noise)
    endpoints = endpoint_errors(field, plan.endings, noise, trajectory.states[-1])
    return Diagnosis(plan, curvature(trajectory), lags, unguided, in_schedule, endpoints)


def _cut(value: Any, rows: int) -> Any:
    """Keep the first images of every array."""
    return _map(lambda arrays: arrays[0][..., :rows], [value])


def _join(values: Sequence[Any]) -> Any:
    """Join the images of every array."""
    return _map(lambda arrays: np.concatenate(arrays, axis=-1), values)


def _map(function: Callable[[Sequence[NDArray[Any]]], NDArray[Any]], values: Sequence[Any]) -> Any:
    """Replace every array in diagnoses of the same plan by a function of all of them."""
    first = values[0]
    if isinstance(first, np.ndarray):
        return function(values)
    if not isinstance(first, Diagnosis | Curvature | LagErrors | ScheduleErrors):
        return first
    names = [field.name for field in fields(first)]
    return replace(first, **{name: _map(function, [getattr(v, name) for v in values]) for name in names})


class _Ticker:
    """Progress in states of trajectories."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def about(self, what: str) -> Callable[[], None]:
        """Return a function that counts one more state."""

        def tick() -> None:
            self._done += 1
            self._progress(what, self._done, self._total)

        return tick
