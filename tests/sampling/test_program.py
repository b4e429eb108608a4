"""Programs validate themselves: one test per rule."""

from dataclasses import replace
from typing import Any

import pytest

from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.sampling.program import Combine, Evaluate, Program, ProgramError, Register, StepMark

STATE = Register("state")
GUIDED = Register("velocity", "guided")
UNGUIDED = Register("velocity", "unguided")


REGISTERS = (STATE, GUIDED, STATE, GUIDED, GUIDED, STATE)
# Registers 6 and 7.
SPARE = {"registers": (*REGISTERS, STATE, UNGUIDED)}


def program(**changes: Any) -> Program:
    """Build a valid program, Euler's step and then a refined one, with some parts replaced.

    Registers: 0 noise, 1 first velocity, 2 state between, 3 offset, 4 refined velocity, 5 result.
    """
    parts: dict[str, Any] = {
        "registers": REGISTERS,
        "inputs": {"noise": 0},
        "instructions": INSTRUCTIONS,
        "steps": STEPS,
        "output": 5,
    }
    return Program(**(parts | changes))


PREDICT = Evaluate("predictor", "guided", state=0, velocity=None, time=0.0, out=1)
EULER = Combine(out=2, terms=((1.0, 0), (0.5, 1)))
REFINE = Evaluate("refiner", "guided", state=2, velocity=1, time=0.5, out=3)
REFINED = Combine(out=4, terms=((1.0, 3), (1.0, 1)))
SECOND = Combine(out=5, terms=((1.0, 2), (0.5, 4)))
INSTRUCTIONS = (PREDICT, EULER, REFINE, REFINED, SECOND)
FIRST_MARK = StepMark("E", t=0.0, s=0.5, end=2, state=2, velocity=1)
LAST_MARK = StepMark("R", t=0.5, s=1.0, end=5, state=5, velocity=4)
STEPS = (FIRST_MARK, LAST_MARK)


def changed(index: int, **changes: Any) -> dict[str, Any]:
    """Return the replacement of fields in one instruction."""
    instructions: list[Any] = list(INSTRUCTIONS)
    instructions[index] = replace(instructions[index], **changes)
    return {"instructions": tuple(instructions)}


def marked(index: int, **changes: Any) -> dict[str, Any]:
    """Return the replacement of fields in one step mark."""
    steps = list(STEPS)
    steps[index] = replace(steps[index], **changes)
    return {"steps": tuple(steps)}


def test_the_unchanged_program_is_valid() -> None:
    valid = program()
    assert valid.span == (0.0, 1.0)
    assert valid.evaluations() == {("predictor", "guided"): 1, ("refiner", "guided"): 1}


REJECTED: dict[str, tuple[dict[str, Any], str]] = {
    "state read before it is written": (
        changed(0, state=5),
        r"instruction 0: reads register 5 before it is written",
    ),
    "velocity read before it is written": (
        changed(2, velocity=4),
        r"instruction 2: reads register 4 before it is written",
    ),
    "term read before it is written": (
        changed(1, terms=((1.0, 0), (0.5, 3))),
        r"instruction 1: reads register 3 before it is written",
    ),
    "refiner without an evaluation before it": (
        {
            "instructions": (replace(REFINE, state=0, time=0.0), replace(REFINED, terms=((1.0, 3),))),
            "steps": (replace(LAST_MARK, t=0.0, end=2, state=0, velocity=4),),
            "output": 0,
        },
        r"instruction 0: reads register 1 before it is written",
    ),
    "output never written": (SPARE | {"output": 6}, r"output: reads register 6 before it is written"),
    "written twice": (changed(4, out=2), r"instruction 4: writes register 2 a second time"),
    "input written": (changed(1, out=0), r"instruction 1: writes register 0 a second time"),
    "its own input": (
        changed(4, terms=((1.0, 2), (0.5, 5))),
        r"instruction 4: reads register 5 before",
    ),
    "predictor of the other variant": (
        changed(0, variant="unguided"),
        r"instruction 0: register 1 is a velocity:guided, expected a velocity:unguided",
    ),
    "refiner with a velocity of the other variant": (
        SPARE | changed(2, variant="unguided", out=7),
        r"instruction 2: register 1 is a velocity:guided, expected a velocity:unguided",
    ),
    "velocities of two variants in one velocity": (
        SPARE
        | {
            "instructions": (
                PREDICT,
                replace(PREDICT, variant="unguided", out=7),
                replace(REFINED, terms=((1.0, 1), (1.0, 7))),
            ),
            "steps": (replace(FIRST_MARK, end=3, state=0, velocity=4),),
            "output": 0,
        },
        r"instruction 2: register 7 is a velocity:unguided, expected a velocity:guided",
    ),
    "state in a velocity": (
        changed(3, terms=((1.0, 3), (1.0, 2))),
        r"instruction 3: register 2 is a state, expected a velocity:guided",
    ),
    "predictor that reads a velocity": (changed(0, velocity=1), r"instruction 0: "),
    "predictor with an earlier velocity": (
        changed(2, network="predictor"),
        r"instruction 2: predictor with velocity 1",
    ),
    "refiner without a velocity": (changed(2, velocity=None), r"instruction 2: refiner with velocity None"),
    "evaluates a velocity": (
        changed(2, state=1),
        r"instruction 2: register 1 is a velocity:guided, expected a state",
    ),
    "evaluates into a state": (
        changed(0, out=5),
        r"instruction 0: register 5 is a state, expected a velocity:guided",
    ),
    "unknown network": (changed(0, network="decoder"), r"instruction 0: unknown network 'decoder'"),
    "unknown variant": (changed(0, variant="half"), r"instruction 0: unknown .*variant 'half'"),
    "combines nothing": (changed(1, terms=()), r"instruction 1: combines nothing"),
    "register that is not there": (changed(1, out=8), r"instruction 1: no register 8"),
    "negative register": (changed(1, out=-1), r"instruction 1: no register -1"),
    "input that is not there": ({"inputs": {"noise": 9}}, r"input noise: no register 9"),
    "input that is a velocity": (
        {"inputs": {"noise": 1}},
        r"input noise: register 1 is a velocity:guided, expected a state",
    ),
    "output that is a velocity": ({"output": 4}, r"output: register 4 is a velocity:guided"),
    "unknown instruction": (
        {"instructions": (*INSTRUCTIONS[:4], FIRST_MARK)},
        r"instruction 4: unknown instruction StepMark",
    ),
    "no steps": ({"steps": ()}, r"the steps do not cover the instructions"),
    "steps end early": (marked(1, end=4), r"the steps do not cover the instructions"),
    "empty step": (marked(0, end=0), r"step 0: instructions or times do not follow"),
    "steps overlap": (
        {"steps": (replace(FIRST_MARK, end=5, state=2), LAST_MARK)},
        r"step 1: instructions or times do not follow",
    ),
    "gap between times": (marked(1, t=0.6), r"step 1: instructions or times do not follow"),
    "times overlap": (marked(1, t=0.4), r"step 1: instructions or times do not follow"),
    "time stands still": (marked(1, s=0.5), r"step 1: instructions or times do not follow"),
    "time runs backwards": (marked(1, s=0.25), r"step 1: instructions or times do not follow"),
    "starts before 0": (marked(0, t=-0.1), r"step 0: instructions or times do not follow"),
    "ends after 1": (marked(1, s=1.1), r"step 1: instructions or times do not follow"),
    "time is not a number": (marked(1, s=float("nan")), r"step 1: instructions or times do not follow"),
    "evaluates before the step": (changed(2, time=0.4), r"step 1: evaluates at 0.4, outside 0.5 to 1.0"),
    "evaluates after the step": (changed(0, time=0.6), r"step 0: evaluates at 0.6, outside 0.0 to 0.5"),
    "evaluates at no time": (changed(0, time=float("nan")), r"step 0: evaluates at nan"),
    "passes on a state not written yet": (marked(0, state=5), r"step 0: passes on a register that is not"),
    "passes on a velocity not written yet": (marked(0, velocity=4), r"step 0: passes on a register"),
    "passes on a register that is not there": (marked(0, velocity=-1), r"step 0: passes on a register"),
    "passes on a velocity as state": (marked(0, state=1), r"step 0: register 1 is a velocity"),
    "passes on a state as velocity": (marked(0, velocity=2), r"step 0: passes on a state as its velocity"),
}


@pytest.mark.parametrize("rule", REJECTED)
def test_rejects(rule: str) -> None:
    changes, message = REJECTED[rule]
    with pytest.raises(ProgramError, match=message) as caught:
        program(**changes)
    assert isinstance(caught.value, FlowTurboError)


@pytest.mark.parametrize(
    ("kind", "variant"),
    [("state", "guided"), ("velocity", None), ("velocity", "half"), ("image", None), ("velocity", "")],
)
def test_rejects_unknown_register_types(kind: Any, variant: str | None) -> None:
    with pytest.raises(ProgramError, match="unknown register type"):
        Register(kind, variant)


def test_rejects_a_program_that_lacks_the_noise() -> None:
    """Every backend fills the input called noise, and none checks again."""
    with pytest.raises(ProgramError, match="noise"):
        program(inputs={"source": 0})


def test_rejects_a_coefficient_that_is_not_finite() -> None:
    with pytest.raises(ProgramError, match="instruction 1"):
        program(**changed(1, terms=((1.0, 0), (float("nan"), 1))))
