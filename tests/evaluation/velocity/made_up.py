"""Diagnoses of known fields, for what is said of them."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.evaluation.velocity.curvature import curvature
from flowturbo_trt.evaluation.velocity.diagnosis import Diagnosis
from flowturbo_trt.evaluation.velocity.endpoints import PerfectRefiner, ReusedVelocity, endpoint_errors
from flowturbo_trt.evaluation.velocity.plan import DiagnosisOptions, make_plan
from flowturbo_trt.evaluation.velocity.trajectory import follow
from flowturbo_trt.evaluation.velocity.worth import lag_errors, schedule_errors
from flowturbo_trt.sampling.steps import Field
from flowturbo_trt.tests.evaluation.velocity.fields import Array, KnownField, RefinedField, noise, nothing

Rate = Callable[[Array, float], Array]
STEPS = 12


def bending(x: Array, t: float) -> Array:
    """A field whose velocity bends late, and differs from image to image."""
    return np.sin(2 * x) + 3 * t * t


def helpful(rate: Rate, share: float) -> Field:
    """Return a field whose refiner takes a share of the way to the velocity: above 1 too far."""
    perfect = PerfectRefiner(KnownField(rate))
    return RefinedField(rate, lambda x, v, t: share * perfect.refine(x, v, t))


def diagnosis_of(
    manifest: Manifest,
    field: Field,
    *,
    refines: bool = True,
    schedule: str = "H1P2R2:consistent",
    images: int = 12,
    without_guidance: Field | None = None,
) -> Diagnosis:
    """Diagnose a field; the plan is of a bundle."""
    if not refines:
        manifest = _without_refiner(manifest)
    options = DiagnosisOptions(num=images, steps=STEPS, schedule=schedule, deltas=(0.1, 0.3))
    plan = make_plan(manifest, "onnxruntime", options)
    start = noise(images)
    trajectory = follow(field, start, STEPS, nothing)
    unguided = None
    if without_guidance is not None:
        other = follow(without_guidance, start, STEPS, nothing)
        unguided = lag_errors(without_guidance, other, plan.lags, refines=refines, tick=nothing)
    return Diagnosis(
        plan,
        curvature(trajectory),
        lag_errors(field, trajectory, plan.lags, refines=refines, tick=nothing),
        unguided,
        schedule_errors(field if refines else ReusedVelocity(field), plan.schedule, start),
        endpoint_errors(field, plan.endings, start, trajectory.states[-1]),
    )


def _without_refiner(manifest: Manifest) -> Manifest:
    return replace(manifest, engines=tuple(e for e in manifest.engines if e.network != "refiner"))
