"""Schedules: reading, writing, counting and rejecting."""

import json
from itertools import pairwise

import numpy as np
import pytest

from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.sampling.schedule import Schedule, ScheduleError
from flowturbo_trt.sampling.trace import trace

TEXTS = [
    "H1P5R3",
    "H1P0R2",
    "H8",
    "E25",
    "P4",
    "AB2x8",
    "AB3x5",
    "AB4x16",
    "H1R1P2R1",
    "H2AB4x3E1",
    "AB2x1H1",
    "H1P1R2:single",
    "H1P1R2:consistent",
    "H1P2R1@0,0.1,0.3,0.75,1",
    "H1R1:single@0,0.333333333333,1",
    "E2@0.25,0.5,0.9",
    "H1P5R3:guided=0.1..0.8",
    "H8:guided=0..1",
    "AB2x8:guided=0.5..0.5",
    "H1P1R2:single:guided=0.333333333333..1",
    "H1P1R2:consistent:guided=1e-05..0.25@0,0.1,0.3,0.75,1",
    "E2:guided=0..0@0.25,0.5,0.9",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_given_back(text: str) -> None:
    schedule = Schedule.parse(text)
    assert str(schedule) == text
    assert Schedule.parse(str(schedule)) == schedule


def test_any_float64_time_survives_the_text() -> None:
    random = np.random.default_rng(0)
    for scale in (1.0, 1e-3, 1e-9):
        times = tuple(sorted((random.random(6) * scale).tolist()))
        low, high = sorted((random.random(2) * scale).tolist())
        schedule = Schedule((("E", 5),), times, guided=(low, high))
        assert Schedule.parse(str(schedule)).times == times
        assert Schedule.parse(str(schedule)).guided == (low, high)


def test_kinds_and_uniform_grid() -> None:
    schedule = Schedule.parse("H1P0R2P1")
    assert schedule.kinds == ("H", "R", "R", "P")
    np.testing.assert_array_equal(schedule.grid, [0, 0.25, 0.5, 0.75, 1])
    assert schedule.steps == (("H", 0, 0.25), ("R", 0.25, 0.5), ("R", 0.5, 0.75), ("P", 0.75, 1))
    assert schedule.reading == "reference"
    assert Schedule.parse("AB2x2E1").kinds == ("AB2", "AB2", "E")


@pytest.mark.parametrize("n", [1, 3, 7, 9, 25, 49])
def test_uniform_grid_is_strictly_from_0_to_1(n: int) -> None:
    grid = Schedule.parse(f"E{n}").grid
    assert (grid[0], grid[-1]) == (0.0, 1.0)
    assert all(t < s for t, s in pairwise(grid))


def test_custom_grid_and_reading() -> None:
    schedule = Schedule.parse("H1P2R1:single@0,0.1,0.3,0.75,1")
    assert schedule.grid == (0, 0.1, 0.3, 0.75, 1)
    assert schedule.reading == "single"
    assert trace(Schedule.parse("E2@0.25,0.5,0.9"), "guided").span == (0.25, 0.9)


def test_guidance_interval() -> None:
    """Both ends belong to it; without one, a request with guidance is guided all the time."""
    schedule = Schedule.parse("H1P1R2:single:guided=0.25..0.8@0,0.1,0.3,0.75,1")
    assert schedule.guided == (0.25, 0.8)
    assert (schedule.reading, schedule.times) == ("single", (0, 0.1, 0.3, 0.75, 1))
    times = (0.0, 0.2499, 0.25, 0.5, 0.8, 0.8001, 1.0)
    assert [schedule.is_guided_at(t) for t in times] == [False, False, True, True, True, False, False]
    assert Schedule.parse("H1").guided is None
    assert all(Schedule.parse("H1").is_guided_at(t) for t in times)
    # The evaluations are the same, whatever their variant.
    assert schedule.evaluations() == Schedule.parse("H1P1R2:single").evaluations()


@pytest.mark.parametrize("texts", [("0...5", "0..0.5"), ("0.0...5", "0..0.5"), ("1e-1..8E-1", "0.1..0.8")])
def test_interval_is_written_in_one_way(texts: tuple[str, str]) -> None:
    given, written = texts
    assert str(Schedule.parse(f"H1:guided={given}")) == f"H1:guided={written}"


@pytest.mark.parametrize(
    ("text", "predictor", "refiner"),
    [
        ("H1P5R3", 7, 6),
        ("H8P9R5", 25, 10),
        ("H1P0R2", 2, 4),
        ("H8", 16, 0),
        ("E25", 25, 0),
        ("P4", 5, 0),
        ("AB2x8", 8, 0),
        ("AB4x16", 16, 0),
        ("H1R1P2R1", 5, 4),
        ("H1P5R3:consistent", 7, 6),
        ("H1P5R3:single", 7, 3),
    ],
)
def test_evaluation_counts(text: str, predictor: int, refiner: int) -> None:
    schedule = Schedule.parse(text)
    counts = schedule.evaluations()
    assert (counts["predictor"], counts["refiner"]) == (predictor, refiner)
    traced = trace(schedule, "unguided").evaluations()
    assert traced["predictor", "unguided"] == predictor
    assert traced["refiner", "unguided"] == refiner
    assert traced.total() == predictor + refiner


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("R3", r"^R3: starts with R.*put H or P first", id="starts with R"),
        pytest.param("H0R2", r"^H0R2: starts with R", id="starts with R after an empty group"),
        pytest.param("H0P0R0", r"^H0P0R0: has no steps", id="zero steps"),
        pytest.param("H2@0,1", r"has 2 steps and 2 times; expected 3 times", id="too few times"),
        pytest.param("H2@0,0.2,0.5,1", r"2 steps and 4 times; expected 3", id="too many times"),
        pytest.param("H2@0,0.5,0.5", r"times must increase within 0 to 1", id="times not increasing"),
        pytest.param("H2@0,0.7,0.5", r"times must increase within 0 to 1", id="times decreasing"),
        pytest.param("H1@-0.1,1", r"times must increase within 0 to 1", id="time below 0"),
        pytest.param("H1@0,1.5", r"times must increase within 0 to 1", id="time above 1"),
        pytest.param("H1@0,nan", r"times must increase within 0 to 1", id="time not a number"),
        pytest.param("H1@0,inf", r"times must increase within 0 to 1", id="time infinite"),
        pytest.param("H1@0,one", r"^'H1@0,one': a count or time is not a number", id="time in words"),
        pytest.param("H1@0,,1", r"a count or time is not a number", id="time empty"),
        pytest.param("H1R1:fast", r"unknown refiner reading 'fast'.*reference, consistent", id="reading"),
        pytest.param("Heun8", r"^'Heun8' is no schedule; expected groups of a step .E, H, P", id="garbage"),
        pytest.param("", r"^'' is no schedule", id="empty"),
        pytest.param("H", r"is no schedule", id="no count"),
        pytest.param("H-1", r"is no schedule", id="negative count"),
        pytest.param("H1.5", r"is no schedule", id="fractional count"),
        pytest.param("h1p5r3", r"is no schedule", id="lower case"),
        pytest.param("H1 P5", r"is no schedule", id="space"),
        pytest.param("H1\n", r"is no schedule", id="newline"),
        pytest.param("AB5x8", r"unknown step 'AB5'; known are E, H, P, AB2, AB3, AB4, R", id="unknown order"),
        pytest.param("AB28", r"is no schedule", id="multistep without x"),
        pytest.param("Hx8", r"is no schedule", id="x after one letter"),
        pytest.param("H1@", r"is no schedule", id="no times after @"),
        pytest.param("H1:", r"is no schedule", id="no reading after :"),
        pytest.param("H1@0,1:single", r"a count or time is not a number", id="reading after the times"),
        pytest.param("H1:guided=0.8..0.1", r"guided from 0.8 to 0.1; expected 0 ≤ LOW ≤ HIGH ≤ 1", id="ends"),
        pytest.param("H1:guided=-0.1..1", r"guided from -0.1 to 1.0; expected 0 ≤ LOW", id="guided below 0"),
        pytest.param("H1:guided=0..1.1", r"guided from 0.0 to 1.1; expected 0 ≤ LOW", id="guided above 1"),
        pytest.param("H1:guided=nan..1", r"guided from nan to 1.0; expected 0 ≤ LOW", id="guided from nan"),
        pytest.param("H1:guided=0..nan", r"guided from 0.0 to nan; expected 0 ≤ LOW", id="guided to nan"),
        pytest.param("H1:guided=a..b", r"^'H1:guided=a..b': a count or time is not a number", id="words"),
        pytest.param("H1:guided=0.1..0.2..0.3", r"a count or time is not a number", id="three ends"),
        pytest.param("H1:guided=0.1", r"is no schedule; .*:guided=LOW..HIGH", id="one end"),
        pytest.param("H1:guided=..1", r"is no schedule", id="no lower end"),
        pytest.param("H1:guided=0..", r"is no schedule", id="no upper end"),
        pytest.param("H1:guided=0..1\n", r"is no schedule", id="newline after the interval"),
        pytest.param("H1:guided= 0..1", r"is no schedule", id="space in the interval"),
        pytest.param("H1:guided", r"unknown refiner reading 'guided'", id="guided without interval"),
        pytest.param("H1:guided=0..1:single", r"is no schedule", id="reading after the interval"),
        pytest.param("H1:guided=0..1:guided=0..1", r"is no schedule", id="two intervals"),
        pytest.param("H1@0,1:guided=0..1", r"a count or time is not a number", id="interval after the times"),
    ],
)
def test_rejects(text: str, message: str) -> None:
    with pytest.raises(ScheduleError, match=message) as caught:
        Schedule.parse(text)
    assert isinstance(caught.value, FlowTurboError)


def test_constructor_checks_as_the_text_does() -> None:
    with pytest.raises(ScheduleError, match="starts with R"):
        Schedule((("R", 1),))
    with pytest.raises(ScheduleError, match="has no steps"):
        Schedule(())
    with pytest.raises(ScheduleError, match="unknown refiner reading"):
        Schedule((("H", 1),), reading="other")
    with pytest.raises(ScheduleError, match=r"H1:guided=0\.5\.\.2: guided from 0\.5 to 2; expected"):
        Schedule((("H", 1),), guided=(0.5, 2))


def test_times_survive_json() -> None:
    """A manifest holds the text inside JSON."""
    schedule = Schedule((("E", 2),), (0.1, 1 / 3, 2 / 3))
    assert Schedule.parse(json.loads(json.dumps(str(schedule)))) == schedule
