"""Pareto fronts of two values: what nothing else beats."""

from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
# Two values of something, e.g. time and error: less is better.
Values = Callable[[Item], tuple[float, float]]


def pareto_front(items: Sequence[Item], values: Values[Item]) -> list[Item]:
    """Return the items that no other beats in one value without losing in the other, by the first value.

    Of several with the same values the first stands for all.
    """
    front: list[Item] = []
    for item in sorted(items, key=values):
        if not front or values(item)[1] < values(front[-1])[1]:
            front.append(item)
    return front
