"""TensorRT engines of both flavours, on a fake TensorRT and an emulated GPU that execute them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.bundle.manifest import BundleError
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend import BackendError
from flowturbo_trt.runtime.device import DeviceArray
from flowturbo_trt.runtime.tensorrt_engine import TensorRtEngine
from flowturbo_trt.tests.emulated_device import EmulatedDevice
from flowturbo_trt.tests.fake_tensorrt import SCRATCH
from flowturbo_trt.tests.fake_tensorrt_plans import by_onnxruntime
from flowturbo_trt.tests.runtime.tensorrt_machines import (
    FLAVOURS,
    Machine,
    MakeMachine,
    arguments,
    machine_maker,
    total,
)


@pytest.fixture
def make_machine(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeMachine:
    return machine_maker(tiny_bundle, tmp_path, monkeypatch)


@pytest.fixture(params=FLAVOURS)
def machine(request: pytest.FixtureRequest, make_machine: MakeMachine) -> Machine:
    return make_machine(request.param)


class Call:
    """An engine's call on arrays of its own in device memory."""

    def __init__(self, machine: Machine, context: Any, engine: TensorRtEngine, first: float) -> None:
        self.inputs = arguments(engine, context.batch, first)
        (self.name,) = (tensor.name for tensor in engine.described.outputs)
        self.expected = total(engine.described.name, self.inputs)[self.name]
        self.placed = {name: machine.put(array) for name, array in self.inputs.items()}
        self.output = machine.put(np.zeros(self.expected.shape, np.float32))
        self.ask = context.bind(self.placed, {self.name: self.output})

    def result(self, machine: Machine) -> Any:
        return machine.device.array(self.output)


@pytest.mark.parametrize("batch", [1, 3])
def test_call(machine: Machine, batch: int) -> None:
    engine, stream = machine.load(), machine.device.create_stream()
    context = engine.context(batch, machine.scratch(engine.scratch_bytes(batch)), stream)
    call = Call(machine, context, engine, 1.5)
    call.ask(stream)
    assert not call.result(machine).any(), "a call only asks"
    machine.device.synchronize_stream(stream)
    np.testing.assert_array_equal(call.result(machine), call.expected)


@pytest.mark.parametrize("policy", ["lazy", "eager", "random"])
def test_calls_share_a_context_in_the_order_of_the_stream(make_machine: MakeMachine, policy: Any) -> None:
    """Each sets its own addresses, and a captured graph keeps those of its capture."""
    machine = make_machine("tensorrt-rtx", device=EmulatedDevice(policy))
    engine, stream = machine.load(), machine.device.create_stream()
    context = engine.context(1, machine.scratch(engine.scratch_bytes(1)), stream)
    first, second = (Call(machine, context, engine, number) for number in (1, 100))

    def both() -> None:
        first.ask(stream)
        second.ask(stream)

    graph = machine.device.capture(stream, both)
    third = Call(machine, context, engine, 1000)
    third.ask(stream)
    for _ in range(2):
        machine.device.array(first.output)[...] = 0
        machine.device.launch_graph(graph, stream)
        machine.device.synchronize_stream(stream)
        for call in (first, second, third):
            np.testing.assert_array_equal(call.result(machine), call.expected)


def test_context_is_prepared_once_in_order(machine: Machine) -> None:
    """Profile, shapes, memory: nothing is left to do in a call but addresses and the call itself."""
    engine, stream = machine.load(), machine.device.create_stream()
    scratch = machine.scratch(4 * SCRATCH)
    context = engine.context(3, scratch, stream)
    profile, *shapes, memory = machine.module.calls
    assert profile == ("set_optimization_profile_async", 1, stream)
    assert shapes == [
        ("set_input_shape", tensor.name, (3, *tensor.shape[1:])) for tensor in engine.described.inputs
    ]
    assert memory == ("set_device_memory", scratch.address, 4 * SCRATCH)
    machine.module.calls.clear()
    Call(machine, context, engine, 0).ask(stream)
    names = [tensor.name for tensor in (*engine.described.inputs, *engine.described.outputs)]
    assert [call[:2] for call in machine.module.calls] == [
        *(("set_tensor_address", name) for name in names),
        ("execute_async_v3", stream),
    ]


def test_contexts_share_scratch_memory(machine: Machine) -> None:
    """They have none of their own; the largest batch's serves all."""
    engine, stream = machine.load(), machine.device.create_stream()
    assert [engine.scratch_bytes(batch) for batch in (1, 3)] == [SCRATCH, 3 * SCRATCH]
    scratch = machine.scratch(engine.scratch_bytes(3))
    calls = [Call(machine, engine.context(batch, scratch, stream), engine, batch) for batch in (1, 3)]
    for call in calls:
        call.ask(stream)
    machine.device.synchronize_stream(stream)
    for call in calls:
        np.testing.assert_array_equal(call.result(machine), call.expected)
    strategies = {c.get_execution_context_allocation_strategy().name for c in machine.module.configs}
    assert strategies == {"USER_MANAGED"}


def test_capture_and_kernels(make_machine: MakeMachine) -> None:
    """RTX contexts leave graphs to the trajectory and have their kernels before anything is captured."""
    machine = make_machine("tensorrt-rtx")
    engine, stream = machine.load(), machine.device.create_stream()
    context = engine.context(1, machine.scratch(SCRATCH), stream)
    assert context.is_capturable(stream)
    assert not context.is_capturable(0)
    (config,) = machine.module.configs
    assert config.cuda_graph_strategy.name == "DISABLED"
    assert config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"


def test_enterprise_contexts_are_capturable(make_machine: MakeMachine) -> None:
    machine = make_machine("tensorrt")
    engine, stream = machine.load(), machine.device.create_stream()
    assert engine.context(1, machine.scratch(SCRATCH), stream).is_capturable(stream)


def test_layers_are_not_named_in_every_call(machine: Machine) -> None:
    engine, stream = machine.load(), machine.device.create_stream()
    context = engine.context(1, machine.scratch(SCRATCH), stream)
    assert context._context.nvtx_verbosity.name == "NONE"


def test_scratch_that_is_too_small_or_unaligned(machine: Machine) -> None:
    engine, stream = machine.load(), machine.device.create_stream()
    scratch = machine.scratch(3 * SCRATCH)
    with pytest.raises(BackendError, match=r"^refiner guided: 1000 bytes of scratch .* at least 3000 at"):
        engine.context(3, replace(scratch, shape=(SCRATCH,)), stream)
    with pytest.raises(BackendError, match=r"3000 bytes of scratch memory at 0x\w+40, .* multiple of 256"):
        engine.context(3, replace(scratch, address=scratch.address + 64), stream)
    assert machine.module.calls == []


def test_batch_without_a_profile(machine: Machine) -> None:
    with pytest.raises(BackendError, match=r"^refiner guided: .*has batches 1, 3, not 2; .* --batch 2$"):
        machine.load().scratch_bytes(2)


@pytest.mark.parametrize(
    ("side", "change", "message"),
    [
        ("inputs", {"guidance": None}, r"inputs are \[.*'state', 'velocity'\], expected \['guidance', "),
        ("outputs", {"offset": None}, r"outputs are \[\], expected \['offset'\]"),
        (
            "inputs",
            {"guidance": {"dtype": "float16"}},
            r"guidance is float16 \[1\] at .*, expected float32 \[1\]",
        ),
        (
            "inputs",
            {"guidance": {"shape": (3,)}},
            r"guidance is float32 \[3\] at .*, expected float32 \[1\] at",
        ),
        (
            "inputs",
            {"guidance": {"address": 64}},
            r"guidance is float32 \[1\] at 0x40, .* at a multiple of 256$",
        ),
        ("outputs", {"offset": {"address": 0}}, r"offset is float32 \[1, 1, 2, 4, 4\] at 0x0, expected"),
    ],
)
def test_arrays_that_do_not_fit(machine: Machine, side: str, change: dict[str, Any], message: str) -> None:
    engine, stream = machine.load(), machine.device.create_stream()
    context = engine.context(1, machine.scratch(SCRATCH), stream)
    call = Call(machine, context, engine, 0)
    arrays: dict[str, dict[str, DeviceArray]] = {"inputs": call.placed, "outputs": {"offset": call.output}}
    ((name, fields),) = change.items()
    array = arrays[side].pop(name)
    if fields is not None:
        arrays[side][name] = replace(array, **fields)
    with pytest.raises(BackendError, match=rf"^refiner guided: {message}"):
        context.bind(arrays["inputs"], arrays["outputs"])


def test_altered_plan_is_not_loaded(machine: Machine) -> None:
    bundle = Bundle.open(machine.bundle)
    file = machine.bundle / bundle.manifest.engine("refiner", "guided", machine.backend).file
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match=r"refiner.guided.fp16.plan: its content is not what was built"):
        machine.load()


def test_every_engine_of_a_bundle(make_machine: MakeMachine) -> None:
    """Fake plans compute what the bundle's float32 engines do: whole trajectories can run on them."""
    machine = make_machine("tensorrt-rtx")
    machine.module.compute = compute = by_onnxruntime(machine.bundle)
    stream = machine.device.create_stream()
    described = [e for e in Bundle.open(machine.bundle).manifest.engines if e.backend == machine.backend]
    assert {engine.network for engine in described} >= {"predictor", "refiner", "decoder"}
    for entry, batch in [(e, batch) for e in described for batch in e.batches]:
        engine = machine.load(entry.network, entry.variant)
        inputs = {name: array % 3 for name, array in arguments(engine, batch).items()}
        ((name, expected),) = compute(entry.name, inputs).items()
        output = machine.put(np.zeros_like(expected))
        placed = {name: machine.put(array) for name, array in inputs.items()}
        context = engine.context(batch, machine.scratch(engine.scratch_bytes(batch)), stream)
        context.bind(placed, {name: output})(stream)
        machine.device.synchronize_stream(stream)
        np.testing.assert_array_equal(machine.device.array(output), expected)


def test_several_engines_live_side_by_side(make_machine: MakeMachine) -> None:
    machine = make_machine("tensorrt-rtx")
    names = {machine.load(n, v).described.name for n, v in (("predictor", "guided"), ("decoder", None))}
    assert names == {"predictor guided", "decoder"}
