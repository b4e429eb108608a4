"""Programs as JSON: round trips, and one test per cause of rejection."""

import copy
import json
from typing import Any

import pytest

from flowturbo_trt.sampling.program import ProgramError
from flowturbo_trt.sampling.program_json import PROGRAM_VERSION, from_json, to_json
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.trace import trace


@pytest.fixture
def data() -> dict[str, Any]:
    return to_json(trace(Schedule.parse("H1P1R1"), "guided"))


@pytest.mark.parametrize("variant", ["guided", "unguided"])
def test_round_trip_through_text(schedules: list[Schedule], variant: str) -> None:
    for schedule in schedules:
        program = trace(schedule, variant)
        back = from_json(json.loads(json.dumps(to_json(program), allow_nan=False)))
        assert back == program
        assert back.shape == program.shape
        assert json.dumps(to_json(back)) == json.dumps(to_json(program))


def test_what_the_format_looks_like() -> None:
    """The manifest's readers in other languages rely on these names."""
    assert to_json(trace(Schedule.parse("E1"), "unguided")) == {
        "version": 1,
        "registers": ["state", "velocity:unguided", "state"],
        "inputs": {"noise": 0},
        "instructions": [
            {
                "op": "evaluate",
                "network": "predictor",
                "variant": "unguided",
                "state": 0,
                "velocity": None,
                "time": 0.0,
                "out": 1,
            },
            {"op": "combine", "out": 2, "terms": [[1.0, 0], [1.0, 1]]},
        ],
        "steps": [{"kind": "E", "t": 0.0, "s": 1.0, "end": 2, "state": 2, "velocity": 1}],
        "output": 2,
    }


@pytest.mark.parametrize("version", [0, PROGRAM_VERSION + 1, "1", None])
def test_rejects_another_version(data: dict[str, Any], version: Any) -> None:
    with pytest.raises(ProgramError, match=rf"program version {version!r}, this reader knows 1"):
        from_json(data | {"version": version})


def test_rejects_a_program_without_version(data: dict[str, Any]) -> None:
    del data["version"]
    with pytest.raises(ProgramError, match="program version None"):
        from_json(data)


@pytest.mark.parametrize("other", [[], "program", None, 3])
def test_rejects_what_is_no_object(other: Any) -> None:
    with pytest.raises(ProgramError, match="this reader knows 1"):
        from_json(other)


def test_refuses_an_unknown_instruction_by_name(data: dict[str, Any]) -> None:
    data["instructions"][0]["op"] = "inpaint"
    with pytest.raises(ProgramError, match="unknown instruction 'inpaint'; this reader knows evaluate and"):
        from_json(data)


@pytest.mark.parametrize("key", ["registers", "inputs", "instructions", "steps", "output"])
def test_rejects_a_missing_part(data: dict[str, Any], key: str) -> None:
    del data[key]
    with pytest.raises(ProgramError, match=f"not a program: KeyError '{key}'"):
        from_json(data)


@pytest.mark.parametrize("key", ["op", "network", "variant", "state", "velocity", "time", "out"])
def test_rejects_an_evaluation_with_a_missing_field(data: dict[str, Any], key: str) -> None:
    del data["instructions"][0][key]
    with pytest.raises(ProgramError, match=f"not a program: .*{key}"):
        from_json(data)


@pytest.mark.parametrize("key", ["op", "out", "terms"])
def test_rejects_a_combination_with_a_missing_field(data: dict[str, Any], key: str) -> None:
    del data["instructions"][1][key]
    with pytest.raises(ProgramError, match=f"not a program: .*{key}"):
        from_json(data)


def test_rejects_a_step_with_a_missing_field(data: dict[str, Any]) -> None:
    del data["steps"][0]["end"]
    with pytest.raises(ProgramError, match=r"not a program: .*end"):
        from_json(data)


def test_what_is_not_known_is_ignored(data: dict[str, Any]) -> None:
    """As the format says: information can be added without a new version."""
    expected = from_json(copy.deepcopy(data))
    for item in (data, *data["instructions"], *data["steps"]):
        item["note"] = "by hand"
    assert from_json(data) == expected


@pytest.mark.parametrize("value", [True, 1.5, "1", None])
def test_rejects_what_is_no_index(data: dict[str, Any], value: Any) -> None:
    for change in (
        lambda data: data["instructions"][0].update(out=value),
        lambda data: data["instructions"][1]["terms"][0].__setitem__(1, value),
        lambda data: data["steps"][0].update(end=value),
        lambda data: data.update(output=value, version=1),
    ):
        changed = copy.deepcopy(data)
        change(changed)
        with pytest.raises(ProgramError, match="is not an integer"):
            from_json(changed)


@pytest.mark.parametrize("value", [True, "0.5", None])
def test_rejects_what_is_no_number(data: dict[str, Any], value: Any) -> None:
    for change in (
        lambda data: data["instructions"][0].update(time=value),
        lambda data: data["instructions"][1]["terms"][0].__setitem__(0, value),
        lambda data: data["steps"][0].update(t=value),
    ):
        changed = copy.deepcopy(data)
        change(changed)
        with pytest.raises(ProgramError, match="is not a number"):
            from_json(changed)


def test_true_is_no_version(data: dict[str, Any]) -> None:
    with pytest.raises(ProgramError, match="program version True"):
        from_json(data | {"version": True})


@pytest.mark.parametrize("text", ["image", "velocity", "velocity:half", "state:guided", ""])
def test_rejects_an_unknown_register_type(data: dict[str, Any], text: str) -> None:
    data["registers"][0] = text
    with pytest.raises(ProgramError, match="unknown register type"):
        from_json(data)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("registers", 3),
        ("registers", [7]),
        ("inputs", ["noise"]),
        ("inputs", {"noise": "0"}),
        ("instructions", [3]),
        ("steps", [3]),
        ("output", "2"),
        ("output", None),
        ("output", 2.0),
    ],
)
def test_rejects_a_part_of_another_type(data: dict[str, Any], key: str, value: Any) -> None:
    with pytest.raises(ProgramError):
        from_json(data | {key: value})


@pytest.mark.parametrize(
    ("key", "value"), [("state", "0"), ("out", None), ("time", "now"), ("network", ["predictor"])]
)
def test_rejects_a_field_of_another_type(data: dict[str, Any], key: str, value: Any) -> None:
    data["instructions"][0][key] = value
    with pytest.raises(ProgramError):
        from_json(data)


def test_validates_what_it_reads(data: dict[str, Any]) -> None:
    data["instructions"][0]["state"] = 3
    with pytest.raises(ProgramError, match="instruction 0: reads register 3 before it is written"):
        from_json(data)
