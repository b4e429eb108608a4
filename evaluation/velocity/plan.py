"""What a diagnosis looks at, decided and checked before anything runs."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.evaluation.velocity.endpoints import Ending, endings
from flowturbo_trt.evaluation.velocity.trajectory import DiagnosisError
from flowturbo_trt.evaluation.velocity.worth import RefinerCall, refiner_calls
from flowturbo_trt.runtime.batching import split
from flowturbo_trt.runtime.programs import choose_variant, find_program
from flowturbo_trt.runtime.request import Request, make_request
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.steps import REFINER


@dataclass(frozen=True)
class DiagnosisOptions:
    """What `diagnose` can be told; the CLI reads its defaults here.

    `num` images from seeds `seed` on, of `labels` in turn or, without any, of all classes in turn. The
    truth is Heun's method in `steps` steps. `schedule` is by default the bundle's where that has R steps,
    else `usual_schedule`; `guidance` by default the bundle's. `deltas` are the ages of velocities to look
    at, in units of time, beside those in the schedule; all are rounded to whole fine steps.
    """

    num: int = 64
    seed: int = 0
    steps: int = 50
    labels: tuple[int, ...] = ()
    schedule: str | None = None
    usual_schedule: str = "H1P5R3"
    guidance: float | None = None
    deltas: tuple[float, ...] = (0.02, 0.04, 0.06, 0.08, 0.12, 0.16, 0.24, 0.32)


@dataclass(frozen=True)
class Plan:
    """What is looked at: `lags` are ages of velocities in fine steps, `lag` the one of the schedule's step.

    `refines` says whether the bundle has a refiner for the backend; `calls` are those of the schedule.
    """

    request: Request
    schedule: Schedule
    refines: bool
    steps: int
    lags: tuple[int, ...]
    lag: int
    calls: tuple[RefinerCall, ...]
    endings: tuple[Ending, ...]

    @property
    def guidance(self) -> float:
        return float(self.request.guidance[0])

    @property
    def times(self) -> tuple[float, ...]:
        """The times of the fine trajectory's states."""
        return tuple(i / self.steps for i in range(self.steps + 1))

    @property
    def deltas(self) -> tuple[float, ...]:
        """The lags in units of time."""
        return tuple(lag / self.steps for lag in self.lags)

    def batches(self, sizes: tuple[int, ...]) -> Iterator[tuple[Request, int]]:
        """Yield the request in built batches, each with its number of rows that count; the rest pad it."""
        request, start = self.request, 0
        for batch in split(len(request), sizes):
            rows = np.minimum(np.arange(start, start + batch), len(request) - 1)
            conditions = {name: values[rows] for name, values in request.conditions.items()}
            seeds = tuple(request.seeds[row] for row in rows)
            yield Request(conditions, request.guidance[rows], seeds, None), min(batch, len(request) - start)
            start += batch


def make_plan(manifest: Manifest, backend: str, options: DiagnosisOptions) -> Plan:
    """Check the options against a bundle.

    Raises DiagnosisError, RequestError, ScheduleError, and BundleError where the backend has no predictor.
    """
    request = _make_request(manifest, options)
    variant = choose_variant(manifest, is_unguided=request.is_unguided)
    manifest.engine("predictor", variant, backend)
    schedule = _choose_schedule(manifest, options, variant)
    if options.steps < len(schedule.kinds):
        raise DiagnosisError(
            f"{options.steps} steps: the truth cannot be coarser than {schedule}; "
            f"give more than its {len(schedule.kinds)}"
        )
    refines = any(
        (e.network, e.variant, e.backend) == ("refiner", variant, backend) for e in manifest.engines
    )
    lengths = [s - t for kind, t, s in schedule.steps if kind == REFINER] or [1 / len(schedule.kinds)]
    ages = (*options.deltas, max(lengths), *(call.age for call in refiner_calls(schedule) if call.age))
    lags = sorted({_lag(age, options.steps) for age in ages})
    return Plan(
        request,
        schedule,
        refines,
        options.steps,
        tuple(lags),
        _lag(max(lengths), options.steps),
        refiner_calls(schedule),
        endings(schedule, refines=refines),
    )


def _make_request(manifest: Manifest, options: DiagnosisOptions) -> Request:
    if options.num < 1:
        raise DiagnosisError(f"{options.num} images: expected at least 1")
    turn = np.arange(options.num)
    balanced = {
        condition.name: condition.minimum + turn % (condition.maximum - condition.minimum + 1)
        for condition in manifest.model.conditions
    }
    conditions = {"label": np.resize(options.labels, options.num)} if options.labels else balanced
    seeds = range(options.seed, options.seed + options.num)
    return make_request(manifest.model, conditions, seeds, options.guidance, None)


def _choose_schedule(manifest: Manifest, options: DiagnosisOptions, variant: str) -> Schedule:
    default = manifest.schedule()
    usual = str(default) if REFINER in default.kinds else options.usual_schedule
    schedule = manifest.schedule(options.schedule or usual)
    if schedule.guided is not None:
        raise DiagnosisError(
            f"{schedule}: guided some of the time, where velocities cannot be compared over time; "
            "leave :guided= out"
        )
    # For its other checks: that the bundle can run it from noise to data.
    find_program(manifest, schedule, variant)
    return schedule


def _lag(age: float, steps: int) -> int:
    return min(steps, max(1, round(age * steps)))
