"""What a refiner is worth: its error against the error of simply reusing the earlier velocity.

Errors are ‖estimate − v(x, s)‖ / ‖v(x, s)‖ per image, of conditional velocities.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.evaluation.parity.comparison import row_relative_l2
from flowturbo_trt.evaluation.velocity.trajectory import Array, FineTrajectory
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.steps import Field, Passed

Values = NDArray[np.float64]


@dataclass(frozen=True)
class LagErrors:
    """Errors (T,D,N) at a trajectory's T times of estimates from velocities that are D lags older.

    `reuse` takes the velocity at s − Δ as it is, `extrapolated` draws a line through those at s − 2Δ and
    s − Δ (what Adams–Bashforth methods do), `refined` is the refiner's. NaN where there is no velocity
    so early; `refined` is None without a refiner.
    """

    reuse: Values
    extrapolated: Values
    refined: Values | None


def lag_errors(
    field: Field,
    trajectory: FineTrajectory,
    lags: Sequence[int],
    *,
    refines: bool,
    tick: Callable[[], object],
) -> LagErrors:
    """Estimate the velocity at every state of a trajectory from older ones; `lags` are whole fine steps."""
    v = trajectory.velocities
    shape = (len(trajectory.times), len(lags), v.shape[1])
    reuse, extrapolated, refined = np.full((3, *shape), np.nan)
    for now, (s, x) in enumerate(zip(trajectory.times, trajectory.states, strict=True)):
        exact = v[now, :, 0]
        for column, lag in enumerate(lags):
            if lag > now:
                continue
            older = v[now - lag]
            reuse[now, column] = row_relative_l2(older[:, 0], exact)
            if refines:
                offset = field.refine(x[:, None], older, s)
                refined[now, column] = row_relative_l2((offset + older)[:, 0], exact)
            if 2 * lag <= now:
                line = 2 * older[:, 0] - v[now - 2 * lag, :, 0]
                extrapolated[now, column] = row_relative_l2(line, exact)
        tick()
    return LagErrors(reuse, extrapolated, refined if refines else None)


@dataclass(frozen=True)
class RefinerCall:
    """An evaluation of the refiner in a schedule: its step (from 0), its time, the passed velocity's age.

    The age is the time since the point that the velocity passed on was evaluated for: the Δ of training.
    """

    step: int
    t: float
    age: float


@dataclass(frozen=True)
class ScheduleErrors:
    """Errors (E,N) of a schedule's E refiner calls at the states it really comes by.

    `reuse` is of the velocity passed on to the step, `refined` of the velocity that the step makes of it.
    """

    reuse: Values
    refined: Values


def refiner_calls(schedule: Schedule) -> tuple[RefinerCall, ...]:
    """Return a schedule's refiner calls in order."""
    return tuple(call.where for call in _observe(_Numbers(), schedule, 0.0))


def schedule_errors(field: Field, schedule: Schedule, noise: Array) -> ScheduleErrors:
    """Run a schedule from noise (N,C,H,W) and hold every velocity of its R steps against the field's own."""
    reuse, refined = [np.empty((0, len(noise)))], [np.empty((0, len(noise)))]
    for call in _observe(field, schedule, noise[:, None]):
        exact = field.predict(call.x, call.where.t)[:, 0]
        reuse.append(row_relative_l2(call.passed[:, 0], exact)[None])
        refined.append(row_relative_l2(call.estimate[:, 0], exact)[None])
    return ScheduleErrors(np.concatenate(reuse), np.concatenate(refined))


@dataclass(frozen=True)
class _Observed:
    where: RefinerCall
    x: Any
    passed: Any
    estimate: Any


def _observe(field: Field, schedule: Schedule, x: Any) -> list[_Observed]:
    """Run a schedule's formulas and note what becomes of every call of the refiner."""
    observer = _Observer(field)
    passed: Passed = ()
    for index, (step, t, s) in enumerate(schedule.formulas):
        observer.begin(index, passed)
        x, passed = step(observer, x, passed, t, s)
    return observer.calls


class _Observer:
    """A field that writes down the refiner's calls.

    The first offset of a step is added to the velocity passed on, a later one to the first estimate: so
    in every reading of R.
    """

    def __init__(self, field: Field) -> None:
        self.calls: list[_Observed] = []
        self._field = field
        self._step = 0
        self._passed: Passed = ()
        self._base: Any = None

    def begin(self, step: int, passed: Passed) -> None:
        self._step, self._passed = step, passed
        self._base = passed[-1][1] if passed else None

    def predict(self, x: Any, t: float) -> Any:
        return self._field.predict(x, t)

    def refine(self, x: Any, v: Any, t: float) -> Any:
        offset = self._field.refine(x, v, t)
        since, passed = self._passed[-1]
        estimate = offset + self._base
        where = RefinerCall(self._step, t, t - since)
        if not self.calls or self.calls[-1].where.step != self._step:
            self._base = estimate
        self.calls.append(_Observed(where, x, passed, estimate))
        return offset


class _Numbers:
    """The field of a number, for what depends on the schedule alone."""

    def predict(self, x: float, t: float) -> float:
        return 0.0

    def refine(self, x: float, v: float, t: float) -> float:
        return 0.0
