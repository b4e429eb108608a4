"""Where trajectories truly end: under a fine schedule, as what coarser ones are held against."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.evaluation.parity.comparison import row_relative_l2
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.runtime.request import Request, make_request
from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.sampling.schedule import Schedule

Array = NDArray[np.float32]
Progress = Callable[[str, int, int], None]


class CalibrationError(FlowTurboError):
    """Calibration cannot start, or has nothing to give."""


@dataclass(frozen=True)
class Endpoints:
    """Requests of N rows, their noise and where it leads to (N,C,H,W)."""

    request: Request
    noise: Array
    latents: Array

    def __len__(self) -> int:
        return len(self.latents)


def make_rows(manifest: Manifest, count: int, seed: int, guidance: Sequence[float] = ()) -> Request:
    """Make a request of `count` rows: all classes in turn, and scales too (none: the bundle's own).

    Fewer rows than classes spread over all of them. Seeds count up from `seed`.
    """
    turn = np.arange(count)
    sizes = {c.name: c.maximum - c.minimum + 1 for c in manifest.model.conditions}
    conditions = {c.name: c.minimum + _spread(turn, sizes[c.name]) for c in manifest.model.conditions}
    scales = np.asarray(guidance or (manifest.model.guidance.default,), dtype=np.float64)
    # They start anew, one further, with every round of classes, lest a class keep to one scale.
    rounds, place = np.divmod(turn, max(sizes.values()))
    of_rows = scales[(place + rounds) % len(scales)]
    return make_request(manifest.model, conditions, range(seed, seed + count), of_rows, None)


def _spread(turn: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Return which of `size` classes each row is of: all in turn, or every so manyth where rows are fewer."""
    return turn % size if len(turn) >= size else turn * size // len(turn)


def find_endpoints(pipeline: Pipeline, request: Request, schedule: str, progress: Progress) -> Endpoints:
    """Run a fine schedule; raises CalibrationError where it does not stay finite."""
    noise = np.empty((len(request), *pipeline.manifest.model.latent), dtype=np.float32)
    request.fill_noise(slice(0, len(request)), noise)
    steps = len(pipeline.manifest.schedule(schedule).kinds)
    latents = pipeline.generate(
        request,
        schedule,
        decode=False,
        on_step=lambda step: progress(
            f"following {len(request)} trajectories with {schedule}",
            step.rows.start * steps + (step.rows.stop - step.rows.start) * (step.index + 1),
            len(request) * steps,
        ),
    ).latents
    if not np.isfinite(latents).all():
        raise CalibrationError(f"{schedule}: its latents are not finite; look at the bundle with verify")
    return Endpoints(request, noise, latents)


def endpoint_errors(
    pipeline: Pipeline, endpoints: Endpoints, schedule: str | Schedule
) -> NDArray[np.float64]:
    """Return the relative L2 (N) between where a schedule ends and the true endpoints."""
    found = pipeline.generate(endpoints.request, schedule, decode=False).latents
    return row_relative_l2(found, endpoints.latents)
