"""Tracing: the program computes what the formulas compute, bit for bit."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from flowturbo_trt.sampling.program import Combine, Evaluate, Program
from flowturbo_trt.sampling.reference import run, sample
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.steps import Field
from flowturbo_trt.sampling.trace import trace

Array = NDArray[np.float32]
FieldOf = Callable[[str], Field]


@pytest.mark.parametrize("variant", ["guided", "unguided"])
def test_running_the_program_equals_calling_the_formulas(
    schedules: list[Schedule], variant: str, field_of: FieldOf, noise: Array
) -> None:
    for schedule in schedules:
        called = list(sample(schedule, field_of(variant), noise[:, None]))
        traced = list(run(trace(schedule, variant), {variant: field_of(variant)}, noise))
        assert len(called) == len(traced) == len(schedule.kinds)
        for (x_called, v_called), (x, v) in zip(called, traced, strict=True):
            assert x.dtype == v.dtype == np.float32
            assert x.shape == noise.shape
            np.testing.assert_array_equal(x, x_called[:, 0], err_msg=str(schedule))
            np.testing.assert_array_equal(v, v_called, err_msg=str(schedule))


def test_the_fields_halves_and_steps_matter(field_of: FieldOf, noise: Array) -> None:
    """The test above could not fail if the halves, or the step kinds, gave the same numbers."""
    ends = {}
    for text in ("E4", "H4", "P4", "H1R3", "H1R3:consistent", "H1R3:single", "AB2x4", "AB3x4", "AB4x4"):
        *_, (x, v) = run(trace(Schedule.parse(text), "guided"), {"guided": field_of("guided")}, noise)
        assert np.abs(v[:, 0] - v[:, 1]).max() > 1e-2
        ends[text] = x
    states = list(ends.values())
    for i, state in enumerate(states):
        assert all(np.abs(state - other).max() > 1e-4 for other in states[:i])


def test_program_reads_the_conditional_half_only(field_of: FieldOf, noise: Array) -> None:
    """Without a refiner, which reads both halves, guidance halves stay apart."""
    schedule = Schedule.parse("H2P2AB2x2")
    *_, (guided, _) = run(trace(schedule, "guided"), {"guided": field_of("guided")}, noise)
    *_, (unguided, _) = run(trace(schedule, "unguided"), {"unguided": field_of("unguided")}, noise)
    np.testing.assert_array_equal(guided, unguided)


def test_heun_as_a_program() -> None:
    program = trace(Schedule.parse("H1@0.25,0.75"), "unguided")
    assert program.instructions == (
        Evaluate("predictor", "unguided", state=0, velocity=None, time=0.25, out=1),
        Combine(out=2, terms=((1.0, 0), (0.5, 1))),
        Evaluate("predictor", "unguided", state=2, velocity=None, time=0.75, out=3),
        Combine(out=4, terms=((1.0, 0), (0.25, 1), (0.25, 3))),
    )
    assert [str(register) for register in program.registers] == [
        "state",
        "velocity:unguided",
        "state",
        "velocity:unguided",
        "state",
    ]
    assert (program.inputs, program.output, program.span) == ({"noise": 0}, 4, (0.25, 0.75))
    (mark,) = program.steps
    assert (mark.kind, mark.t, mark.s, mark.end) == ("H", 0.25, 0.75, 4)
    assert (mark.state, mark.velocity) == (4, 3)


def test_steps_of_a_program_name_kinds_and_times() -> None:
    schedule = Schedule.parse("H1P2R1@0,0.1,0.3,0.75,1")
    program = trace(schedule, "guided")
    assert tuple((mark.kind, mark.t, mark.s) for mark in program.steps) == schedule.steps
    split = list(program.per_step())
    assert [mark for mark, _ in split] == list(program.steps)
    assert tuple(i for _, instructions in split for i in instructions) == program.instructions
    assert [sum(isinstance(i, Evaluate) for i in instructions) for _, instructions in split] == [2, 1, 1, 2]


def shape(text: str, variant: str = "guided") -> tuple[object, ...]:
    return trace(Schedule.parse(text), variant).shape


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("H1P2R1", "H1P2R1@0,0.1,0.3,0.75,1"),
        ("AB4x5", "AB4x5@0,0.2,0.3,0.75,0.8,1"),
        ("E2@0.25,0.5,0.9", "E2"),
    ],
)
def test_other_times_keep_the_shape(one: str, other: str) -> None:
    assert Schedule.parse(one) != Schedule.parse(other)
    assert shape(one) == shape(other)
    assert hash(shape(one)) == hash(shape(other))


def test_other_steps_readings_or_variants_change_the_shape() -> None:
    texts = ["H2", "H3", "P2", "E2", "E4", "AB2x2", "AB2x4", "AB3x4", "H1P2", "H1R1", "H1R2"]
    texts += ["H1R1:single", "H1R1:consistent"]
    # With fewer than two earlier velocities AB3 is AB2, and P without one is H: rightly the same programs.
    assert shape("AB3x2") == shape("AB2x2")
    assert shape("P2") == shape("H1P1")
    shapes = [shape(text) for text in texts] + [shape("H2", "unguided")]
    assert len(set(shapes)) == len(shapes)


def test_times_and_coefficients() -> None:
    """In the order of the instructions, repeated times included."""
    program = trace(Schedule.parse("H1P1R1:single@0,0.25,0.75,1"), "guided")
    assert program.times() == (0, 0.25, 0.75, 0.75)
    assert (program.times("predictor"), program.times("refiner")) == ((0, 0.25, 0.75), (0.75,))
    # H: x + h·d0, then x + h/2·d0 + h/2·d1; P the same; R: r + v, then x + h·d0.
    expected = (1, 0.25, 1, 0.125, 0.125, 1, 0.5, 1, 0.25, 0.25, 1, 1, 1, 0.25)
    assert program.coefficients() == expected


def test_time_slots_number_different_times() -> None:
    program = trace(Schedule.parse("H2P1R2"), "guided")
    assert program.times("predictor") == (0, 0.2, 0.2, 0.4, 0.6)
    assert program.time_slots("predictor") == (0, 1, 1, 2, 3)
    assert program.times("refiner") == (0.6, 0.8, 0.8, 1)
    # Numbered for each network by itself.
    assert program.time_slots("refiner") == (0, 1, 1, 2)
    assert trace(Schedule.parse("E3"), "guided").time_slots("refiner") == ()


def test_which_times_are_equal_is_part_of_the_shape() -> None:
    """What depends on the time alone is computed once for equal times, so buffers differ."""
    program = trace(Schedule.parse("H2"), "guided")
    assert program.time_slots("predictor") == (0, 1, 1, 2)
    evaluations = [n for n, i in enumerate(program.instructions) if isinstance(i, Evaluate)]
    moved = list(program.instructions)
    third = moved[evaluations[2]]
    assert isinstance(third, Evaluate)
    moved[evaluations[2]] = replace(third, time=0.75)
    other = replace(program, instructions=tuple(moved))
    assert other.time_slots("predictor") == (0, 1, 2, 3)
    assert other.shape != program.shape
    # All numbers changed, with the same times equal: the same shape.
    assert trace(Schedule.parse("H2@0,0.1,1"), "guided").shape == program.shape


def rounding_order(program: Program) -> list[tuple[int, ...]]:
    return [i.reads for i in program.instructions if isinstance(i, Combine)]


def test_refiner_adds_the_earlier_velocity_on_the_right() -> None:
    """d0 = r + v is a velocity of its own, and is summed in the written order."""
    program = trace(Schedule.parse("E1R1:single"), "guided")
    assert rounding_order(program) == [(0, 1), (3, 1), (2, 4)]
    assert str(program.registers[4]) == "velocity:guided"
