"""Binding: which arrays go into which inputs of which engines."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend_onnxruntime import NAME
from flowturbo_trt.runtime.binding import Binder
from flowturbo_trt.runtime.conditioning import plan_conditioning
from flowturbo_trt.runtime.launch_plan import Call, LaunchPlan, plan_launches
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.trace import trace

# A name of the layout, with the rows that are taken of it.
Name = str
Bound = tuple[str, dict[str, Name], dict[str, Name]]


@dataclass
class Recorder:
    """An engine that notes the names of what it is bound to."""

    name: str
    bound: list[Bound] = field(default_factory=list)

    def bind(self, inputs: Mapping[str, Name], outputs: Mapping[str, Name]) -> Bound:
        self.bound.append((self.name, dict(inputs), dict(outputs)))
        return self.bound[-1]


def array(name: str, rows: slice | None) -> Name:
    return name if rows is None else f"{name}[{rows.start}:{rows.stop}]"


class Machine:
    """A binder for a schedule, over names in place of arrays."""

    def __init__(self, manifest: Manifest, text: str, variant: str, batch: int, *, pads: bool) -> None:
        program = trace(Schedule.parse(text), variant)
        self.manifest = manifest
        self.plan: LaunchPlan = plan_launches(program)
        self.conditionings = plan_conditioning(manifest, program, batch, NAME, pads=pads)
        self.engines: dict[str, Recorder] = {}
        self.binder = Binder(manifest.model, self.conditionings, array, self.engine)

    def engine(self, network: str, variant: str | None) -> Recorder:
        name = f"{network}.{variant}" if variant else network
        return self.engines.setdefault(name, Recorder(name))

    def calls(self) -> list[Bound]:
        return [self.binder.call(call) for call in self.plan.calls]


@pytest.fixture
def hoisted(golden_bundle: Path) -> Manifest:
    return Bundle.open(golden_bundle).manifest


@pytest.fixture
def fused(golden_fused_bundle: Path) -> Manifest:
    return Bundle.open(golden_fused_bundle).manifest


def registers(call: Call) -> tuple[str, str, str]:
    return f"register{call.state}", f"register{call.velocity}", f"register{call.out}"


def test_fused_calls(fused: Manifest) -> None:
    machine = Machine(fused, "H1R1:single", "guided", 3, pads=False)
    first, _, refiner = machine.plan.calls
    bound = machine.calls()
    state, _, out = registers(first)
    shared = {"label": "label", "guidance": "guidance"}
    assert bound[0] == (
        "predictor.guided",
        {"state": state, "time": "time0", **shared},
        {"velocity": out},
    )
    # Each evaluation has a time of its own, also where times are equal.
    assert [inputs["time"] for _, inputs, _ in bound] == ["time0", "time1", "time2"]
    state, velocity, out = registers(refiner)
    assert bound[2] == (
        "refiner.guided",
        {"state": state, "time": "time2", **shared, "velocity": velocity},
        {"offset": out},
    )


def test_unguided_calls(fused: Manifest, hoisted: Manifest) -> None:
    machine = Machine(fused, "E1R1:single", "unguided", 3, pads=False)
    assert [name for name, _, _ in machine.calls()] == ["predictor.unguided", "refiner.unguided"]
    assert [sorted(inputs) for _, inputs, _ in machine.calls()] == [
        ["label", "state", "time"],
        ["label", "state", "time", "velocity"],
    ]
    machine = Machine(hoisted, "E1R1:single", "unguided", 3, pads=False)
    assert [sorted(inputs) for _, inputs, _ in machine.calls()] == [
        ["modulation", "state"],
        ["modulation", "state", "velocity"],
    ]


def test_hoisted_calls(hoisted: Manifest) -> None:
    """In place of time and label the rows of the evaluation's time, which equal times share."""
    machine = Machine(hoisted, "H2R1", "guided", 3, pads=False)
    bound = machine.calls()
    first, *_, refiner = machine.plan.calls
    state, _, out = registers(first)
    assert bound[0] == (
        "predictor.guided",
        {
            "state": state,
            "modulation": "predictor.modulation[0:3]",
            "null_modulation": "predictor.null_modulation[0:3]",
            "guidance": "guidance",
        },
        {"velocity": out},
    )
    rows = [inputs["modulation"].partition("[")[2] for _, inputs, _ in bound]
    assert rows == ["0:3]", "3:6]", "3:6]", "6:9]", "0:3]", "3:6]"]
    null_rows = [inputs["null_modulation"].partition("[")[2] for _, inputs, _ in bound]
    assert null_rows == rows
    state, velocity, out = registers(refiner)
    assert bound[5] == (
        "refiner.guided",
        {
            "state": state,
            "modulation": "refiner.modulation[3:6]",
            "null_modulation": "refiner.null_modulation[3:6]",
            "guidance": "guidance",
            "velocity": velocity,
        },
        {"offset": out},
    )


def test_calls_of_both_variants(hoisted: Manifest) -> None:
    """Unguided evaluations take the rows of their time from the same modulations."""
    machine = Machine(hoisted, "E3:guided=0.3..0.4", "guided", 2, pads=False)
    found = [(name, inputs["modulation"], "null_modulation" in inputs) for name, inputs, _ in machine.calls()]
    assert found == [
        ("predictor.unguided", "predictor.modulation[0:2]", False),
        ("predictor.guided", "predictor.modulation[2:4]", True),
        ("predictor.unguided", "predictor.modulation[4:6]", False),
    ]


def test_conditioner(hoisted: Manifest) -> None:
    """All rows in one call; the null condition's at the same times."""
    machine = Machine(hoisted, "H2R1", "guided", 3, pads=False)
    refiner = machine.conditionings["refiner"]
    assert machine.binder.conditioner(refiner, null=False) == [
        (
            "refiner_conditioner",
            {"label": "refiner.label[0:6]", "time": "refiner.time[0:6]"},
            {"modulation": "refiner.modulation[0:6]"},
        )
    ]
    assert machine.binder.conditioner(refiner, null=True) == [
        (
            "refiner_conditioner",
            {"label": "refiner.null_label[0:6]", "time": "refiner.time[0:6]"},
            {"modulation": "refiner.null_modulation[0:6]"},
        )
    ]


def test_conditioner_of_engines_that_fix_their_rows(hoisted: Manifest) -> None:
    machine = Machine(hoisted, "H2", "guided", 30, pads=True)
    calls = machine.binder.conditioner(machine.conditionings["predictor"], null=False)
    assert [inputs["time"] for _, inputs, _ in calls] == ["predictor.time[0:64]", "predictor.time[64:128]"]
    assert [inputs["label"] for _, inputs, _ in calls] == ["predictor.label[0:64]", "predictor.label[64:128]"]
    assert [outputs["modulation"] for _, _, outputs in calls] == [
        "predictor.modulation[0:64]",
        "predictor.modulation[64:128]",
    ]
    # An evaluation takes its batch's rows, wherever the calls' borders lie.
    rows = [inputs["modulation"] for _, inputs, _ in machine.calls()]
    assert rows[1] == "predictor.modulation[30:60]"
    assert rows[3] == "predictor.modulation[60:90]"


def test_decoder(hoisted: Manifest) -> None:
    machine = Machine(hoisted, "E1", "guided", 1, pads=False)
    assert machine.binder.decoder(5) == ("decoder", {"state": "register5"}, {"image": "image"})


@pytest.mark.parametrize("text", ["H2P1R2", "E3R1:single:guided=0.3..0.7"])
def test_every_input_of_every_engine_is_bound(hoisted: Manifest, fused: Manifest, text: str) -> None:
    """By the names that the manifest gives them."""
    for manifest in (hoisted, fused):
        machine = Machine(manifest, text, "guided", 2, pads=False)
        machine.calls()
        for conditioning in machine.conditionings.values():
            machine.binder.conditioner(conditioning, null=False)
        for name, engine in machine.engines.items():
            network, _, variant = name.partition(".")
            described = manifest.engine(network, variant or None, NAME)
            assert engine.bound
            for _, inputs, outputs in engine.bound:
                assert inputs.keys() == {tensor.name for tensor in described.inputs}
                assert outputs.keys() == {tensor.name for tensor in described.outputs}
