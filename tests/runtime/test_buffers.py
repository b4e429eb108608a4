"""Memory layouts: everything a trajectory needs, aligned, and nothing on top of anything else."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from flowturbo_trt.bundle.manifest import Model
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend_onnxruntime import NAME
from flowturbo_trt.runtime.buffers import (
    Block,
    DeviceBlock,
    Field,
    HostBlock,
    Layout,
    plan_layout,
    plan_results,
    register_shape,
    sum_fields,
)
from flowturbo_trt.runtime.conditioning import Conditioning, plan_conditioning
from flowturbo_trt.runtime.device import ALIGNMENT, DeviceArray
from flowturbo_trt.runtime.launch_plan import plan_launches
from flowturbo_trt.sampling.program import Register
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.trace import trace

BLOCK = Block(
    (Field("a", (3, 5)), Field("b", (2, 7), "int64"), Field("c", (11, 3), "uint8"), Field("d", (1,)))
)
SCHEDULES = ["H1P5R3", "E1", "AB4x6R1", "H2P2R1:guided=0.2..0.6"]


def layout(path: Path, text: str, batch: int, *, pads: bool = False) -> Layout:
    manifest = Bundle.open(path).manifest
    program = trace(Schedule.parse(text), "guided")
    conditionings = plan_conditioning(manifest, program, batch, NAME, pads=pads)
    return plan_layout(plan_launches(program), batch, manifest.model, conditionings)


@pytest.fixture
def model(golden_bundle: Path) -> Model:
    return Bundle.open(golden_bundle).manifest.model


def test_sizes_and_offsets() -> None:
    assert ALIGNMENT == 256
    assert [field.nbytes for field in BLOCK.fields] == [60, 112, 33, 4]
    assert BLOCK.offsets == {"a": 0, "b": 256, "c": 512, "d": 768}
    assert BLOCK.nbytes == 1024
    assert BLOCK.by_name["c"] is BLOCK.fields[2]
    exact = Block((Field("a", (64,)), Field("b", (65,)), Field("c", (0,)), Field("d", (1,))))
    assert exact.offsets == {"a": 0, "b": 256, "c": 768, "d": 768}
    assert exact.nbytes == 1024
    assert (Block(()).nbytes, Block(()).offsets) == (0, {})


@pytest.mark.parametrize("batch", [1, 3, 65])
@pytest.mark.parametrize("text", SCHEDULES)
def test_nothing_overlaps(golden_either: Path, text: str, batch: int) -> None:
    for block in layout(golden_either, text, batch, pads=True).blocks:
        ends = 0
        assert len(block.offsets) == len(block.fields)
        for field in block.fields:
            start = block.offsets[field.name]
            assert start % ALIGNMENT == 0
            assert 0 <= start - ends < ALIGNMENT
            ends = start + field.nbytes
        assert 0 <= block.nbytes - ends < ALIGNMENT


def names(block: Block) -> Iterator[tuple[str, tuple[int, ...], str]]:
    return ((field.name, field.shape, field.dtype) for field in block.fields)


def test_layout_of_fused_networks(golden_fused_bundle: Path) -> None:
    """Every evaluation has times of its own; H1 takes two states and two guided velocities."""
    found = layout(golden_fused_bundle, "H1", 3)
    assert list(names(found.inputs)) == [
        ("register0", (3, 4, 8, 8), "float32"),
        ("guidance", (3,), "float32"),
        ("label", (3,), "int64"),
        ("coefficients", (5, 3), "float32"),
        ("time0", (3,), "float32"),
        ("time1", (3,), "float32"),
    ]
    velocity = (3, 2, 4, 8, 8)
    assert sorted(names(found.work)) == [
        ("register1", velocity, "float32"),
        ("register2", (3, 4, 8, 8), "float32"),
        ("register3", velocity, "float32"),
    ]
    assert list(names(found.results)) == [("image", (3, 16, 16, 3), "uint8")]
    assert found.nbytes == sum(block.nbytes for block in found.blocks)


def test_layout_of_hoisted_networks(golden_bundle: Path) -> None:
    """Times and labels for the conditioner's rows, padding included; modulations where no copy goes."""
    manifest = Bundle.open(golden_bundle).manifest
    widths = {
        network: manifest.engine(f"{network}_conditioner", None, NAME).outputs[0].shape[1]
        for network in ("predictor", "refiner")
    }
    assert widths["predictor"] != widths["refiner"]
    found = layout(golden_bundle, "H1P1R1:guided=0..0.5", 3, pads=True)
    inputs, work = dict.fromkeys(names(found.inputs)), dict.fromkeys(names(found.work))
    for network, M in widths.items():
        assert (f"{network}.time", (64,), "float32") in inputs
        assert (f"{network}.label", (64,), "int64") in inputs
        assert (f"{network}.modulation", (64, M), "float32") in work
    assert ("predictor.null_modulation", (64, widths["predictor"]), "float32") in work
    assert ("predictor.null_label", (64,), "int64") in work
    # The refiner is unguided throughout.
    assert not [name for name, _, _ in (*inputs, *work) if name.startswith("refiner.null")]
    assert not [name for name, _, _ in inputs if name.startswith("time")]
    rows = layout(golden_bundle, "H1P1R1:guided=0..0.5", 3).inputs.by_name
    assert (rows["predictor.time"].shape, rows["refiner.time"].shape) == ((9,), (6,))


def test_every_register_once(golden_either: Path) -> None:
    for text in SCHEDULES:
        plan = plan_launches(trace(Schedule.parse(text), "guided"))
        found = layout(golden_either, text, 2)
        held = [f.name for block in found.blocks for f in block.fields if f.name.startswith("register")]
        assert sorted(held) == sorted(f"register{slot}" for slot in range(len(plan.slots)))
        # A request writes the noise; nothing else of what networks write is copied with it.
        assert [f.name for f in found.inputs.fields if f.name in held] == [f"register{plan.noise}"]


def test_latents_only_models(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    plan = plan_launches(trace(Schedule.parse("H1"), "guided"))
    model = Model(**(vars(manifest.model) | {"image": None}))
    assert plan_layout(plan, 2, model, {}).results == Block(())


def test_register_shapes(model: Model, tiny_bundle: Path) -> None:
    assert register_shape(Register("state"), 2, model) == (2, 4, 8, 8)
    assert register_shape(Register("velocity", "guided"), 2, model) == (2, 2, 4, 8, 8)
    assert register_shape(Register("velocity", "unguided"), 2, model) == (2, 1, 4, 8, 8)
    # Guided in all channels: one half.
    all_channels = Bundle.open(tiny_bundle).manifest.model
    assert register_shape(Register("velocity", "guided"), 2, all_channels) == (2, 1, 2, 4, 4)


def test_host_block() -> None:
    """Views of one piece of memory at their offsets, zeros at first."""
    block = HostBlock(BLOCK)
    assert block.memory.nbytes == BLOCK.nbytes
    assert block.memory.ctypes.data % ALIGNMENT == 0
    assert not block.memory.any()
    for field in BLOCK.fields:
        array = block.arrays[field.name]
        assert (array.shape, str(array.dtype), array.nbytes) == (field.shape, field.dtype, field.nbytes)
        assert array.ctypes.data == block.memory.ctypes.data + BLOCK.offsets[field.name]
        assert array.flags.c_contiguous
        assert array.flags.writeable
    for n, array in enumerate(block.arrays.values()):
        array[...] = n + 1
    assert [set(array.ravel().tolist()) for array in block.arrays.values()] == [{1}, {2}, {3}, {4}]
    np.testing.assert_array_equal(block.memory[:60].view(np.float32), np.ones(15))


def test_host_block_in_given_memory() -> None:
    memory = np.full(BLOCK.nbytes, 255, dtype=np.uint8)
    block = HostBlock(BLOCK, memory)
    assert not memory.any()
    block.arrays["b"][1, 6] = -1
    assert memory[256 + 13 * 8 : 256 + 112].tolist() == [255] * 8
    assert np.count_nonzero(memory) == 8


def test_device_block() -> None:
    block = DeviceBlock(BLOCK, 4096)
    assert (block.address, block.nbytes) == (4096, 1024)
    assert block.arrays["b"] == DeviceArray(4096 + 256, (2, 7), "int64")
    assert list(block.arrays) == ["a", "b", "c", "d"]


def test_rows_of_modulations_are_aligned(golden_bundle: Path) -> None:
    """Engines are bound to the rows of a time, and conditioners to those of a call."""
    manifest = Bundle.open(golden_bundle).manifest
    program = trace(Schedule.parse("H1P5R3"), "guided")
    plan: dict[str, Conditioning] = plan_conditioning(manifest, program, 1, NAME, pads=True)
    for conditioning in plan.values():
        for slot in conditioning.slots:
            assert conditioning.rows_at(slot).start * conditioning.width * 4 % ALIGNMENT == 0
        for call in range(conditioning.calls):
            assert conditioning.call_rows(call).start * 4 % ALIGNMENT == 0


@pytest.mark.parametrize("text", SCHEDULES)
def test_arrays_beside_the_layout(model: Model, text: str) -> None:
    """What a run gives, and one array of each register type that sums are formed with."""
    plan = plan_launches(trace(Schedule.parse(text), "guided"))
    results = {field.name: (field.shape, field.dtype) for field in plan_results(plan, 3, model).fields}
    assert results == {"latents": ((3, 4, 8, 8), "float32"), "image": ((3, 16, 16, 3), "uint8")}
    latents_only = Model(**(vars(model) | {"image": None}))
    assert [field.name for field in plan_results(plan, 3, latents_only).fields] == ["latents"]
    sums = {field.name: field.shape for field in sum_fields(plan, 3, model)}
    assert sums == {str(register): register_shape(register, 3, model) for register in plan.slots}
