"""Solver tables: the methods they are, how schedules name them, and what cannot be one."""

from typing import Any

import numpy as np
import pytest

from flowturbo_trt.sampling import reference
from flowturbo_trt.sampling.program_json import from_json, to_json
from flowturbo_trt.sampling.schedule import Schedule, ScheduleError
from flowturbo_trt.sampling.steps import multistep_weights
from flowturbo_trt.sampling.table import SolverTable, TableError
from flowturbo_trt.sampling.trace import trace

TABLE = SolverTable("ours", (0, 0.2, 0.5, 1), ((0.2,), (-0.1, 0.4), (0.05, -0.3, 0.75)))
REFINED = SolverTable("refined", TABLE.times, TABLE.weights, refined=1)


class Linear:
    """v = a·x + t, and an offset that tells all it was given."""

    def predict(self, x: Any, t: float) -> Any:
        return 0.5 * x + t

    def refine(self, x: Any, v: Any, t: float) -> Any:
        return 0.1 * x - 0.2 * v + t


def adams_bashforth_table(order: int, times: tuple[float, ...]) -> SolverTable:
    rows = []
    for i in range(len(times) - 1):
        nodes = list(times[max(0, i + 1 - order) : i + 1])
        zeros = [0.0] * (i + 1 - len(nodes))
        rows.append((*zeros, *multistep_weights(nodes, times[i], times[i + 1])))
    return SolverTable(f"ab{order}", times, tuple(rows))


def end(schedule: Schedule, x: Any) -> Any:
    *_, (state, _) = reference.sample(schedule, Linear(), x)
    return state


@pytest.mark.parametrize("order", [2, 3, 4])
def test_adams_bashforth_is_a_table(order: int) -> None:
    """On any grid, to the order in which terms are added."""
    times = (0, 0.1, 0.25, 0.5, 0.7, 1)
    x = np.linspace(-1, 2, 5)
    grid = ",".join(map(str, times))
    expected = end(Schedule.parse(f"AB{order}x5@{grid}"), x)
    found = end(Schedule.of_table(adams_bashforth_table(order, times)), x)
    np.testing.assert_allclose(found, expected, rtol=1e-14)


@pytest.mark.parametrize("table", [TABLE, REFINED])
def test_steps_written_out(table: SolverTable) -> None:
    field, x = Linear(), np.array([1.0, -0.3])
    v0 = field.predict(x, 0.0)
    x1 = x + 0.2 * v0
    v1 = field.predict(x1, 0.2)
    x2 = x1 - 0.1 * v0 + 0.4 * v1
    v2 = field.refine(x2, v1, 0.5) + v1 if table.refined else field.predict(x2, 0.5)
    expected = x2 + 0.05 * v0 - 0.3 * v1 + 0.75 * v2
    np.testing.assert_allclose(end(Schedule.of_table(table), x), expected, rtol=1e-14)


@pytest.mark.parametrize("table", [TABLE, REFINED])
@pytest.mark.parametrize("guided", [None, (0.3, 1.0)])
def test_program_is_the_formulas(table: SolverTable, guided: tuple[float, float] | None) -> None:
    """Bit for bit, from its JSON too; every coefficient of the table is in it."""
    schedule = Schedule.of_table(table, guided)
    program = trace(schedule, "guided")
    assert from_json(to_json(program)) == program
    assert {weight for row in table.weights for weight in row} <= set(program.coefficients())
    assert program.span == (0, 1)
    x = np.random.default_rng(0).normal(size=(2, 3, 2, 2)).astype(np.float32)
    fields: dict[str, Any] = {"guided": Linear(), "unguided": Linear()}
    *_, (found, _) = reference.run(program, fields, x)
    np.testing.assert_array_equal(found, end(schedule, x))
    if guided and not table.refined:
        assert program.evaluations() == {("predictor", "unguided"): 2, ("predictor", "guided"): 1}


def test_schedule_of_a_table() -> None:
    schedule = Schedule.parse("table:refined", [TABLE, REFINED])
    assert schedule == Schedule.of_table(REFINED)
    assert schedule.kinds == ("T", "T", "R")
    assert schedule.steps[1] == ("T", 0.2, 0.5)
    assert schedule.evaluations() == {"predictor": 2, "refiner": 1}
    assert str(schedule) == "table:refined"
    guided = Schedule.parse("table:ours:guided=0.1..0.8", [TABLE])
    assert (guided.guided, guided.table) == ((0.1, 0.8), TABLE)
    assert str(guided) == "table:ours:guided=0.1..0.8"
    assert Schedule.parse(str(guided), [TABLE]) == guided


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("table:other", r"table:other: there is no such table here \(there are: ours\)"),
        ("table:", "is no schedule"),
        ("table:ours:single", "is no schedule"),
        ("table:ours@0,0.5,1", "a table has its own times; leave out @0,0.5,1"),
        ("T3", "unknown step 'T'"),
        ("H1:table=ours", "is no schedule"),
    ],
)
def test_texts_that_are_none(text: str, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        Schedule.parse(text, [TABLE])


def test_steps_that_are_not_the_tables() -> None:
    with pytest.raises(ScheduleError, match="has steps or times that are not its table's"):
        Schedule((("H", 3),), table=TABLE)
    with pytest.raises(ScheduleError, match="has steps or times that are not its table's"):
        Schedule((("T", 3),), table=TABLE)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "a b"}, "table 'a b': expected a name"),
        ({"name": ""}, "expected a name"),
        ({"weights": ()}, "row i has i \\+ 1 weights, expected at least one row"),
        ({"weights": ((1.0,), (1.0,))}, "row i has i \\+ 1 weights"),
        ({"weights": ((0.2,), (-0.1, 0.4), (0.05, float("nan"), 0.75))}, "not finite"),
        ({"times": (0, 0.5, 1)}, "has 3 steps and 3 times"),
        ({"times": (0, 0.5, 0.5, 1)}, "times must increase within 0 to 1"),
        ({"times": (0, 0.5, 0.9, 1.1)}, "times must increase within 0 to 1"),
        ({"refined": 3}, "3 of 3 steps are refined, expected fewer"),
        ({"refined": -1}, "-1 of 3 steps are refined"),
    ],
)
def test_what_is_no_table(fields: dict[str, Any], message: str) -> None:
    given = {"name": "ours", "times": TABLE.times, "weights": TABLE.weights}
    with pytest.raises(TableError, match=message):
        SolverTable(**(given | fields))
