"""The reference sampler in NumPy: slow, allocating, obviously right. Backends are held against it."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.sampling.program import NOISE, Evaluate, Program
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.steps import Field, Passed

Array = NDArray[np.float32]


def sample(schedule: Schedule, field: Field, x: Any) -> Iterator[tuple[Any, Any]]:
    """Call the formulas on arrays; yield the state and the velocity passed on after every step.

    `field` and `x` may be of any shape that broadcasts. Under guidance, states shaped (B,1,C,H,W) and
    velocities (B,2,C,H,W) reproduce the reference implementation's doubled batch.
    """
    passed: Passed = ()
    for step, t, s in schedule.formulas:
        x, passed = step(field, x, passed, t, s)
        yield x, passed[-1][1]


class ScheduledField:
    """The field of a request with guidance: guided or unguided, as the schedule says for each time.

    `fields` are by variant. A refiner is of the variant of the velocity it refines, which descends from
    the newest evaluation of the predictor.
    """

    def __init__(self, schedule: Schedule, fields: Mapping[str, Field]) -> None:
        self._schedule = schedule
        self._fields = fields
        self._variant = "guided"

    def predict(self, x: Any, t: float) -> Any:
        self._variant = "guided" if self._schedule.is_guided_at(t) else "unguided"
        return self._fields[self._variant].predict(x, t)

    def refine(self, x: Any, v: Any, t: float) -> Any:
        return self._fields[self._variant].refine(x, v, t)


def run(program: Program, fields: Mapping[str, Field], noise: Array) -> Iterator[tuple[Array, Array]]:
    """Interpret a program on fields by variant; yields as `sample` does.

    Noise and states are (B,C,H,W), velocities (B,G,C,H,W).
    """
    values: dict[int, Array] = {program.inputs[NOISE]: noise}
    for mark, instructions in program.per_step():
        for instruction in instructions:
            if isinstance(instruction, Evaluate):
                values[instruction.out] = _evaluate(instruction, fields[instruction.variant], values)
            else:
                is_state = program.registers[instruction.out].kind == "state"
                values[instruction.out] = combine(instruction.terms, values, is_state)
        yield values[mark.state], values[mark.velocity]


def _evaluate(instruction: Evaluate, field: Field, values: dict[int, Array]) -> Array:
    x = values[instruction.state]
    if instruction.velocity is None:
        result: Array = field.predict(x, instruction.time)
    else:
        result = field.refine(x, values[instruction.velocity], instruction.time)
    return result


def combine(terms: tuple[tuple[float, int], ...], values: Mapping[int, Any], is_state: bool) -> Any:
    """Sum scaled registers from the left, over any array type."""
    scaled = [coefficient * operand(values[register], is_state) for coefficient, register in terms]
    total = scaled[0]
    for term in scaled[1:]:
        total = total + term
    return total


def operand(value: Any, is_state: bool) -> Any:
    """Return what a register adds to a combination: to a state, a velocity adds its conditional half."""
    return value[:, 0] if is_state and value.ndim == 5 else value
