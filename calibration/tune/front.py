"""Budgets of time and error, and what they take from candidates."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flowturbo_trt.calibration.tune.errors import TuneError
from flowturbo_trt.evaluation.pareto import Item, Values, pareto_front

# How many candidates are named where none meets a budget.
NEAREST = 3


def ranked(items: Sequence[Item], values: Values[Item]) -> Iterator[Item]:
    """Yield the front, then the front of what is left, and so on; each by its error, the least first."""
    left = list(items)
    while left:
        front = pareto_front(left, values)
        yield from sorted(front, key=lambda item: values(item)[1])
        chosen = set(map(id, front))
        left = [item for item in left if id(item) not in chosen]


@dataclass(frozen=True)
class Budget:
    """What may be spent: milliseconds an image, a relative error at the end, or both."""

    ms: float | None = None
    error: float | None = None

    def __post_init__(self) -> None:
        for name in ("ms", "error"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise TuneError(f"a budget of {name} {value}: expected more than 0")

    @property
    def is_set(self) -> bool:
        return self.ms is not None or self.error is not None

    def choose(self, items: Sequence[Item], values: Values[Item]) -> Item | None:
        """Return what meets the budget: with a bound on time the most exact, else the fastest."""
        fits = [item for item in items if self._excess(*values(item)) == (0, 0)]
        by = 0 if self.ms is None else 1
        return min(fits, key=lambda item: (values(item)[by], values(item)[1 - by]), default=None)

    def nearest(self, items: Sequence[Item], values: Values[Item]) -> list[Item]:
        """Return the items that miss the budget by the smallest factors, the nearest first."""
        return sorted(items, key=lambda item: sum(self._excess(*values(item))))[:NEAREST]

    def _excess(self, ms: float, error: float) -> tuple[float, float]:
        """Return by which part of them time and error are above their bounds."""
        bounds = ((ms, self.ms), (error, self.error))
        over = [0.0 if bound is None else max(0.0, value / bound - 1) for value, bound in bounds]
        return (over[0], over[1])

    def __str__(self) -> str:
        parts = [] if self.ms is None else [f"{self.ms:g} ms an image"]
        parts += [] if self.error is None else [f"an error of {self.error:g}"]
        return " and ".join(parts)
