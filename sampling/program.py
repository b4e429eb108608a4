"""Programs: a schedule lowered to a straight line of instructions over typed registers.

A program is data. It is validated once, when constructed; every backend may then run it unchecked.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from flowturbo_trt.sampling.errors import FlowTurboError

STATE = "state"
NOISE = "noise"
# Whether a network reads an earlier velocity.
NETWORKS = {"predictor": False, "refiner": True}
VARIANTS = ("guided", "unguided")


class ProgramError(FlowTurboError):
    """A program contradicts itself or names something unknown."""


@dataclass(frozen=True)
class Register:
    """A value of the trajectory: a *state* (B,C,H,W), or a *velocity* (B,G,C,H,W) of a variant."""

    kind: Literal["state", "velocity"]
    variant: str | None = None

    def __post_init__(self) -> None:
        if (self.kind == "velocity") != (self.variant in VARIANTS) or self.kind not in ("state", "velocity"):
            raise ProgramError(f"unknown register type {self}")

    def __str__(self) -> str:
        return self.kind if self.variant is None else f"{self.kind}:{self.variant}"


@dataclass(frozen=True)
class Evaluate:
    """Run a network's engine: out ← network(state, time[, velocity])."""

    network: str
    variant: str
    state: int
    velocity: int | None
    time: float
    out: int

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.state,) if self.velocity is None else (self.state, self.velocity)


@dataclass(frozen=True)
class Combine:
    """out ← c₀·r₀ + c₁·r₁ + …, summed from the left in float32.

    Into a state, a velocity counts with its conditional half (index 0 of its axis G).
    """

    out: int
    terms: tuple[tuple[float, int], ...]

    @property
    def reads(self) -> tuple[int, ...]:
        return tuple(register for _, register in self.terms)


Instruction = Evaluate | Combine


@dataclass(frozen=True)
class StepMark:
    """Where a step ends: `end` instructions are done, `state` and `velocity` are what it passes on."""

    kind: str
    t: float
    s: float
    end: int
    state: int
    velocity: int


@dataclass(frozen=True)
class Program:
    """Instructions over registers; register `inputs[name]` is filled from outside, `output` is the result."""

    registers: tuple[Register, ...]
    inputs: dict[str, int]
    instructions: tuple[Instruction, ...]
    steps: tuple[StepMark, ...]
    output: int

    def __post_init__(self) -> None:
        _Validator(self).check()

    @property
    def span(self) -> tuple[float, float]:
        """Start and end time of the trajectory."""
        return self.steps[0].t, self.steps[-1].s

    def evaluations(self) -> Counter[tuple[str, str]]:
        """Count evaluations by (network, variant)."""
        return Counter((i.network, i.variant) for i in self.instructions if isinstance(i, Evaluate))

    def times(self, network: str | None = None) -> tuple[float, ...]:
        """Return the time of every evaluation in order, or of those of one network."""
        evaluations = (i for i in self.instructions if isinstance(i, Evaluate))
        return tuple(i.time for i in evaluations if network in (None, i.network))

    def coefficients(self) -> tuple[float, ...]:
        """Return the coefficients of every combination, in order."""
        return tuple(c for i in self.instructions if isinstance(i, Combine) for c, _ in i.terms)

    def time_slots(self, network: str) -> tuple[int, ...]:
        """Number the different times at which a network is evaluated: one number per evaluation of it."""
        times = self.times(network)
        numbers = {time: number for number, time in enumerate(dict.fromkeys(times))}
        return tuple(numbers[time] for time in times)

    @cached_property
    def shape(self) -> tuple[object, ...]:
        """A key equal for programs that differ in times and coefficients only.

        Such programs can share buffers and captured graphs. Which evaluations of a network happen at
        the same time is part of the shape: what depends on the time alone is computed once for them.
        """
        structure = tuple(
            (i.network, i.variant, i.reads, i.out) if isinstance(i, Evaluate) else (i.reads, i.out)
            for i in self.instructions
        )
        marks = tuple((mark.end, mark.state, mark.velocity) for mark in self.steps)
        slots = tuple(self.time_slots(network) for network in NETWORKS)
        return (self.registers, tuple(sorted(self.inputs.items())), structure, marks, slots, self.output)

    def per_step(self) -> Iterator[tuple[StepMark, tuple[Instruction, ...]]]:
        """Yield every step with its instructions."""
        start = 0
        for mark in self.steps:
            yield mark, self.instructions[start : mark.end]
            start = mark.end


class _Validator:
    """One pass over a program; each method checks one rule."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.written = set(program.inputs.values())

    def check(self) -> None:
        if NOISE not in self.program.inputs:
            raise ProgramError(f"has no input {NOISE!r}, which every trajectory starts from")
        for name, register in self.program.inputs.items():
            self._type(register, STATE, f"input {name}")
        for index, instruction in enumerate(self.program.instructions):
            where = f"instruction {index}"
            if isinstance(instruction, Evaluate):
                self._evaluate(instruction, where)
            elif isinstance(instruction, Combine):
                self._combine(instruction, where)
            else:
                raise ProgramError(f"{where}: unknown instruction {type(instruction).__name__}")
            self._write(instruction.out, where)
        self._read(self.program.output, "output")
        if unwritten := set(range(len(self.program.registers))) - self.written:
            raise ProgramError(f"register {min(unwritten)} is never written")
        self._type(self.program.output, STATE, "output")
        self._steps()

    def _evaluate(self, i: Evaluate, where: str) -> None:
        if i.network not in NETWORKS or i.variant not in VARIANTS:
            raise ProgramError(f"{where}: unknown network {i.network!r} or variant {i.variant!r}")
        for register in i.reads:
            self._read(register, where)
        velocity = f"velocity:{i.variant}"
        self._type(i.state, STATE, where)
        self._type(i.out, velocity, where)
        if (i.velocity is not None) != NETWORKS[i.network]:
            raise ProgramError(f"{where}: {i.network} with velocity {i.velocity}")
        if i.velocity is not None:
            self._type(i.velocity, velocity, where)

    def _combine(self, i: Combine, where: str) -> None:
        if not i.terms or not all(math.isfinite(coefficient) for coefficient, _ in i.terms):
            raise ProgramError(f"{where}: combines nothing, or with a coefficient that is not finite")
        for register in i.reads:
            self._read(register, where)
        out = str(self._register(i.out, where))
        for register in i.reads:
            if out != STATE:
                self._type(register, out, where)

    def _steps(self) -> None:
        program = self.program
        start, time = 0, None
        known = set(program.inputs.values())
        if not program.steps or program.steps[-1].end != len(program.instructions):
            raise ProgramError("the steps do not cover the instructions")
        for index, mark in enumerate(program.steps):
            where = f"step {index}"
            if mark.end <= start or not 0 <= mark.t < mark.s <= 1 or (time is not None and mark.t != time):
                raise ProgramError(f"{where}: instructions or times do not follow the step before")
            for instruction in program.instructions[start : mark.end]:
                if isinstance(instruction, Evaluate) and not mark.t <= instruction.time <= mark.s:
                    raise ProgramError(
                        f"{where}: evaluates at {instruction.time}, outside {mark.t} to {mark.s}"
                    )
            known.update(i.out for i in program.instructions[start : mark.end])
            if not {mark.state, mark.velocity} <= known:
                raise ProgramError(f"{where}: passes on a register that is not written yet")
            self._type(mark.state, STATE, where)
            if self._register(mark.velocity, where).kind != "velocity":
                raise ProgramError(f"{where}: passes on a state as its velocity")
            start, time = mark.end, mark.s

    def _register(self, register: int, where: str) -> Register:
        if not 0 <= register < len(self.program.registers):
            raise ProgramError(f"{where}: no register {register}")
        return self.program.registers[register]

    def _type(self, register: int, expected: str, where: str) -> None:
        if str(self._register(register, where)) != expected:
            found = self.program.registers[register]
            raise ProgramError(f"{where}: register {register} is a {found}, expected a {expected}")

    def _read(self, register: int, where: str) -> None:
        if register not in self.written:
            raise ProgramError(f"{where}: reads register {register} before it is written")

    def _write(self, register: int, where: str) -> None:
        if register in self.written:
            raise ProgramError(f"{where}: writes register {register} a second time")
        self.written.add(register)
