"""What may be tried: nothing twice, nothing that cannot run."""

from collections import Counter
from dataclasses import replace

import pytest

from flowturbo_trt.calibration.tune.candidates import INTERVALS, WARPS, Space, meaning, with_kinds
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.table import SolverTable

TABLE = SolverTable("own", (0, 0.4, 1), ((0.4,), (-0.1, 0.7)))


def meaning_of(space: Space, text: str) -> object:
    program = space.program(Schedule.parse(text, (TABLE,)))
    assert program is not None
    return meaning(program)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("P5", "H1P4"),
        ("AB2x2P1", "AB2x2H1"),
        ("AB3x2", "AB2x2"),
        ("AB4x1", "E1"),
        ("H1P2:guided=0..1", "H1P2"),
        ("H2@0,0.5,1", "H2"),
        ("E2AB2x1R1:guided=0..0.4", "E2AB2x1R1:guided=0..0.45"),
    ],
)
def test_schedules_that_compute_the_same_are_one(golden_space: Space, one: str, other: str) -> None:
    assert meaning_of(golden_space, one) == meaning_of(golden_space, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("AB2x3", "AB3x3"),
        ("H2@0,0.4,1", "H2"),
        ("H1R1", "H1R1:consistent"),
        ("H2:guided=0..0.5", "H2"),
        ("H1P2", "P1H2"),
    ],
)
def test_schedules_that_do_not_are_two(golden_space: Space, one: str, other: str) -> None:
    assert meaning_of(golden_space, one) != meaning_of(golden_space, other)


def test_the_start_has_every_size_and_only_what_can_run(golden_space: Space) -> None:
    found = list(golden_space.start())
    programs = [golden_space.program(schedule) for schedule in found]
    counts = Counter(len(program.times("predictor")) for program in programs if program)
    assert sorted(counts) == [2, 3, 4, 5, 6]
    assert all(program is not None for program in programs)
    texts = set(map(str, found))
    assert {"E2", "AB4x6", "H3", "H2P2", "AB2x3R2:single", "H1P4:guided=0.1..0.9"} <= texts
    assert {schedule.guided for schedule in found} == {None, *INTERVALS}
    assert len({schedule.times for schedule in found if schedule.groups == (("AB2", 5),)}) == len(WARPS)


def test_what_has_no_engines_is_left_out(tiny_space: Space) -> None:
    assert not any(schedule.guided for schedule in tiny_space.start())
    assert tiny_space.program(Schedule.parse("H2:guided=0..0.5")) is None
    alone = replace(tiny_space, refines=False)
    assert not any("R" in schedule.kinds for schedule in alone.start())
    assert "R" not in alone.kinds
    assert alone.program(Schedule.parse("H1R1")) is None


def test_what_the_engines_can_and_no_candidate_may(tiny_space: Space) -> None:
    plain = replace(tiny_space, refined=0)
    assert "R" not in plain.kinds
    assert not any("R" in schedule.kinds for schedule in plain.start())
    assert plain.program(Schedule.parse("H1R1")) is None


def test_sizes_are_bounded(tiny_space: Space) -> None:
    assert tiny_space.program(Schedule.parse("H3R2")) is not None
    assert tiny_space.program(Schedule.parse("H3P1")) is None
    assert tiny_space.program(Schedule.parse("H3R3")) is None
    assert tiny_space.program(Schedule.parse("H3@0.1,0.3,0.5,1")) is None


def test_tables_take_part_on_their_own_grid(golden_space: Space) -> None:
    manifest = replace(golden_space.manifest, tables=(TABLE,))
    tabled = [s for s in replace(golden_space, manifest=manifest).start() if s.table is not None]
    assert list(map(str, tabled)) == ["table:own", *(f"table:own:guided={a:g}..{b:g}" for a, b in INTERVALS)]


def test_kinds_become_groups_and_a_reading_goes_with_the_last_r() -> None:
    like = Schedule.parse("H1P1R2:single:guided=0..0.5")
    assert str(with_kinds(["H", "P", "P", "R"], (), like)) == "H1P2R1:single:guided=0..0.5"
    assert str(with_kinds(["H", "P"], (0, 0.4, 1), like)) == "H1P1:guided=0..0.5@0,0.4,1"
