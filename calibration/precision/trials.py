"""Trying what of a network to quantise, on some recorded rows, against where float32 leads them."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.endpoints import CalibrationError, Progress
from flowturbo_trt.calibration.precision.emulation import Layers, SwitchedBackend
from flowturbo_trt.calibration.precision.groups import Group
from flowturbo_trt.calibration.recording.call_sites import CallSite
from flowturbo_trt.calibration.recording.replaying import follow, velocity_errors
from flowturbo_trt.calibration.recording.trajectories import Recording, Rows
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

    The reference is guided when the schedule is that it is held against. Raises CalibrationError for one
    that is not finer.
    """
    manifest = view.manifest
    finer = {} if reference is None else check_reference(manifest, recording.schedules, reference)
    backend = OnnxRuntimeBackend(view, threads)
    parts = tuple(some_rows(recording, manifest, rows))
    schedules = tuple(dict.fromkeys([*recording.schedules, *finer.values()]))
    found: dict[str, tuple[Array, ...]] = {}
    for number, schedule in enumerate(schedules):
        progress(f"following {schedule} in float32", number, len(schedules))
        found[schedule] = tuple(
            follow(backend, manifest, schedule, recording.variant, part.request) for part in parts
        )
    progress("followed in float32", len(schedules), len(schedules))
    ends = {schedule: found[schedule] for schedule in recording.schedules}
    distances = {schedule: _mean_error(ends[schedule], found[fine]) for schedule, fine in finer.items()}
    return Truth(view, recording.variant, parts, ends, distances, threads)


def check_reference(manifest: Manifest, schedules: Sequence[str], reference: str) -> dict[str, str]:
    """Return what each schedule is held against: `reference`, guided when the schedule is.

    Raises ScheduleError, and CalibrationError for a reference that is not twice as fine.
    """
    fine = manifest.schedule(reference)
    if fine.guided is not None:
        raise CalibrationError(f"{reference}: is guided when each schedule is; leave out guided=")
    finest = fine.evaluations()["predictor"]
    found = {}
    for text in schedules:
        schedule = manifest.schedule(text)
        if 2 * schedule.evaluations()["predictor"] > finest:
            raise CalibrationError(
                f"{text}: {reference} is not twice as fine, and so no measure of what 8 bits may change; "
                "give --budget-error, or a finer --reference"
            )
        found[text] = str(replace(fine, guided=schedule.guided))
    return found


def some_rows(recording: Recording, manifest: Manifest, count: int) -> list[Rows]:
    """Read `count` rows from all over a recording, or all where it has fewer.

    Classes and guidance scales are among them as evenly as they are recorded.
    """
    requests = [rows.request for rows in recording.read(manifest)]
    classes = [np.concatenate([r.conditions[c.name] for r in requests]) for c in manifest.model.conditions]
    chosen = spread([*classes, np.concatenate([r.guidance for r in requests])], count)
    found: list[Rows] = []
    start = 0
    for rows in recording.read(manifest):
        size = len(rows.request)
        if len(own := chosen[(chosen >= start) & (chosen < start + size)] - start):
            found.append(rows.part(own))
        start += size
    return found


def spread(kinds: Sequence[NDArray[Any]], count: int) -> NDArray[np.int64]:
    """Return `count` rows, in their order, that have the values of each of `kinds` (N) evenly."""
    total = len(kinds[0])
    # Of rows that would do, those come first that are far from each other: steps of the golden ratio.
    left = np.argsort(np.arange(total) * ((5**0.5 - 1) / 2) % 1, kind="stable").tolist()
    seen = Counter[tuple[int, Any]]()
    chosen: list[int] = []
    while left and len(chosen) < count:
        row = min(left, key=lambda row: sum(seen[which, of[row]] for which, of in enumerate(kinds)))
        left.remove(row)
        chosen.append(row)
        seen.update((which, of[row]) for which, of in enumerate(kinds))
    return np.array(sorted(chosen), dtype=np.int64)


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
