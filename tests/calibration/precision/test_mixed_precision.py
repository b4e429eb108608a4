"""The greedy choice, on errors that are known."""

from collections.abc import Collection

import numpy as np
import pytest

from flowturbo_trt.calibration.precision.groups import Group
from flowturbo_trt.calibration.precision.mixed_precision import choose_groups, excess, nearest_groups
from flowturbo_trt.calibration.precision.sensitivity import Sensitivity
from flowturbo_trt.calibration.precision.trials import Errors


class Model:
    """Groups whose squared errors add up, and a count of what was measured."""

    def __init__(self, **groups: tuple[float, float]) -> None:
        self.groups = tuple(Group(name, "predictor", {}, macs) for name, (_, macs) in groups.items())
        self.errors = {name: error for name, (error, _) in groups.items()}
        self.measured: list[tuple[str, ...]] = []

    def measure(self, quantized: Collection[Group]) -> Errors:
        self.measured.append(tuple(group.name for group in quantized))
        return {"H1": float(np.sqrt(sum(self.errors[group.name] ** 2 for group in quantized)))}

    @property
    def sensitivity(self) -> Sensitivity:
        alone = np.array([[self.errors[group.name]] for group in self.groups])
        return Sensitivity(self.groups, (), ("H1",), np.empty((len(alone), 0)), alone)


def names(groups: Collection[Group]) -> list[str]:
    return [group.name for group in groups]


def test_everything_within_the_budget() -> None:
    model = Model(a=(3, 1), b=(4, 1))
    choice = choose_groups(model.sensitivity, model.measure, {"H1": 5.0}, 3)
    assert choice.met
    assert (names(choice.quantized), choice.put_back) == (["a", "b"], ())
    assert choice.errors == ({"H1": 5.0},)
    assert model.measured == [("a", "b")]


def test_most_error_for_the_least_work() -> None:
    """Of two that would each do, the one that saves less is put back, though its error is smaller."""
    model = Model(large=(4, 10), small=(3.9, 1), tiny=(0.1, 1))
    choice = choose_groups(model.sensitivity, model.measure, {"H1": 4.2}, 3)
    assert names(choice.put_back) == ["small"]
    assert names(choice.quantized) == ["large", "tiny"]
    assert choice.met
    assert [round(errors["H1"], 3) for errors in choice.errors] == [5.587, 4.001]


def test_what_is_measured_decides() -> None:
    """Groups alone are innocent, together they are not: the trial tells, no sum of errors does."""

    def measure(quantized: Collection[Group]) -> Errors:
        held = set(names(quantized))
        return {"H1": 10.0 if {"b", "c"} <= held else 1.0}

    model = Model(a=(3, 1), b=(2, 1), c=(1, 1))
    choice = choose_groups(model.sensitivity, measure, {"H1": 2.0}, 3)
    assert names(choice.put_back) in (["b"], ["c"])
    assert choice.met


def test_so_many_tries() -> None:
    """In every round the most promising ones alone are tried."""
    model = Model(a=(5, 1), b=(4, 1), c=(3, 1), d=(2, 1))
    choice = choose_groups(model.sensitivity, model.measure, {"H1": 4.0}, 2)
    assert names(choice.put_back) == ["a", "b"]
    assert model.measured == [
        ("a", "b", "c", "d"),
        ("b", "c", "d"),
        ("a", "c", "d"),
        ("c", "d"),
        ("b", "d"),
    ]


def test_the_worst_schedule_counts() -> None:
    def measure(quantized: Collection[Group]) -> Errors:
        return {"H1": 1.0, "H8": 0.1 * len(quantized)}

    model = Model(a=(3, 1), b=(2, 1))
    sensitivity = Sensitivity(
        model.groups, (), ("H1", "H8"), np.empty((2, 0)), np.array([[0.1, 0.1], [0.1, 0.2]])
    )
    choice = choose_groups(sensitivity, measure, {"H1": 2.0, "H8": 0.15}, 3)
    assert names(choice.put_back) == ["b"]
    assert excess(choice.errors[0], {"H1": 2.0, "H8": 0.15}) == pytest.approx(0.2 / 0.15)


def test_nothing_meets_the_budget() -> None:
    """The nearest is left, alone, and whoever asks is told which others come next."""
    model = Model(a=(5, 100), b=(4, 1), c=(3, 1), d=(6, 1))
    choice = choose_groups(model.sensitivity, model.measure, {"H1": 1.0}, 3)
    assert not choice.met
    assert names(choice.quantized) == ["c"]
    assert sorted(names(choice.put_back)) == ["a", "b", "d"]
    assert choice.errors[-1] == {"H1": 3.0}
    assert names(nearest_groups(model.sensitivity, {"H1": 1.0})) == ["c", "b", "a"]
    assert choice.describe()["met"] is False


def test_one_group_alone_may_do() -> None:
    """The last one that is left is not the best: another one alone is within the budget."""
    model = Model(cheap=(2, 1000), good=(0.5, 0.001))
    choice = choose_groups(model.sensitivity, model.measure, {"H1": 1.0}, 1)
    assert choice.met
    assert names(choice.quantized) == ["good"]
    assert names(choice.put_back) == ["cheap"]


def test_of_losses_the_least_is_taken() -> None:
    """Where no trial helps, a large layer's harm is not the smaller for its size."""
    harm = {"large": 9.0, "small": 5.1}

    def measure(quantized: Collection[Group]) -> Errors:
        left = set(harm) - set(names(quantized))
        return {"H1": max([5.0, *(harm[name] for name in left)])}

    model = Model(large=(100, 1000), small=(4, 1), other=(0.1, 1))
    choice = choose_groups(model.sensitivity, measure, {"H1": 2.0}, 2)
    assert choice.errors[1] == {"H1": 5.1}
