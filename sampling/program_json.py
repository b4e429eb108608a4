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
    version = data.get("version") if isinstance(data, dict) else data
    if type(version) is not int or version != PROGRAM_VERSION:
        raise ProgramError(f"program version {version!r}, this reader knows {PROGRAM_VERSION}")
    try:
        return Program(
            tuple(_register(_text(text)) for text in data["registers"]),
            {_text(name): _index(register) for name, register in data["inputs"].items()},
            tuple(_instruction(item) for item in data["instructions"]),
            tuple(_step(item) for item in data["steps"]),
            _index(data["output"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProgramError(f"not a program: {type(error).__name__} {error}") from error


def _instruction_to_json(instruction: Instruction) -> dict[str, Any]:
    if isinstance(instruction, Evaluate):
        return {"op": "evaluate", **vars(instruction)}
    return {"op": "combine", "out": instruction.out, "terms": [list(term) for term in instruction.terms]}


# Keys that are not named here are ignored, so that information can be added to the format.


def _instruction(item: dict[str, Any]) -> Instruction:
    operation, out = item["op"], _index(item["out"])
    if operation == "evaluate":
        velocity = item["velocity"]
        return Evaluate(
            network=item["network"],
            variant=item["variant"],
            state=_index(item["state"]),
            velocity=None if velocity is None else _index(velocity),
            time=_number(item["time"]),
            out=out,
        )
    if operation == "combine":
        return Combine(out, tuple((_number(factor), _index(register)) for factor, register in item["terms"]))
    raise ProgramError(f"unknown instruction {operation!r}; this reader knows evaluate and combine")


def _step(item: dict[str, Any]) -> StepMark:
    return StepMark(
        kind=_text(item["kind"]),
        t=_number(item["t"]),
        s=_number(item["s"]),
        end=_index(item["end"]),
        state=_index(item["state"]),
        velocity=_index(item["velocity"]),
    )


def _index(value: object) -> int:
    # To Python true is 1, to other readers it is not.
    if type(value) is not int:
        raise TypeError(f"{value!r} is not an integer")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _register(text: str) -> Register:
    kind, _, variant = text.partition(":")
    return Register(kind, variant or None)  # type: ignore[arg-type]  # checked by Register itself
