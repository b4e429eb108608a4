"""TensorRT of both flavours behind a pipeline: fake plans that compute what the ONNX engines do."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.metrics import relative_l2
from flowturbo_trt.runtime.backend_tensorrt import TensorRtEngines, open_backend
from flowturbo_trt.runtime.cuda_backend import CudaBackend
from flowturbo_trt.runtime.device import CaptureError
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.tests.bundles import edit_manifest, latents
from flowturbo_trt.tests.emulated_kernels import needs_compiler
from flowturbo_trt.tests.emulated_streams import POLICIES, Policy
from flowturbo_trt.tests.fake_tensorrt import SCRATCH, RtxExecutionContext
from flowturbo_trt.tests.fake_tensorrt_plans import FakePlan, by_onnxruntime
from flowturbo_trt.tests.runtime.emulated_machines import (
    NOTHING,
    WatchedDevice,
    fill,
    held,
    machine,
    program_of,
    run,
)
from flowturbo_trt.tests.runtime.tensorrt_machines import FLAVOURS, Machine, MakeMachine, machine_maker

pytestmark = needs_compiler
CONDITIONER_ROWS = 64
LABELS = [0, 2, 1, 1, 2, 0, 1]


class Opened:
    """A bundle of fake plans on an emulated GPU, as a backend."""

    def __init__(self, found: Machine) -> None:
        assert isinstance(found.device, WatchedDevice)
        self.machine, self.device, self.module = found, found.device, found.module
        self.module.compute = by_onnxruntime(found.bundle)
        self.bundle = Bundle.open(found.bundle)
        self.runtime = found.open()
        self.backend: CudaBackend = open_backend(self.bundle, self.runtime, self.device)

    @property
    def engines(self) -> TensorRtEngines:
        found = self.backend._engines
        assert isinstance(found, TensorRtEngines)
        return found

    @property
    def loaded(self) -> set[str]:
        """The files of the plans that are loaded, without their folder."""
        return {Path(file).name for file in self.engines._loaded}

    def pipeline(self) -> Pipeline:
        return Pipeline(self.bundle, self.backend)

    @property
    def held(self) -> tuple[int, ...]:
        return held(self.device.counters)


Open = Callable[..., Opened]


@pytest.fixture
def make_machine(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeMachine:
    return machine_maker(tiny_bundle, tmp_path, monkeypatch)


@pytest.fixture
def opened(make_machine: MakeMachine) -> Open:
    """Give a function that opens the tiny bundle's fake plans for a backend; for the rest, as in `make`."""

    def opened(backend: str = "tensorrt-rtx", policy: Policy = "lazy", **options: Any) -> Opened:
        return Opened(make_machine(backend, device=WatchedDevice(policy), **options))

    return opened


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("backend", FLAVOURS)
def test_whole_pipelines(opened: Open, tiny_bundle: Path, backend: str, policy: Policy) -> None:
    """Equal to ONNX Runtime's engines on the same rows to the bit, and to those of a CPU closely."""
    found = opened(backend, policy)
    pipeline, same = found.pipeline(), machine(tiny_bundle).pipeline()
    host = Pipeline.load(tiny_bundle, threads=1)
    for schedule in ("H1P1R1", "H1P1R1@0,0.2,0.7,1", "AB3x4R1"):
        for scale in (1, [1.5, 2, 3, 1, -1, 0, 2]):
            asked: dict[str, Any] = {"labels": LABELS, "guidance": scale, "schedule": schedule}
            images = pipeline(**asked)
            np.testing.assert_array_equal(images, same(**asked))
            np.testing.assert_array_equal(pipeline(**asked, on_step=lambda step: step.preview()), images)
            assert relative_l2(latents(pipeline, **asked), latents(host, **asked)) <= 1e-5
    pipeline.close()
    assert found.held == NOTHING


def test_contexts_are_a_trajectorys(opened: Open) -> None:
    """One for each of its engines, however often it is called; another trajectory has others."""
    found = opened()
    first = found.backend.bind(program_of("H1P5R3"), 3)
    run(first)
    fill(first)
    previews: list[Any] = []
    first.start(decode=True, on_step=lambda mark, index: previews.append(first.preview(index)))
    # Predictor, refiner, their conditioners, decoder.
    assert len(found.module.configs) == 5
    second = found.backend.bind(program_of("H1P5R3"), 3)
    assert len(found.module.configs) == 10
    np.testing.assert_array_equal(run(second, 4), run(first, 4))


def test_scratch_memory_is_shared(opened: Open) -> None:
    """Every context works in that of the largest engine that was loaded."""
    found = opened()
    found.backend.prepare(program_of("H1R1"))
    before = found.device.counters.live_allocations
    trajectories = [found.backend.bind(program_of("H1R1"), batch) for batch in (1, 3)]
    given = [arguments for call, *arguments in found.module.calls if call == "set_device_memory"]
    assert len(given) == 10
    ((address, size),) = {tuple(arguments) for arguments in given}
    assert size == CONDITIONER_ROWS * SCRATCH
    # The graph's memory and four blocks beside it each, and scratch once.
    assert found.device.counters.live_allocations == before + 2 * 5 + 1
    for trajectory in trajectories:
        trajectory.close()
    assert found.device.counters.live_allocations == before + 1
    found.backend.close()
    assert found.held == NOTHING
    assert address


def test_scratch_memory_grows(opened: Open) -> None:
    """For an engine that is loaded later and needs more; the old stays, which graphs may work in."""
    found = opened()
    engines = found.engines
    engines.engine("predictor", "guided", 1)
    assert [scratch.nbytes for scratch in engines._scratch] == [3 * SCRATCH]
    engines.engine("decoder", None, 3)
    assert len(engines._scratch) == 1
    engines.engine("predictor_conditioner", None, CONDITIONER_ROWS)
    engines.engine("refiner", "guided", 3)
    assert [scratch.nbytes for scratch in engines._scratch] == [3 * SCRATCH, CONDITIONER_ROWS * SCRATCH]
    addresses = [arguments[0] for call, *arguments in found.module.calls if call == "set_device_memory"]
    small, large = (scratch.address for scratch in engines._scratch)
    assert addresses == [small, small, large, large]
    found.backend.close()
    assert found.held == NOTHING


def test_only_what_is_needed_is_loaded(
    golden_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other variant, and no refiner for a schedule without one; nothing twice."""
    found = Opened(machine_maker(golden_bundle, tmp_path, monkeypatch)("tensorrt", device=WatchedDevice()))
    found.backend.prepare(program_of("H2"))
    names = {"predictor.guided.fp16.plan", "predictor_conditioner.fp16.plan", "decoder.fp16.plan"}
    assert found.loaded == names
    trajectory = found.backend.bind(program_of("H1"), 2)
    assert found.loaded == names
    run(trajectory)
    engines = dict(found.engines._loaded)
    found.backend.prepare(program_of("H1R1", "unguided"))
    assert found.loaded == names | {
        "predictor.unguided.fp16.plan",
        "refiner.unguided.fp16.plan",
        "refiner_conditioner.fp16.plan",
    }
    assert all(found.engines._loaded[file] is engine for file, engine in engines.items())


def separate(bundle: Path, backend: str) -> None:
    """Let a bundle have one plan for each batch size."""
    import hashlib

    def split(data: dict[str, Any]) -> None:
        engines = []
        for engine in data["engines"]:
            if engine["backend"] != backend or len(engine["batches"]) == 1:
                engines.append(engine)
                continue
            plan = FakePlan.read((bundle / engine["file"]).read_bytes())
            assert plan is not None
            for batch in engine["batches"]:
                file = engine["file"].replace(".plan", f".b{batch}.plan")
                content = replace(plan, profiles=((batch, batch, batch),)).serialize()
                (bundle / file).write_bytes(content)
                digest = hashlib.sha256(content).hexdigest()
                data["files"][file] = {"bytes": len(content), "sha256": digest}
                engines.append(engine | {"batches": [batch], "file": file})
        data["engines"] = engines

    edit_manifest(bundle, split)


def test_separate_plans(make_machine: MakeMachine, tiny_bundle: Path) -> None:
    """Every batch size has its own, which gives the same."""
    made = make_machine("tensorrt", device=WatchedDevice())
    separate(made.bundle, "tensorrt")
    found = Opened(made)
    found.backend.bind(program_of("H1R1"), 1).close()
    assert found.loaded == {
        *("predictor.guided.fp16.b1.plan", "refiner.guided.fp16.b1.plan", "decoder.fp16.b1.plan"),
        *("predictor_conditioner.fp16.plan", "refiner_conditioner.fp16.plan"),
    }
    pipeline, expected = found.pipeline(), machine(tiny_bundle).pipeline()
    np.testing.assert_array_equal(pipeline(LABELS), expected(LABELS))
    assert "predictor.guided.fp16.b3.plan" in found.loaded
    pipeline.close()
    assert found.held == NOTHING


def test_an_engine_that_cannot_be_captured(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT for RTX can tell, once it has run: the error names it."""
    found = opened()
    stock = RtxExecutionContext.is_stream_capturable
    asked: list[int] = []

    def refuse(context: RtxExecutionContext, stream: int) -> bool:
        asked.append(stream)
        assert ("execute_async_v3", stream) in found.module.calls
        return context._engine._plan.name != "refiner guided" and stock(context, stream)

    monkeypatch.setattr(RtxExecutionContext, "is_stream_capturable", refuse)
    trajectory = found.backend.bind(program_of("H1R1"), 1)
    with pytest.raises(CaptureError, match=r"^refiner guided: its engine .* or use --backend onnxruntime$"):
        run(trajectory)
    assert set(asked) == {found.backend._streams.compute}
    assert found.device.counters.live_graphs == 0
    trajectory.close()
    found.backend.close()
    assert found.held == NOTHING


def test_kernels_are_kept_when_a_pipeline_ends(opened: Open) -> None:
    """Also those that were compiled after contexts were made, in their first run."""
    found = opened()
    trajectory = found.backend.bind(program_of("E1"), 1)
    run(trajectory)
    for engine in found.engines._loaded.values():
        assert engine._kernels is not None
        engine._kernels.cache.add("compiled late")
    trajectory.close()
    kept = [file.read_bytes() for file in found.machine.kernels.glob("*.cache")]
    assert not any(b"compiled late" in content for content in kept)
    found.backend.close()
    kept = [file.read_bytes() for file in found.machine.kernels.glob("*.cache")]
    assert len(kept) == 3
    assert all(b"compiled late" in content for content in kept)
