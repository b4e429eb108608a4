"""Register liveness: the fewest buffers a program needs."""

from dataclasses import dataclass

from flowturbo_trt.sampling.program import Combine, Program, Register


@dataclass(frozen=True)
class Allocation:
    """`slots` are the buffers' types; register r lives in buffer `slot_of[r]`."""

    slots: tuple[Register, ...]
    slot_of: tuple[int, ...]


def allocate(program: Program) -> Allocation:
    """Assign registers to buffers so that live values never share one.

    A combination may take over the buffer of its first term, where that dies: it starts by scaling
    it in place. An evaluation may not take over an input's, which the engine reads while it writes.
    What a step passes on stays readable until the step has ended, for callbacks.
    """
    deaths = _deaths(program)
    slots: list[Register] = []
    slot_of = dict[int, int]()
    free: list[int] = []

    def place(register: int) -> None:
        kind = program.registers[register]
        slot = next((slot for slot in free if slots[slot] == kind), len(slots))
        if slot == len(slots):
            slots.append(kind)
        else:
            free.remove(slot)
        slot_of[register] = slot

    def release(register: int) -> None:
        free.append(slot_of[register])
        del deaths[register]

    for register in program.inputs.values():
        place(register)
    for index, instruction in enumerate(program.instructions):
        if isinstance(instruction, Combine):
            first, *others = instruction.reads
            if deaths[first] == _during(index) and first not in others:
                release(first)
        place(instruction.out)
        for register in [r for r, death in deaths.items() if death <= _after(index)]:
            release(register)
    return Allocation(tuple(slots), tuple(slot_of[r] for r in range(len(program.registers))))


def _during(index: int) -> int:
    """The moment an instruction reads: time runs in half instructions, so that reads precede marks."""
    return 2 * index


def _after(index: int) -> int:
    return 2 * index + 1


def _deaths(program: Program) -> dict[int, int]:
    """Return per register the moment after which nothing needs it."""
    deaths = dict.fromkeys(program.inputs.values(), -1)
    for index, instruction in enumerate(program.instructions):
        for register in instruction.reads:
            deaths[register] = _during(index)
        deaths[instruction.out] = _after(index)
    for mark in program.steps:
        for register in (mark.state, mark.velocity):
            deaths[register] = max(deaths[register], _after(mark.end - 1))
    deaths[program.output] = _during(len(program.instructions))
    return deaths
