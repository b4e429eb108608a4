"""The types that a plan's layers work on, told by the engine inspector."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.runtime.backend import BackendError
from flowturbo_trt.tests.runtime.tensorrt_machines import MakeMachine, machine_maker


@pytest.fixture
def make_machine(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeMachine:
    return machine_maker(tiny_bundle, tmp_path, monkeypatch)


PRODUCT = {"Name": "product", "Inputs": [], "Outputs": [{"Name": "y", "Datatype": "Half"}]}
OUTER = {"Name": "last", "Inputs": [], "Outputs": [{"Name": "z", "Format/Datatype": "Float"}]}
OLDER = {"Name": "product", "Outputs": [{"Name": "y", "Format/Datatype": "Row major linear FP16 format"}]}
BFLOAT = {"Name": "product", "Inputs": [{"Name": "x", "Datatype": "BFloat16"}], "Outputs": []}
WHOLE = {**OUTER, "Name": "{ForeignNode[first...last]}"}


@pytest.mark.parametrize(
    ("layers", "precision", "found"),
    [
        ((PRODUCT, PRODUCT, OUTER), "fp16", {"float16": 2, "float32": 1}),
        ((OLDER, OUTER), "fp16", {"float16": 1, "float32": 1}),
        ((BFLOAT, OUTER), "bf16", {"bfloat16": 1, "float32": 1}),
        ((OUTER,), "fp32", {"float32": 1}),
        # What is compiled as one piece, names alone and text that is no JSON say nothing.
        ((WHOLE,), "fp16", {}),
        (("product", "last"), "fp16", {}),
        ('{"Layers": [{"Name": "a "quoted" name"}]}', "fp16", {}),
    ],
)
def test_precision(make_machine: MakeMachine, layers: Any, precision: str, found: dict[str, int]) -> None:
    machine = make_machine("tensorrt-rtx", lambda plan: replace(plan, layers=layers), precision=precision)
    engine = machine.load()
    assert engine.precisions == found
    others = {"fp32", "fp16", "bf16"} - {precision}
    assert engine.is_as_declared(precision)
    assert all(engine.is_as_declared(other) == (not found) for other in others)


@pytest.mark.parametrize(
    ("layers", "precision", "found"),
    [
        ((OUTER, OUTER), "fp16", "float32 in 2 layers"),
        ((PRODUCT, OUTER), "fp32", "float16 in 1 layers, float32 in 1 layers"),
        ((PRODUCT, OUTER), "bf16", "float16 in 1 layers, float32 in 1 layers"),
    ],
)
def test_engine_of_another_precision(
    make_machine: MakeMachine, layers: Any, precision: str, found: str
) -> None:
    machine = make_machine("tensorrt-rtx", lambda plan: replace(plan, layers=layers), precision=precision)
    expected = rf"^refiner guided: .*\.plan computes in {found}, and the manifest says {precision}; rebuild"
    with pytest.raises(BackendError, match=expected):
        machine.load()
