"""What a program does, in terms of buffers: the calls and sums that a backend launches, step by step.

Pure data, made from the program alone: host memory and GPUs run the same plan.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from flowturbo_trt.sampling.liveness import Allocation, allocate
from flowturbo_trt.sampling.program import NOISE, Evaluate, Program, Register

OUTPUTS = {"predictor": "velocity", "refiner": "offset"}


@dataclass(frozen=True)
class Call:
    """An evaluation over buffers: the program's `index`-th, at the `time_slot`-th time of its network."""

    network: str
    variant: str
    index: int
    time_slot: int
    state: int
    velocity: int | None
    out: int


@dataclass(frozen=True)
class Sum:
    """A combination over buffers; a term is (row of the coefficient table, buffer)."""

    out: int
    terms: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Fusion:
    """Sums that one kernel computes in order; those in `dropped` are read by later ones of it only."""

    sums: tuple[Sum, ...]
    dropped: frozenset[int] = frozenset()


@dataclass(frozen=True)
class LaunchPlan:
    """Calls and sums of every step, over buffers of the types `slots`.

    `noise` and `output` are the buffers of the initial state and the result; `marks` those of the state
    and the velocity that each step passes on.
    """

    slots: tuple[Register, ...]
    steps: tuple[tuple[Call | Sum, ...], ...]
    marks: tuple[tuple[int, int], ...]
    noise: int
    output: int
    coefficients: int

    @property
    def calls(self) -> tuple[Call, ...]:
        return tuple(launch for step in self.steps for launch in step if isinstance(launch, Call))

    def variants(self, network: str) -> tuple[str, ...]:
        """Return the variants in which a network is called, each once."""
        return tuple(dict.fromkeys(call.variant for call in self.calls if call.network == network))


def plan_launches(program: Program) -> LaunchPlan:
    """Lower a program's instructions to calls and sums over the fewest buffers."""
    allocation = allocate(program)
    lowered = _lower(program, allocation)
    steps = tuple(tuple(next(lowered) for _ in instructions) for _, instructions in program.per_step())
    slot_of = allocation.slot_of
    return LaunchPlan(
        allocation.slots,
        steps,
        tuple((slot_of[mark.state], slot_of[mark.velocity]) for mark in program.steps),
        slot_of[program.inputs[NOISE]],
        slot_of[program.output],
        len(program.coefficients()),
    )


def _lower(program: Program, allocation: Allocation) -> Iterator[Call | Sum]:
    slot_of = allocation.slot_of
    time_slots = {network: iter(program.time_slots(network)) for network in OUTPUTS}
    calls = coefficients = 0
    for i in program.instructions:
        if isinstance(i, Evaluate):
            velocity = None if i.velocity is None else slot_of[i.velocity]
            slot = next(time_slots[i.network])
            yield Call(i.network, i.variant, calls, slot, slot_of[i.state], velocity, slot_of[i.out])
            calls += 1
        else:
            terms = tuple((coefficients + n, slot_of[register]) for n, (_, register) in enumerate(i.terms))
            yield Sum(slot_of[i.out], terms)
            coefficients += len(i.terms)


def fuse(program: Program, plan: LaunchPlan, steps: range) -> tuple[Call | Fusion, ...]:
    """Join the sums between two calls of consecutive steps into one kernel each.

    What a sum computes need not reach memory if nothing reads it after its kernel. What the last of the
    steps passes on does, for callbacks; what steps between pass on is read by later ones, or not at all.
    """
    launches: list[Call | Fusion] = []
    sums: list[Sum] = []
    mark = program.steps[steps[-1]]
    passed_on = {mark.state, mark.velocity, program.output}
    index = program.steps[steps[0] - 1].end if steps[0] else 0
    for launch in (launch for step in steps for launch in plan.steps[step]):
        if isinstance(launch, Call) and sums:
            launches.append(_fusion(program, sums, index, passed_on))
            sums = []
        if isinstance(launch, Call):
            launches.append(launch)
        else:
            sums.append(launch)
        index += 1
    if sums:
        launches.append(_fusion(program, sums, index, passed_on))
    return tuple(launches)


def _fusion(program: Program, sums: list[Sum], end: int, passed_on: set[int]) -> Fusion:
    """Fuse the sums that end before instruction `end`."""
    needed = passed_on | {register for i in program.instructions[end:] for register in i.reads}
    results = [i.out for i in program.instructions[end - len(sums) : end]]
    return Fusion(tuple(sums), frozenset(n for n, out in enumerate(results) if out not in needed))
