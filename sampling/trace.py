"""Tracing: run a schedule's formulas on symbols and record the program they describe."""

from flowturbo_trt.sampling.program import NOISE, Combine, Evaluate, Instruction, Program, Register, StepMark
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.steps import Passed


def trace(schedule: Schedule, variant: str) -> Program:
    """Lower a schedule to a program for requests with guidance (variant `guided`), or without any.

    With guidance the schedule says when the predictor is guided; a refiner is of the variant of the
    velocity it refines.
    """
    tracer = _Tracer(schedule, variant)
    noise = tracer.new_register(Register("state"))
    x = Expression(tracer, ((1.0, noise),))
    passed: Passed = ()
    marks = []
    for kind, (step, t, s) in zip(schedule.kinds, schedule.formulas, strict=True):
        x, passed = step(tracer, x, passed, t, s)
        state, velocity = x.register, passed[-1][1].register
        marks.append(StepMark(kind, t, s, len(tracer.instructions), state, velocity))
    return Program(tuple(tracer.registers), {NOISE: noise}, tuple(tracer.instructions), tuple(marks), state)


class Expression:
    """A linear combination of registers, not yet computed.

    Addition appends terms on the right, which is how the same formula sums arrays. Where arrays would
    first compute an inner sum (scaling one, adding one on the right), the sum gets a register of its
    own: the program then rounds exactly where the formula does.
    """

    def __init__(self, tracer: "_Tracer", terms: tuple[tuple[float, int], ...]) -> None:
        self._tracer = tracer
        self._terms = terms

    @property
    def register(self) -> int:
        """The register that holds the value; records the combination the first time it is asked for."""
        if len(self._terms) > 1 or self._terms[0][0] != 1.0:
            self._terms = ((1.0, self._tracer.combine(self._terms)),)
        return self._terms[0][1]

    def __add__(self, other: "Expression") -> "Expression":
        right = other._terms if len(other._terms) == 1 else ((1.0, other.register),)
        return Expression(self._tracer, self._terms + right)

    def __rmul__(self, scale: float) -> "Expression":
        return Expression(self._tracer, ((float(scale), self.register),))


class _Tracer:
    """The field of networks as the formulas see it; its calls become instructions."""

    def __init__(self, schedule: Schedule, variant: str) -> None:
        self._schedule = schedule
        self._variant = variant
        self.registers: list[Register] = []
        self.instructions: list[Instruction] = []

    def new_register(self, register: Register) -> int:
        self.registers.append(register)
        return len(self.registers) - 1

    def predict(self, x: Expression, t: float) -> Expression:
        variant = self._variant if self._schedule.is_guided_at(t) else "unguided"
        return self._evaluate("predictor", variant, x.register, None, t)

    def refine(self, x: Expression, v: Expression, t: float) -> Expression:
        variant = self.registers[v.register].variant
        assert variant is not None
        return self._evaluate("refiner", variant, x.register, v.register, t)

    def _evaluate(self, network: str, variant: str, state: int, velocity: int | None, t: float) -> Expression:
        out = self.new_register(Register("velocity", variant))
        self.instructions.append(Evaluate(network, variant, state, velocity, t, out))
        return Expression(self, ((1.0, out),))

    def combine(self, terms: tuple[tuple[float, int], ...]) -> int:
        # A sum with a state in it is a state; velocities alone stay a velocity.
        types = [self.registers[register] for _, register in terms]
        out = self.new_register(next((t for t in types if t.kind == "state"), types[0]))
        self.instructions.append(Combine(out, terms))
        return out
