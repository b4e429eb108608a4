"""Plans whose tensors and profiles are not the manifest's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.bundle.manifest import Tensor
from flowturbo_trt.runtime.backend import BackendError
from flowturbo_trt.tests.fake_tensorrt import SCRATCH
from flowturbo_trt.tests.fake_tensorrt_plans import FakePlan
from flowturbo_trt.tests.runtime.tensorrt_machines import MakeMachine, machine_maker


@pytest.fixture
def make_machine(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeMachine:
    return machine_maker(tiny_bundle, tmp_path, monkeypatch)


def changed_tensor(changed: str, **fields: Any) -> Any:
    """Return what makes a plan whose tensor differs from the manifest's."""

    def change(plan: FakePlan) -> FakePlan:
        inputs, outputs = (
            tuple(replace(tensor, **fields) if tensor.name == changed else tensor for tensor in tensors)
            for tensors in (plan.inputs, plan.outputs)
        )
        return replace(plan, inputs=inputs, outputs=outputs)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            changed_tensor("state", dtype="float16"),
            r"its state is input float16 \[batch, 2, 4, 4\] in engines/.*, "
            r"input float32 \[batch, 2, 4, 4\] in the manifest; rebuild it$",
        ),
        (
            changed_tensor("state", shape=("batch", 2, 4, 5)),
            r"its state is input float32 \[batch, 2, 4, 5\] ",
        ),
        (
            changed_tensor("guidance", shape=("batch", 1)),
            r"its guidance is input float32 \[-1, 1\] in .*\[batch\] in",
        ),
        (changed_tensor("offset", name="velocity2"), r"its offset is nothing in .*, output float32"),
        (
            lambda plan: replace(plan, inputs=plan.inputs[1:], outputs=(*plan.outputs, plan.inputs[0])),
            r"its state is output float32 .*, input float32 ",
        ),
        (
            lambda plan: replace(plan, inputs=(*plan.inputs, Tensor("mask", "float32", ("batch",)))),
            r"engines/.* has mask, which the manifest does not know; rebuild it$",
        ),
        (
            lambda plan: replace(plan, profiles=((1, 1, 1),)),
            r"has 1 profiles, expected one for each of the manifest's batches \[1, 3\]; rebuild it$",
        ),
        (
            lambda plan: replace(plan, profiles=((1, 1, 1), (1, 3, 3))),
            r"its state is made for \[1, 2, 4, 4\] … \[3, 2, 4, 4\] … \[3, 2, 4, 4\] in profile 1 in .*, "
            r"\[3, 2, 4, 4\] in the manifest",
        ),
        (
            lambda plan: replace(plan, profiles=((3, 3, 3), (1, 1, 1))),
            r"made for \[3, 2, 4, 4\] .* profile 0",
        ),
    ],
)
def test_plan_of_another_interface(make_machine: MakeMachine, change: Any, message: str) -> None:
    only_refiner = lambda plan: change(plan) if plan.name == "refiner guided" else plan  # noqa: E731
    machine = make_machine("tensorrt-rtx", only_refiner)
    machine.load("predictor")
    with pytest.raises(BackendError, match=rf"^refiner guided: .*{message}"):
        machine.load()


def test_plan_of_one_batch(make_machine: MakeMachine) -> None:
    """With one profile TensorRT makes the batch a constant."""
    machine = make_machine("tensorrt-rtx", lambda plan: replace(plan, profiles=((3, 3, 3),)), batches=[3])
    engine, stream = machine.load(), machine.device.create_stream()
    assert engine.context(3, machine.scratch(3 * SCRATCH), stream).batch == 3


def test_outputs_of_another_batch(make_machine: MakeMachine) -> None:
    """What TensorRT deduced of the outputs shows when the inputs have their shapes."""
    machine = make_machine("tensorrt")
    engine, stream = machine.load(), machine.device.create_stream()
    machine.module.refusals["get_tensor_shape"] = "another batch"
    expected = r"^refiner guided: its offset is \[4, 1, 2, 4, 4\] in .*, \[3, 1, 2, 4, 4\] in the manifest"
    with pytest.raises(BackendError, match=expected):
        engine.context(3, machine.scratch(3 * SCRATCH), stream)
