"""Local moves: everything is within reach, nothing outside of the space."""

from dataclasses import replace
from itertools import islice

import numpy as np

from flowturbo_trt.calibration.tune.candidates import LEAST_GUIDED, Space
from flowturbo_trt.calibration.tune.moves import neighbours
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.table import SolverTable


def around(text: str, space: Space, *, count: int = 400, reach: float = 1.0, seed: int = 0) -> list[Schedule]:
    random = np.random.default_rng(seed)
    return list(islice(neighbours(Schedule.parse(text), space, random, reach), count))


def test_a_seed_decides(golden_space: Space) -> None:
    assert around("H1P2R1", golden_space) == around("H1P2R1", golden_space)
    assert around("H1P2R1", golden_space) != around("H1P2R1", golden_space, seed=1)


def test_every_part_of_a_schedule_moves(golden_space: Space) -> None:
    found = around("H1P2R1:single:guided=0.1..0.9@0,0.2,0.5,0.7,1", golden_space)
    like = Schedule.parse("H1P2R1:single:guided=0.1..0.9@0,0.2,0.5,0.7,1")
    assert like not in found
    assert {len(schedule.kinds) for schedule in found} == {3, 4, 5}
    assert {kind for schedule in found for kind in schedule.kinds} == set(golden_space.kinds)
    assert {schedule.reading for schedule in found} >= set(golden_space.readings)
    assert any(schedule.guided != like.guided for schedule in found)
    moved = [s for s in found if s.kinds == like.kinds and s.times != like.times]
    # One time alone, and all of them.
    changed = {sum(a != b for a, b in zip(s.grid, like.grid, strict=True)) for s in moved}
    assert {1, 3} <= changed


def test_a_move_is_one_move(golden_space: Space) -> None:
    like = Schedule.parse("AB2x3R1")
    for schedule in around("AB2x3R1", golden_space):
        parts = (schedule.kinds != like.kinds, schedule.times != like.times, schedule.guided is not None)
        assert sum(parts) <= 1 or len(schedule.kinds) != len(like.kinds)


def test_less_reach_moves_less(tiny_space: Space) -> None:
    def farthest(reach: float) -> float:
        found = [s for s in around("AB2x4", tiny_space, reach=reach) if s.kinds == ("AB2",) * 4]
        return max(float(np.abs(np.subtract(s.grid, (0, 0.25, 0.5, 0.75, 1))).max()) for s in found)

    assert farthest(0.2) < farthest(1.0) / 2


def test_nothing_without_engines(tiny_space: Space) -> None:
    found = around("AB2x4", replace(tiny_space, refines=False))
    assert not any("R" in schedule.kinds or schedule.guided for schedule in found)


def test_intervals_stay_wide_and_within_the_span(golden_space: Space) -> None:
    found = {schedule.guided for schedule in around("H2:guided=0..0.35", golden_space)} - {None}
    assert len(found) > 4
    assert all(0 <= low < high <= 1 and high - low >= LEAST_GUIDED for low, high in filter(None, found))
    # The whole span is no interval.
    assert None in {schedule.guided for schedule in around("H2:guided=0..0.9", golden_space)}


def test_a_table_keeps_its_grid(tiny_space: Space, golden_space: Space) -> None:
    tabled = Schedule.of_table(SolverTable("own", (0, 0.4, 1), ((0.4,), (-0.1, 0.7))))
    random = np.random.default_rng(0)
    assert list(neighbours(tabled, tiny_space, random, 1.0)) == []
    found = list(islice(neighbours(tabled, golden_space, random, 1.0), 20))
    assert all(s.table == tabled.table and s.guided is not None for s in found)
