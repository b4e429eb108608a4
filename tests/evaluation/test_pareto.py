"""Pareto fronts by hand."""

from flowturbo_trt.evaluation.pareto import pareto_front

Point = tuple[float, float]
A, B, C = (1.0, 0.9), (2.0, 0.5), (4.0, 0.1)
WORSE = [(1.0, 0.95), (2.5, 0.5), (3.0, 0.6), (5.0, 0.2)]


def values(point: Point) -> Point:
    return point


def test_the_front_is_what_nothing_is_better_than() -> None:
    assert pareto_front([*WORSE, C, A, B], values) == [A, B, C]
    assert pareto_front([], values) == []


def test_of_equals_one_is_enough() -> None:
    assert pareto_front([B, B], values) == [B]
