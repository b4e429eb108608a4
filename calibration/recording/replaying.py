"""Recorded calls made again, and recorded trajectories followed again, by engines that are to be judged."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.calibration.precision.activations import replay
from flowturbo_trt.calibration.recording.call_sites import CallSite
from flowturbo_trt.calibration.recording.trajectories import Call, Rows
from flowturbo_trt.evaluation.parity.comparison import row_relative_l2
from flowturbo_trt.evaluation.velocity.networks import EngineField
from flowturbo_trt.runtime.backend import Backend
from flowturbo_trt.runtime.backend_onnxruntime import NAME
from flowturbo_trt.runtime.request import Request
from flowturbo_trt.sampling import reference
from flowturbo_trt.sampling.reference import ScheduledField

Array = NDArray[np.float32]
Errors = NDArray[np.float64]


def velocity_errors(
    backend: Backend,
    manifest: Manifest,
    parts: Sequence[Rows],
    sites: Collection[CallSite],
    done: Callable[[], None] = lambda: None,
) -> dict[CallSite, Errors]:
    """Return for each call site the relative L2 (N) of the velocity, on recorded inputs (teacher-forced).

    A refiner's offset counts with the velocity it is added to. `manifest` describes the backend's engines,
    which are ONNX Runtime's.
    """
    errors: dict[CallSite, list[Errors]] = {site: [] for site in sites}
    for rows in parts:
        fields = _fields(backend, manifest, rows.request)
        for call in rows.calls:
            if call.site in errors:
                found = replay(fields[call.site.variant], call)
                errors[call.site].append(_compare(call, found))
                done()
    return {site: np.concatenate(found) for site, found in errors.items()}


def _compare(call: Call, found: Array) -> Errors:
    if call.velocity is None:
        return row_relative_l2(found, call.output)
    return row_relative_l2(call.velocity + found, call.velocity + call.output)


def follow(backend: Backend, manifest: Manifest, schedule: str, variant: str, request: Request) -> Array:
    """Return the latents (n,C,H,W) that a schedule leads a request's noise to, as a variant records it."""
    assert request.noise is not None
    fields = _fields(backend, manifest, request)
    parsed = manifest.schedule(schedule)
    field: Any = ScheduledField(parsed, fields) if variant == "guided" else fields[variant]
    *_, (x, _) = reference.sample(parsed, field, request.noise[:, None])
    latents: Array = x[:, 0]
    return latents


def _fields(backend: Backend, manifest: Manifest, request: Request) -> Mapping[str, EngineField]:
    variants = manifest.programs[manifest.default_schedule]
    return {variant: EngineField(backend, manifest, NAME, variant, request) for variant in variants}
