"""Ways to the endpoint: which are compared, and how far from the truth they end."""

import numpy as np
import pytest

from flowturbo_trt.evaluation.velocity.endpoints import endings, endpoint_errors, without_refiner
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.table import SolverTable
from flowturbo_trt.tests.evaluation.velocity.fields import KnownField, RefinedField, noise


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("H1P5R3", "H1P5"),
        ("H1R1P2", "H1P2"),
        ("H2", "H2"),
        # The lengths that are left, ¼ and ¼, fill the whole time alike; so do ⅛, ½ and ⅛.
        ("H1P1R1@0,0.25,0.5,1", "H1P1@0,0.5,1"),
        ("H1P1R1P1:single@0,0.125,0.625,0.875,1", "H1P1P1@0,0.16666666666666666,0.83333333333333337,1"),
        ("H1P1R1@0.2,0.4,0.8,1", "H1P1@0.2,0.466666666666667,1"),
    ],
)
def test_leaving_r_steps_out(schedule: str, expected: str) -> None:
    found = without_refiner(Schedule.parse(schedule))
    assert found.groups == Schedule.parse(expected).groups
    np.testing.assert_allclose(found.grid, Schedule.parse(expected).grid, rtol=1e-14)
    assert found.grid[-1] == 1
    assert "R" not in found.kinds


@pytest.mark.parametrize(
    ("schedule", "refines", "names"),
    [
        ("H1P1R1", True, ["refined", "perfect", "reused", "left out"]),
        ("H1P1R1", False, ["perfect", "reused", "left out"]),
        ("H4", True, ["as is"]),
        ("H4", False, ["as is"]),
    ],
)
def test_what_is_compared(schedule: str, refines: bool, names: list[str]) -> None:
    ways = endings(Schedule.parse(schedule), refines=refines)
    assert [way.name for way in ways] == names
    assert str(ways[-1].schedule) == schedule.replace("R1", "")


def test_a_table_is_not_without_its_refined_steps() -> None:
    """Its coefficients are for all of them."""
    table = SolverTable("ours", (0, 0.4, 1), ((0.4,), (-0.2, 0.8)), refined=1)
    ways = endings(Schedule.of_table(table), refines=True)
    assert [way.name for way in ways] == ["refined", "perfect", "reused"]


def test_errors_of_every_way() -> None:
    """v = 1 + t from x: every way but reuse is exact, and reuse keeps to v(½) = 1½ for the second half."""
    start = noise()
    truth = start + 1.5
    field = RefinedField(lambda x, t: 1 + t, lambda x, v, t: 1 + t - v)
    ways = endings(Schedule.parse("H1R1:consistent"), refines=True)
    found = endpoint_errors(field, ways, start, truth)
    size = np.sqrt((truth.astype(np.float64) ** 2).sum(axis=(1, 2, 3)))
    off = np.sqrt(truth[0].size) * np.array([0, 0, 0.125, 0])[:, None] / size
    np.testing.assert_allclose(found, off, atol=1e-6)


def test_without_a_refiner_none_is_called() -> None:
    ways = endings(Schedule.parse("H1P1R1"), refines=False)
    found = endpoint_errors(KnownField(lambda x, t: 1.0), ways, noise(), noise() + 1)
    assert found.max() < 1e-6
