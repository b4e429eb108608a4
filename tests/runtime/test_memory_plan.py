"""The memory plan against what trajectories really allocate, on the host and on emulated GPUs."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import BundleError, Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime import host_trajectory
from flowturbo_trt.runtime.backend import BackendError
from flowturbo_trt.runtime.backend_onnxruntime import OnnxRuntimeBackend
from flowturbo_trt.runtime.backend_tensorrt import TensorRtEngines, open_backend
from flowturbo_trt.runtime.buffers import HostBlock
from flowturbo_trt.runtime.cuda_backend import CudaBackend
from flowturbo_trt.runtime.memory_plan import MemoryPlan, plan_memory
from flowturbo_trt.runtime.onnxruntime_cuda import OnnxRuntimeEngines
from flowturbo_trt.runtime.programs import find_program
from flowturbo_trt.sampling.program import Program
from flowturbo_trt.tests.emulated_device import EmulatedDevice
from flowturbo_trt.tests.emulated_engines import open_emulated
from flowturbo_trt.tests.fake_tensorrt import SCRATCH
from flowturbo_trt.tests.runtime.tensorrt_machines import machine_maker

SCHEDULES = ("H1P1R1", "H2", "H3P2R2:guided=0.2..0.5")


class CountingDevice(EmulatedDevice):
    """Counts the bytes of pinned memory that are in use."""

    pinned_bytes = 0

    def allocate_pinned(self, size: int) -> NDArray[np.uint8]:
        self.pinned_bytes += size
        return super().allocate_pinned(size)

    def free_pinned(self, array: NDArray[np.uint8]) -> None:
        self.pinned_bytes -= array.nbytes
        super().free_pinned(array)


def program_of(manifest: Manifest, schedule: str) -> Program:
    return find_program(manifest, schedule, "guided")


def check_device(plan: MemoryPlan, program: Program, backend: CudaBackend, device: CountingDevice) -> None:
    """Hold a plan against what is allocated for each of its batches."""
    backend.prepare(program)
    for expected in plan.trajectories:
        before = device.counters.live_bytes, device.pinned_bytes
        trajectory = backend.bind(program, expected.batch)
        held = device.counters.live_bytes - before[0], device.pinned_bytes - before[1]
        assert held == (expected.total, expected.pinned)
        trajectory.start(decode=True).images()
        assert held == (device.counters.live_bytes - before[0], device.pinned_bytes - before[1])
    assert plan.total == plan.weights + device.counters.live_bytes
    assert plan.pinned == device.pinned_bytes


@pytest.fixture
def schedules(golden_either: Path) -> Iterator[tuple[Bundle, Program]]:
    """A bundle and the programs of several schedules of it."""
    bundle = Bundle.open(golden_either)
    return ((bundle, program_of(bundle.manifest, schedule)) for schedule in SCHEDULES)


def test_onnxruntime_on_a_gpu(schedules: Iterator[tuple[Bundle, Program]]) -> None:
    for bundle, program in schedules:
        device = CountingDevice()
        plan = plan_memory(bundle.manifest, program, (1, 2), "onnxruntime", on_gpu=True)
        check_device(plan, program, open_emulated(bundle, device, fixes_rows=False), device)


@pytest.mark.parametrize("backend", ["tensorrt-rtx", "tensorrt"])
def test_plans(backend: str, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the scratch memory, which is named as unknown."""
    device = CountingDevice()
    machine = machine_maker(tiny_bundle, tmp_path, monkeypatch)(backend, device=device)
    bundle = Bundle.open(machine.bundle)
    program = program_of(bundle.manifest, "H1P1R1")
    plan = plan_memory(bundle.manifest, program, (1, 3), backend, on_gpu=True)
    opened = open_backend(bundle, machine.open(), device)
    opened.prepare(program)
    trajectories = [opened.bind(program, batch) for batch in (1, 3)]
    # Of the conditioner's 64 rows: all engines share what the largest needs.
    assert device.counters.live_bytes == plan.total - plan.weights + SCRATCH * 64
    assert device.pinned_bytes == plan.pinned
    assert plan.unknown == "scratch memory of the plans, and what CUDA takes for itself"
    for trajectory in trajectories:
        trajectory.close()
    opened.close()


def test_host(schedules: Iterator[tuple[Bundle, Program]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks may begin up to an alignment later in what NumPy allocates."""
    blocks: list[HostBlock] = []

    class RecordedBlock(HostBlock):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            blocks.append(self)

    monkeypatch.setattr(host_trajectory, "HostBlock", RecordedBlock)
    for bundle, program in schedules:
        plan = plan_memory(bundle.manifest, program, (1, 2), "onnxruntime", on_gpu=False)
        backend = OnnxRuntimeBackend(bundle, 1)
        for expected in plan.trajectories:
            blocks.clear()
            trajectory = backend.bind(program, expected.batch)
            sums = sum(array.nbytes for array in trajectory._scratch.values())
            assert sum(block.memory.nbytes for block in blocks) + sums == expected.total
            assert (expected.staging, expected.pinned) == (0, 0)
        assert plan.unknown == "activations within the engines"


def test_weights_are_the_files_of_needed_engines(golden_bundle: Path) -> None:
    """Whatever the batches; guided and unguided engines only where the program evaluates them."""
    manifest = Bundle.open(golden_bundle).manifest

    def weights(schedule: str, *networks: str, variants: tuple[str | None, ...] = ("guided", None)) -> None:
        program = program_of(manifest, schedule)
        engines = [
            engine
            for engine in manifest.engines
            if engine.network in networks and engine.variant in variants and engine.backend == "onnxruntime"
        ]
        files = {file for engine in engines for file in engine.files}
        expected = sum(manifest.files[file].bytes for file in files)
        assert len(engines) >= len(networks)
        for batches in ((1,), (1, 2)):
            plan = plan_memory(manifest, program, batches, "onnxruntime", on_gpu=False)
            assert plan.weights == expected

    with_predictor = ("predictor", "predictor_conditioner", "decoder")
    weights("H2", *with_predictor)
    weights("H1P1R1", *with_predictor, "refiner", "refiner_conditioner")
    weights("H4:guided=0.5..0.75", *with_predictor, variants=("guided", "unguided", None))


def test_a_plan_for_each_batch_is_loaded_with_the_others(golden_bundle: Path) -> None:
    """A file that several engines share counts once, one of its own each."""
    manifest = Bundle.open(golden_bundle).manifest
    program = program_of(manifest, "H2")
    one = plan_memory(manifest, program, (1,), "onnxruntime", on_gpu=False)
    decoder = manifest.engine("decoder", None, "onnxruntime")
    apart = replace(decoder, batches=(2,), file=manifest.engine("refiner", "guided", "onnxruntime").file)
    shared = replace(manifest, engines=(*manifest.engines, replace(decoder, batches=(2,))))
    more = replace(manifest, engines=(*manifest.engines, apart))
    assert plan_memory(shared, program, (1,), "onnxruntime", on_gpu=False).weights == one.weights
    extra = sum(manifest.files[file].bytes for file in {*apart.files} - {*decoder.files})
    assert plan_memory(more, program, (1,), "onnxruntime", on_gpu=False).weights == one.weights + extra


def test_sizes_by_formula(golden_fused_bundle: Path, golden_bundle: Path) -> None:
    """H2 holds two states and two guided velocities (2,2,4,8,8), on the host one more of each for sums."""
    fused, hoisted = (
        plan_memory(manifest, program_of(manifest, "H2"), (2,), "onnxruntime", on_gpu=False).trajectories[0]
        for manifest in (Bundle.open(golden_fused_bundle).manifest, Bundle.open(golden_bundle).manifest)
    )
    state, velocity = 2 * 4 * 8 * 8 * 4, 2 * 2 * 4 * 8 * 8 * 4
    assert fused.registers == hoisted.registers == 3 * (state + velocity)
    assert fused.images == hoisted.images == 2 * 16 * 16 * 3
    # Three times, conditional and null; 3 blocks of 6, a final layer of 2 times 96 values, up to a
    # multiple of 64.
    assert fused.modulations == 0
    assert hoisted.modulations == 2 * (3 * 2) * 1920 * 4


def test_backends_that_fix_rows_are_those_made_for_gpus(golden_bundle: Path) -> None:
    """Padding to a conditioner's rows is what tells plans from sessions."""
    assert (TensorRtEngines.fixes_rows, OnnxRuntimeEngines.fixes_rows) == (True, False)
    bundle = Bundle.open(golden_bundle)
    engines = [e for e in bundle.manifest.engines if e.backend == "onnxruntime"]
    plans = tuple(replace(engine, backend="tensorrt") for engine in engines)
    manifest = replace(bundle.manifest, engines=(*engines, *plans))
    program = program_of(manifest, "H2")
    padded, exact = (
        plan_memory(manifest, program, (1,), backend, on_gpu=True).trajectories[0].modulations
        for backend in ("tensorrt", "onnxruntime")
    )
    assert padded == 64 / 3 * exact


def test_mistakes(golden_bundle: Path) -> None:
    manifest = Bundle.open(golden_bundle).manifest
    program = program_of(manifest, "H2")
    with pytest.raises(BackendError, match="backend 'tensorflow' is not known; use onnxruntime"):
        plan_memory(manifest, program, (1,), "tensorflow", on_gpu=False)
    with pytest.raises(BundleError, match="no guided predictor engine for openvino"):
        plan_memory(manifest, program, (1,), "openvino", on_gpu=False)
    with pytest.raises(BundleError, match="batch 3: the bundle was built for 1, 2; take one of these"):
        plan_memory(manifest, program, (1, 3), "onnxruntime", on_gpu=False)
    undecoded = replace(manifest, engines=tuple(e for e in manifest.engines if e.network != "decoder"))
    with pytest.raises(BundleError, match="no decoder engine for onnxruntime"):
        plan_memory(undecoded, program, (1,), "onnxruntime", on_gpu=False)
