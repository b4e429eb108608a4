"""Buffers: programs run in the slots of `allocate` as they run with a value per register."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from flowturbo_trt.sampling.liveness import Allocation, allocate
from flowturbo_trt.sampling.program import VARIANTS, Evaluate, Program, ProgramError, Register
from flowturbo_trt.sampling.reference import run
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.steps import Field
from flowturbo_trt.sampling.trace import trace

Array = NDArray[np.float32]
FieldOf = Callable[[str], Field]


class Slots:
    """An interpreter that writes in place, and knows which register each buffer holds."""

    def __init__(self, program: Program, fields: Mapping[str, Field], noise: Array) -> None:
        self.program, self.fields = program, fields
        self.allocation: Allocation = allocate(program)
        B, *image = noise.shape
        halves = {"guided": 2, "unguided": 1}
        self.buffers = [
            np.full((B, *image) if slot.variant is None else (B, halves[slot.variant], *image), np.nan, "f4")
            for slot in self.allocation.slots
        ]
        self.holds: dict[int, int] = {}
        self.write(program.inputs["noise"])[...] = noise

    def read(self, register: int) -> Array:
        slot = self.allocation.slot_of[register]
        assert self.holds[slot] == register, f"register {register} was overwritten while it was live"
        return self.buffers[slot]

    def write(self, register: int) -> Array:
        slot = self.allocation.slot_of[register]
        assert self.allocation.slots[slot] == self.program.registers[register]
        self.holds[slot] = register
        return self.buffers[slot]

    def part(self, register: int, out: Array) -> Array:
        value = self.read(register)
        return value[:, 0] if value.ndim > out.ndim else value

    def run(self) -> list[tuple[Array, Array]]:
        passed_on = []
        for mark, instructions in self.program.per_step():
            for i in instructions:
                if isinstance(i, Evaluate):
                    self.evaluate(i)
                else:
                    self.combine(i.out, i.terms)
            passed_on.append((self.read(mark.state).copy(), self.read(mark.velocity).copy()))
        self.read(self.program.output)
        return passed_on

    def evaluate(self, i: Evaluate) -> None:
        inputs = [self.read(register) for register in i.reads]
        out = self.write(i.out)
        # An engine may write before it has read everything: an input that shares the buffer is lost.
        out[...] = np.nan
        field, (x, *v) = self.fields[i.variant], inputs
        out[...] = field.refine(x, v[0], i.time) if v else field.predict(x, i.time)

    def combine(self, out_register: int, terms: tuple[tuple[float, int], ...]) -> None:
        out = self.buffers[self.allocation.slot_of[out_register]]
        (scale, first), *others = [
            (np.float32(coefficient), self.part(register, out)) for coefficient, register in terms
        ]
        # In place the first term is gone once it is scaled, so the others must lie elsewhere.
        assert not any(np.shares_memory(out, other) for _, other in others)
        self.write(out_register)
        np.multiply(scale, first, out=out)
        for coefficient, value in others:
            np.add(out, coefficient * value, out=out)


@pytest.mark.parametrize("variant", ["guided", "unguided"])
def test_running_in_slots_equals_the_reference(
    schedules: list[Schedule], variant: str, field_of: FieldOf, noise: Array
) -> None:
    fields = {variant: field_of(variant) for variant in VARIANTS}
    for schedule in schedules:
        program = trace(schedule, variant)
        expected = list(run(program, fields, noise))
        in_slots = Slots(program, fields, noise).run()
        for (x, v), (x_slot, v_slot) in zip(expected, in_slots, strict=True):
            np.testing.assert_array_equal(x_slot, x, err_msg=str(schedule))
            np.testing.assert_array_equal(v_slot, v, err_msg=str(schedule))


def test_variants_that_alternate(
    interval_schedules: list[Schedule], fields: Mapping[str, Field], noise: Array
) -> None:
    """Velocities of two variants take buffers of two sizes."""
    for schedule in interval_schedules:
        program = trace(schedule, "guided")
        for (x, v), (x_slot, v_slot) in zip(
            run(program, fields, noise), Slots(program, fields, noise).run(), strict=True
        ):
            np.testing.assert_array_equal(x_slot, x, err_msg=str(schedule))
            np.testing.assert_array_equal(v_slot, v, err_msg=str(schedule))


def slot_counts(text: str) -> tuple[int, int]:
    slots = allocate(trace(Schedule.parse(text), "guided")).slots
    assert set(slots) <= {Register("state"), Register("velocity", "guided")}
    return slots.count(Register("state")), slots.count(Register("velocity", "guided"))


@pytest.mark.parametrize(
    ("text", "states", "velocities"),
    [
        ("E9", 1, 1),
        ("H8", 2, 2),
        ("H1P5", 2, 2),
        # A refiner's two velocities and the offset between them.
        ("H1P5R3", 2, 3),
        ("H1R3:single", 2, 2),
        # The three earlier velocities, and the newest; the state is advanced in place.
        ("AB4x16", 1, 4),
        ("AB2x8", 1, 2),
    ],
)
def test_slots_needed(text: str, states: int, velocities: int) -> None:
    assert slot_counts(text) == (states, velocities)


def test_slots_do_not_grow_with_the_number_of_steps() -> None:
    for short, long in (("H1P2R3", "H1P20R30"), ("AB4x8", "AB4x80"), ("H3", "H50")):
        assert slot_counts(short) == slot_counts(long)


def test_every_register_has_a_slot_of_its_type(schedules: list[Schedule]) -> None:
    for schedule in schedules:
        program = trace(schedule, "guided")
        allocation = allocate(program)
        types = [allocation.slots[slot] for slot in allocation.slot_of]
        assert types == list(program.registers)


def test_a_register_that_nothing_writes_is_refused_or_allocated() -> None:
    """A manifest may list one: it must not fail only when buffers are made."""
    program = trace(Schedule.parse("E1"), "guided")
    try:
        idle = replace(program, registers=(*program.registers, Register("state")))
    except ProgramError:
        return
    assert len(allocate(idle).slot_of) == len(idle.registers)
