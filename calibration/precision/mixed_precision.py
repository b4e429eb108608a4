"""Which groups of layers stay in 8 bits: a greedy choice under a budget of error, measured at every turn."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from flowturbo_trt.calibration.endpoints import Progress
from flowturbo_trt.calibration.precision.groups import Group
from flowturbo_trt.calibration.precision.sensitivity import Sensitivity
from flowturbo_trt.calibration.precision.trials import Errors

Measure = Callable[[Collection[Group]], Errors]


@dataclass(frozen=True)
class Choice:
    """The groups that are quantised, and those put back to floating point in the order of that.

    `errors` are of the trajectory by schedule, first with everything quantised and then after each group
    that was put back. `met`: the last of them are within the budget. Where nothing is, the one group that
    comes nearest is left.
    """

    quantized: tuple[Group, ...]
    put_back: tuple[Group, ...]
    errors: tuple[Errors, ...]
    met: bool

    def describe(self) -> dict[str, Any]:
        """Return this as plain data."""
        return {
            "quantized": [group.name for group in self.quantized],
            "put_back": [group.name for group in self.put_back],
            "trajectory_errors": [dict(errors) for errors in self.errors],
            "met": self.met,
        }


def excess(errors: Errors, budgets: Errors) -> float:
    """Return the largest error over its budget: at most 1 where all are within theirs."""
    return max(errors[schedule] / budgets[schedule] for schedule in budgets)


def choose_groups(
    sensitivity: Sensitivity,
    measure: Measure,
    budgets: Errors,
    tries: int,
    progress: Progress = lambda what, done, total: None,
) -> Choice:
    """Start with all groups quantised; while over the budget, put back what buys most error per MAC.

    `measure` gives the trajectory's errors with some groups quantised; `budgets` are by schedule. Errors of
    groups alone do not add up to that of all: they only say which `tries` groups are worth trying, and what
    is put back of those is decided by what the trajectory's error falls to.
    """
    quantized, put_back = list(sensitivity.groups), list[Group]()
    found = measure(quantized)
    history = [found]
    total = len(quantized)
    while excess(found, budgets) > 1 and len(quantized) > 1:
        progress(f"{excess(found, budgets):.3g} × the budget: putting layers back", len(put_back), total)
        now = excess(found, budgets)
        trials = [
            (group, measure([other for other in quantized if other is not group]))
            for group in _promising(quantized, sensitivity, budgets)[:tries]
        ]
        group, found = max(trials, key=lambda trial: _worth(trial[0], now - excess(trial[1], budgets)))
        quantized.remove(group)
        put_back.append(group)
        history.append(found)
    met = excess(found, budgets) <= 1
    if not met:
        (nearest,) = nearest_groups(sensitivity, budgets, 1)
        quantized, put_back = [nearest], [group for group in put_back if group is not nearest]
        put_back += [g for g in sensitivity.groups if g is not nearest and g not in put_back]
        history.append(sensitivity.of(nearest))
        met = excess(history[-1], budgets) <= 1
    progress("layers chosen", total, total)
    return Choice(tuple(quantized), tuple(put_back), tuple(history), met)


def nearest_groups(sensitivity: Sensitivity, budgets: Errors, count: int = 3) -> list[Group]:
    """Return the groups that come nearest to the budget with nothing but one of them quantised."""
    return sorted(sensitivity.groups, key=lambda group: excess(sensitivity.of(group), budgets))[:count]


def _worth(group: Group, gain: float) -> float:
    """Return what it is worth to put a group back: gain by product, or the bare gain where that is a loss."""
    return gain / group.macs if gain > 0 else gain


def _promising(quantized: Collection[Group], sensitivity: Sensitivity, budgets: Errors) -> list[Group]:
    """Sort groups by what they seem to cost for each product they save, the worst first."""

    def cost(group: Group) -> float:
        # Errors of different layers are nearly independent: their squares add up.
        return excess(sensitivity.of(group), budgets) ** 2 / group.macs

    return sorted(quantized, key=cost, reverse=True)
