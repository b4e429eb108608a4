"""Programs as JSON (version 1), the form a manifest holds and other languages read."""

from typing import Any

from flowturbo_trt.sampling.program import (
    Combine,
    Evaluate,
    Instruction,
    Program,
    ProgramError,
    Register,
    StepMark,
)

PROGRAM_VERSION = 1


def to_json(program: Program) -> dict[str, Any]:
    """Return the program as JSON-ready data; `from_json` gives an equal program back."""
    return {
        "version": PROGRAM_VERSION,
        "registers": [str(register) for register in program.registers],
        "inputs": dict(program.inputs),
        "instructions": [_instruction_to_json(i) for i in program.instructions],
        "steps": [vars(mark) | {} for mark in program.steps],
        "output": program.output,
    }


def from_json(data: dict[str, Any]) -> Program:
    """Read and validate a program; raises ProgramError for anything unknown or missing."""
    if not isinstance(data, dict) or data.get("version") != PROGRAM_VERSION:
        found = data.get("version") if isinstance(data, dict) else data
        raise ProgramError(f"program version {found!r}, this reader knows {PROGRAM_VERSION}")
    try:
        return Program(
            tuple(_register(text) for text in data["registers"]),
            dict(data["inputs"]),
            tuple(_instruction(item) for item in data["instructions"]),
            tuple(StepMark(**mark) for mark in data["steps"]),
            data["output"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProgramError(f"not a program: {type(error).__name__} {error}") from error


def _instruction_to_json(instruction: Instruction) -> dict[str, Any]:
    if isinstance(instruction, Evaluate):
        return {"op": "evaluate", **vars(instruction)}
    return {"op": "combine", "out": instruction.out, "terms": [list(term) for term in instruction.terms]}


def _instruction(item: dict[str, Any]) -> Instruction:
    fields = dict(item)
    operation = fields.pop("op")
    if operation == "evaluate":
        return Evaluate(**fields)
    if operation == "combine":
        terms = tuple((float(coefficient), int(register)) for coefficient, register in fields.pop("terms"))
        return Combine(terms=terms, **fields)
    raise ProgramError(f"unknown instruction {operation!r}; this reader knows evaluate and combine")


def _register(text: str) -> Register:
    kind, _, variant = text.partition(":")
    return Register(kind, variant or None)  # type: ignore[arg-type]  # checked by Register itself
