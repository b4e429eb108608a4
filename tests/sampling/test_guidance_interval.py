"""Guidance intervals: which evaluations are guided, and that programs that mix variants compute it."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from flowturbo_trt.sampling.program import Combine, Evaluate, Program
from flowturbo_trt.sampling.program_json import from_json, to_json
from flowturbo_trt.sampling.reference import ScheduledField, run, sample
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.steps import Field
from flowturbo_trt.sampling.trace import trace

Array = NDArray[np.float32]
Fields = dict[str, Field]


def guided(text: str) -> Program:
    return trace(Schedule.parse(text), "guided")


def variants(program: Program) -> str:
    """Write guided and unguided evaluations as G and u, of a refiner as R and r."""
    letters = {
        ("predictor", "guided"): "G",
        ("predictor", "unguided"): "u",
        ("refiner", "guided"): "R",
        ("refiner", "unguided"): "r",
    }
    return "".join(letters[i.network, i.variant] for i in program.instructions if isinstance(i, Evaluate))


def test_running_the_program_equals_calling_the_formulas(
    interval_schedules: list[Schedule], fields: Fields, noise: Array
) -> None:
    """Bit for bit, in every state and in the halves that are there of every velocity passed on."""
    mixed = 0
    for schedule in interval_schedules:
        program = trace(schedule, "guided")
        called = list(sample(schedule, ScheduledField(schedule, fields), noise[:, None]))
        traced = list(run(program, fields, noise))
        assert len(called) == len(traced) == len(schedule.kinds)
        for (x_called, v_called), (x, v) in zip(called, traced, strict=True):
            assert x.dtype == v.dtype == np.float32
            np.testing.assert_array_equal(x, x_called[:, 0], err_msg=str(schedule))
            np.testing.assert_array_equal(v, v_called, err_msg=str(schedule))
        mixed += len({variant for _, variant in program.evaluations()}) == 2
    assert mixed > 40


def test_the_interval_changes_the_result(fields: Fields, noise: Array) -> None:
    """The test above could not fail if guided and unguided evaluations gave the same numbers."""
    texts = ["H4", "H4:guided=0..0.3", "H4:guided=0.5..0.75", "H4:guided=1..1", "H4:guided=0.1..0.2"]
    ends = []
    for text in texts:
        *_, (x, _) = run(guided(text), fields, noise)
        ends.append(x)
    for i, end in enumerate(ends):
        assert all(np.abs(end - other).max() > 1e-3 for other in ends[:i])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Times 0, .25, .25, .5, .5, .75, .75, 1; both borders belong to the interval.
        ("H4:guided=0.25..0.5", "uGGGGuuu"),
        ("H4:guided=0.3..0.7", "uuuGGuuu"),
        ("H4:guided=0..0", "Guuuuuuu"),
        ("H4:guided=1..1", "uuuuuuuG"),
        # A pseudo-corrector takes over the velocity of the other variant, and evaluates one.
        ("H1P3:guided=0..0.25", "GGuuu"),
        ("H1P3:guided=0.5..1", "uuGGG"),
        # A refiner is of the variant of the velocity it refines, wherever its own times lie.
        ("H1P1R2:guided=0..0.5", "GGGRRRR"),
        ("H1P1R2:guided=0..0.3", "GGurrrr"),
        ("H1P1R2:guided=0.75..1", "uuurrrr"),
        ("H1P1R2:single:guided=0.5..0.5", "uuGRR"),
        ("H1R1P1R1:guided=0..0.4@0,0.3,0.5,0.6,1", "GGRRuurr"),
        ("AB3x5:guided=0.3..0.7", "uuGGu"),
        ("E4:guided=0.3..0.4", "uuuu"),
    ],
)
def test_which_evaluations_are_guided(text: str, expected: str) -> None:
    assert variants(guided(text)) == expected


def test_fewer_guided_evaluations() -> None:
    plain, interval = guided("H1P5R3").evaluations(), guided("H1P5R3:guided=0.1..0.4").evaluations()
    assert plain == {("predictor", "guided"): 7, ("refiner", "guided"): 6}
    # Of 0, 1/9, …, 6/9 three lie inside; the velocity that the refiner starts from lies outside.
    assert interval == {
        ("predictor", "guided"): 3,
        ("predictor", "unguided"): 4,
        ("refiner", "unguided"): 6,
    }


def test_interval_of_all_times_or_none(interval_schedules: list[Schedule]) -> None:
    for text in ("H1P2R1", "AB3x4", "E2@0.25,0.5,0.9"):
        schedule = Schedule.parse(text)
        assert trace(replace(schedule, guided=(0, 1)), "guided") == trace(schedule, "guided")
        assert trace(replace(schedule, guided=(0.99, 0.99)), "guided") == trace(schedule, "unguided")
    for schedule in interval_schedules:
        assert trace(schedule, "unguided") == trace(replace(schedule, guided=None), "unguided")


def test_pseudo_corrector_across_the_border() -> None:
    """d0 is the guided velocity of the step before, d1 an unguided one: the sum takes one half of each."""
    program = guided("H1P1:guided=0..0.5")
    *_, euler, evaluation, heun = program.instructions
    assert euler == Combine(out=5, terms=((1.0, 4), (0.5, 3)))
    assert evaluation == Evaluate("predictor", "unguided", state=5, velocity=None, time=1.0, out=6)
    assert heun == Combine(out=7, terms=((1.0, 4), (0.25, 3), (0.25, 6)))
    assert [str(program.registers[r]) for r in (3, 6)] == ["velocity:guided", "velocity:unguided"]
    assert [mark.velocity for mark in program.steps] == [3, 6]


def test_programs_that_mix_variants_are_written_and_read(interval_schedules: list[Schedule]) -> None:
    for schedule in interval_schedules:
        program = trace(schedule, "guided")
        assert from_json(to_json(program)) == program


def test_shape() -> None:
    """Borders that lie between the same evaluations make no difference; others do."""
    assert guided("H4:guided=0.2..0.6").shape == guided("H4:guided=0.25..0.5").shape
    assert guided("H4:guided=0.2..0.6").shape != guided("H4:guided=0.2..0.8").shape
    assert guided("H4:guided=0.2..0.6").shape != guided("H4").shape


def test_refiner_of_a_scheduled_field(fields: Fields, noise: Array) -> None:
    """It is of the variant of the newest predictor evaluation, until there is another."""
    field = ScheduledField(Schedule.parse("H1P1R1:guided=0.4..0.6"), fields)
    x = noise[:, None]
    for t, variant in ((0.0, "unguided"), (0.4, "guided"), (0.6, "guided"), (0.61, "unguided")):
        v = field.predict(x, t)
        np.testing.assert_array_equal(v, fields[variant].predict(x, t))
        np.testing.assert_array_equal(field.refine(x, v, 0.5), fields[variant].refine(x, v, 0.5))
        np.testing.assert_array_equal(field.refine(x, v, 1.0), fields[variant].refine(x, v, 1.0))
