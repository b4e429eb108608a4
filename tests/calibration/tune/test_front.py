"""Fronts and budgets."""

import math

import pytest

from flowturbo_trt.calibration.tune.errors import TuneError
from flowturbo_trt.calibration.tune.front import Budget, ranked

Point = tuple[float, float]
A, B, C = (1.0, 0.9), (2.0, 0.5), (4.0, 0.1)
FRONT = [A, B, C]
WORSE = [(1.0, 0.95), (2.5, 0.5), (3.0, 0.6), (5.0, 0.2)]


def values(point: Point) -> Point:
    return point


def test_ranks_are_front_by_front() -> None:
    assert list(ranked([*WORSE, *FRONT], values)) == [
        C,
        B,
        A,
        (5.0, 0.2),
        (2.5, 0.5),
        (1.0, 0.95),
        (3.0, 0.6),
    ]


@pytest.mark.parametrize(
    ("budget", "chosen"),
    [
        (Budget(ms=3), B),
        (Budget(ms=2), B),
        (Budget(error=0.5), B),
        (Budget(error=0.95), A),
        (Budget(ms=9, error=0.6), C),
        (Budget(ms=3, error=0.6), B),
        (Budget(ms=0.5), None),
        (Budget(error=0.01), None),
        (Budget(ms=1.5, error=0.2), None),
    ],
)
def test_what_a_budget_takes(budget: Budget, chosen: Point | None) -> None:
    assert budget.choose(FRONT, values) == chosen


def test_what_comes_nearest_to_a_budget() -> None:
    assert Budget(ms=0.5).nearest(FRONT, values) == [A, B, C]
    assert Budget(error=0.05).nearest(FRONT, values) == [C, B, A]
    # B is 1.5 too slow and 1.5 too inexact, A 3.5 too inexact, C 4 too slow.
    assert Budget(ms=0.8, error=0.2).nearest(FRONT, values) == [B, A, C]


@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_budgets_of_nothing(value: float) -> None:
    with pytest.raises(TuneError, match=r"a budget of ms .*: expected more than 0"):
        Budget(ms=value)
    with pytest.raises(TuneError, match=r"a budget of error .*: expected more than 0"):
        Budget(error=value)


def test_budgets_in_words() -> None:
    assert str(Budget(ms=40)) == "40 ms an image"
    assert str(Budget(40, 0.05)) == "40 ms an image and an error of 0.05"
    assert not Budget().is_set
