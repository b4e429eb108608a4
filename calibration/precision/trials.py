"""Trying what of a network to quantise, on some recorded rows, against where float32 leads them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.endpoints import CalibrationError, Progress
from flowturbo_trt.calibration.precision.emulation import Layers, SwitchedBackend
from flowturbo_trt.calibration.precision.groups import Group
from flowturbo_trt.calibration.recording.replaying import follow, velocity_errors
from flowturbo_trt.calibration.recording.trajectories import CallSite, Recording, Rows
from flowturbo_trt.evaluation.parity.comparison import row_relative_l2
from flowturbo_trt.runtime.backend_onnxruntime import OnnxRuntimeBackend

Array = NDArray[np.float32]
Errors = Mapping[str, float]


@dataclass(frozen=True)
class Truth:
    """Rows of a recording, and where the float32 engines of `view` (recording.float32) lead them.

    `ends` are latents (n,C,H,W) by schedule, for each of `parts`; `distances` the schedules' own mean
    relative L2 from the ends of a finer one, empty where none was followed.
    """

    view: Bundle
    variant: str
    parts: tuple[Rows, ...]
    ends: Mapping[str, tuple[Array, ...]]
    distances: Errors
    threads: int

    def error(self, schedule: str, ends: Sequence[Array]) -> float:
        """Return the mean relative L2 of other ends of a schedule."""
        return _mean_error(ends, self.ends[schedule])


def find_truth(
    view: Bundle,
    recording: Recording,
    rows: int,
    reference: str | None,
    threads: int,
    progress: Progress = lambda what, done, total: None,
) -> Truth:
    """Follow the recorded schedules, and a finer `reference` if one is given, from some recorded noises.

    Raises CalibrationError for a reference that is not finer.
    """
    manifest = view.manifest
    if reference is not None:
        _check_finer(manifest, recording.schedules, reference)
    backend = OnnxRuntimeBackend(view, threads)
    parts = tuple(some_rows(recording, manifest, rows))
    variant = "guided" if any(site.variant == "guided" for site in recording.sites) else "unguided"
    schedules = [*recording.schedules, *([reference] if reference else [])]
    found: dict[str, tuple[Array, ...]] = {}
    for number, schedule in enumerate(schedules):
        progress(f"following {schedule} in float32", number, len(schedules))
        found[schedule] = tuple(follow(backend, manifest, schedule, variant, p.request) for p in parts)
    progress("followed in float32", len(schedules), len(schedules))
    ends = {schedule: found[schedule] for schedule in recording.schedules}
    distances = {s: _mean_error(e, found[reference]) for s, e in ends.items()} if reference else {}
    return Truth(view, variant, parts, ends, distances, threads)


def some_rows(recording: Recording, manifest: Manifest, count: int) -> list[Rows]:
    """Read `count` rows from all over a recording, or all where it has fewer."""
    classes = max(c.maximum - c.minimum + 1 for c in manifest.model.conditions)
    # Classes take turns: a stride that shares no factor with their number meets all of them.
    stride = next(s for s in range(max(1, recording.rows // count), 0, -1) if gcd(s, classes) == 1)
    found: list[Rows] = []
    start = 0
    for rows in recording.read(manifest):
        size = len(rows.request)
        first = -start % stride
        last = min(size, stride * count - start)
        if first < last:
            found.append(rows.part(slice(first, last, stride)))
        start += size
    return found


def _check_finer(manifest: Manifest, schedules: Sequence[str], reference: str) -> None:
    finest = manifest.schedule(reference).evaluations()["predictor"]
    for schedule in schedules:
        if 2 * manifest.schedule(schedule).evaluations()["predictor"] > finest:
            raise CalibrationError(
                f"{schedule}: {reference} is not twice as fine, and so no measure of what 8 bits may change; "
                "give --budget-error, or a finer --reference"
            )


def _mean_error(found: Sequence[Array], expected: Sequence[Array]) -> float:
    errors = [row_relative_l2(f, e) for f, e in zip(found, expected, strict=True)]
    return float(np.concatenate(errors).mean())


class Trials:
    """Quantises groups of `layers` and measures; everything else stays float32."""

    def __init__(self, truth: Truth, layers: Layers, kind: str) -> None:
        self._truth = truth
        self._manifest = truth.view.manifest
        self._backend = SwitchedBackend(truth.view, layers, kind, truth.threads)

    def trajectory_errors(self, groups: Iterable[Group]) -> Errors:
        """Return the mean relative L2 of the latents at the end of each schedule."""
        self._quantize(groups)
        truth = self._truth
        return {
            schedule: truth.error(
                schedule,
                [
                    follow(self._backend, self._manifest, schedule, truth.variant, rows.request)
                    for rows in truth.parts
                ],
            )
            for schedule in truth.ends
        }

    def velocity_errors(
        self, groups: Iterable[Group], sites: Collection[CallSite]
    ) -> Mapping[CallSite, float]:
        """Return the mean relative L2 of the velocity at call sites, teacher-forced."""
        self._quantize(groups)
        found = velocity_errors(self._backend, self._manifest, self._truth.parts, sites)
        return {site: float(errors.mean()) for site, errors in found.items()}

    def _quantize(self, groups: Iterable[Group]) -> None:
        chosen: dict[str, set[str]] = {}
        for group in groups:
            for graph, layers in group.layers.items():
                chosen.setdefault(graph, set()).update(layers)
        self._backend.switch(chosen)
