"""Where a schedule ends, with its refiner, with others in its place, and without its R steps."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.evaluation.parity.comparison import row_relative_l2
from flowturbo_trt.evaluation.velocity.trajectory import Array
from flowturbo_trt.sampling import reference
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.steps import REFINER, Field


class ReusedVelocity:
    """A field whose refiner leaves velocities as they are: all offsets are zero."""

    def __init__(self, field: Field) -> None:
        self._field = field

    def predict(self, x: Any, t: float) -> Any:
        return self._field.predict(x, t)

    def refine(self, x: Any, v: Any, t: float) -> Any:
        return np.zeros_like(v)


class PerfectRefiner(ReusedVelocity):
    """A field whose refiner is what training aims at: its offset is v(x, t) − v, for a predictor's price."""

    def refine(self, x: Any, v: Any, t: float) -> Any:
        return self.predict(x, t) - v


@dataclass(frozen=True)
class Ending:
    """A way to the endpoint: `field` makes its field of the engines'."""

    name: str
    schedule: Schedule
    field: Callable[[Field], Field]


def endings(schedule: Schedule, *, refines: bool) -> tuple[Ending, ...]:
    """Return what to compare: a schedule without R steps has itself only."""
    as_is = Ending("as is", schedule, _unchanged)
    if REFINER not in schedule.kinds:
        return (as_is,)
    others = (
        Ending("perfect", schedule, PerfectRefiner),
        Ending("reused", schedule, ReusedVelocity),
        # A table's coefficients are for all of its steps.
        *([Ending("left out", without_refiner(schedule), _unchanged)] if schedule.table is None else []),
    )
    return (replace(as_is, name="refined"), *others) if refines else others


def without_refiner(schedule: Schedule) -> Schedule:
    """Return a schedule without its R steps, the others stretched alike over the same time."""
    groups = tuple((kind, count) for kind, count in schedule.groups if kind != REFINER)
    times: tuple[float, ...] = ()
    if schedule.times:
        start, end = schedule.times[0], schedule.times[-1]
        lengths = [s - t for kind, t, s in schedule.steps if kind != REFINER]
        stretch = (end - start) / sum(lengths)
        inner = accumulate((stretch * length for length in lengths[:-1]), initial=start)
        times = (*inner, end)
    return Schedule(groups, times, guided=schedule.guided)


def endpoint_errors(
    field: Field, ways: tuple[Ending, ...], noise: Array, truth: Array
) -> NDArray[np.float64]:
    """Return ‖x₁ − truth‖ / ‖truth‖ (ways,N) of every way from noise to the true endpoint (N,C,H,W)."""
    errors = []
    for way in ways:
        *_, (x, _) = reference.sample(way.schedule, way.field(field), noise[:, None])
        errors.append(row_relative_l2(x[:, 0], truth))
    return np.stack(errors)


def _unchanged(field: Field) -> Field:
    return field
