"""OpenVINO as backend: numbers, bound arrays, precisions, and what it answers to what it cannot run."""

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.metrics import relative_l2
from flowturbo_trt.evaluation.parity.thresholds import thresholds
from flowturbo_trt.runtime.backend import BackendError
from flowturbo_trt.runtime.backend_openvino import NAME, OpenVinoBackend, precisions
from flowturbo_trt.runtime.pipeline import Pipeline, Step
from flowturbo_trt.tests.bundles import SCHEDULES, changed_copy, latents
from flowturbo_trt.tests.runtime.openvino_bundles import as_openvino

openvino = pytest.importorskip("openvino")

if TYPE_CHECKING:
    from flowturbo_trt.export.options import BuildOptions

Arrays = Mapping[str, NDArray[Any]]
ROOT = Path(__file__).parents[2]
LABELS = [7, 0, 1, 9, 3]
needs_bf16 = pytest.mark.skipif(
    "bf16" not in precisions(openvino.Core()), reason="this processor has no bf16 arithmetic"
)
BUILDING = ("torch", "onnx", "onnxruntime", "diffusers", "onnx_ir")
PROBE = """
import json, socket, sys

def connect(*arguments):
    raise AssertionError("the network was asked for")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = connect
from flowturbo_trt import Pipeline

images = Pipeline.load(sys.argv[1], backend="openvino", threads=1)([1, 2], schedule="H1P1R1")
print(json.dumps({"shape": images.shape, "loaded": [name for name in sys.argv[2:] if name in sys.modules]}))
"""


@pytest.fixture(scope="module")
def golden_path(golden_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return changed_copy(golden_bundle, tmp_path_factory.mktemp("openvino"), as_openvino("fp32"))


@pytest.fixture(scope="module")
def pipeline(golden_path: Path) -> Pipeline:
    return Pipeline.load(golden_path, backend=NAME, threads=1)


@pytest.fixture
def tiny(tiny_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """Give a function (precision, changes of its engines) that makes the tiny bundle one for OpenVINO."""
    return lambda precision="fp32", **changes: changed_copy(
        tiny_bundle, tmp_path, as_openvino(precision, **changes)
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_golden_states_and_velocities(pipeline: Pipeline, golden: Arrays, schedule: str) -> None:
    """The authors' own trajectories, step by step, both halves of every velocity."""
    n = len(golden["y"])
    expected_x, expected_v = golden[f"{schedule}_x"][1:, :n], golden[f"{schedule}_v"]
    states, velocities = np.full_like(expected_x, np.nan), np.full_like(expected_v, np.nan)

    def record(step: Step) -> None:
        states[step.index, step.rows] = step.state
        velocities[step.index, :n][step.rows] = step.velocity[:, 0]
        velocities[step.index, n:][step.rows] = step.velocity[:, 1]

    pipeline(golden["y"], noise=golden["z"], guidance=1.5, schedule=schedule, on_step=record)
    for found, expected in ((states, expected_x), (velocities, expected_v)):
        assert max(map(relative_l2, found, expected)) <= 1e-4


@pytest.mark.parametrize("guidance", [1, 1.5, 4])
@pytest.mark.parametrize("schedule", ["H1P5R3", "H2", "H1P1R1"])
def test_same_as_onnxruntime(
    pipeline: Pipeline, golden_pipeline: Pipeline, schedule: str, guidance: float
) -> None:
    given: dict[str, Any] = {"schedule": schedule, "guidance": guidance, "seeds": [5, 6, 7, 8, 2**63]}
    expected = latents(golden_pipeline, LABELS, **given)
    assert relative_l2(latents(pipeline, LABELS, **given), expected) < 1e-5


def test_images_are_those_of_onnxruntime(pipeline: Pipeline, golden_pipeline: Pipeline) -> None:
    difference = pipeline(LABELS).astype(int) - golden_pipeline(LABELS)
    assert np.abs(difference).max() <= 1


def test_calls_from_several_threads(pipeline: Pipeline) -> None:
    calls: list[dict[str, Any]] = [
        {"labels": LABELS[:n], "guidance": scale, "schedule": schedule}
        for n in (1, 2, 3)
        for scale in (1, 1.5)
        for schedule in ("H1P1R1", "H2")
    ]
    expected = [pipeline(**call) for call in calls]

    def work(offset: int) -> bool:
        order = [*range(offset, len(calls)), *range(offset)]
        return all(np.array_equal(pipeline(**calls[i]), expected[i]) for i in order)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(0, 12, 3))) == [True] * 4


def arrays_for(bundle: Bundle, network: str, rows: int) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    """Return random inputs of an engine, and an output full of NaN."""
    engine = bundle.manifest.engine(network, "guided", NAME)
    random = np.random.default_rng(3)
    inputs = {
        tensor.name: random.standard_normal((rows, *map(int, tensor.shape[1:]))).astype(tensor.dtype)
        for tensor in engine.inputs
    }
    (output,) = engine.outputs
    return inputs, np.full((rows, *map(int, output.shape[1:])), np.nan, np.float32)


@pytest.mark.parametrize("rows", [2, 1])
def test_calls_work_on_the_bound_arrays(golden_path: Path, golden_pipeline: Pipeline, rows: int) -> None:
    """What is in the inputs when it is called counts, and the output is written in place, every time."""
    bundle = Bundle.open(golden_path)
    backend = OpenVinoBackend(bundle, "cpu", 1)
    inputs, out = arrays_for(bundle, "refiner", rows)
    call = backend.engine("refiner", "guided").bind(inputs, {"offset": out})
    found = []
    for scale in (1, 2, 1):
        inputs["state"] *= scale
        out[...] = np.nan
        call()
        expected = golden_pipeline._backend.evaluate("refiner", "guided", inputs)
        assert relative_l2(out, expected) < 1e-5
        found.append(out.copy())
        inputs["state"] /= scale
    np.testing.assert_array_equal(found[0], found[2])
    assert relative_l2(found[1], found[0]) > 1e-2


def test_output_tensor_is_the_bound_array(golden_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after calls, and no copy of it is made."""
    requests: list[Any] = []
    create = openvino.CompiledModel.create_infer_request

    def keep(compiled: Any) -> Any:
        requests.append(create(compiled))
        return requests[-1]

    monkeypatch.setattr(openvino.CompiledModel, "create_infer_request", keep)
    bundle = Bundle.open(golden_path)
    backend = OpenVinoBackend(bundle, "cpu", 1)
    inputs, out = arrays_for(bundle, "predictor", 64)
    call = backend.engine("predictor", "guided").bind(inputs, {"velocity": out})
    call()
    tracemalloc.start()
    try:
        call()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < out.nbytes / 4
    (request,) = requests
    assert request.get_tensor("velocity").data.ctypes.data == out.ctypes.data
    for name, array in inputs.items():
        assert request.get_tensor(name).data.ctypes.data == array.ctypes.data


def test_arrays_that_do_not_fit(golden_path: Path) -> None:
    bundle = Bundle.open(golden_path)
    inputs, out = arrays_for(bundle, "predictor", 2)
    engine = OpenVinoBackend(bundle, "cpu", 1).engine("predictor", "guided")
    wrong = inputs | {"state": inputs["state"][:, :3].copy()}
    with pytest.raises(BackendError, match=r"^predictor guided: cannot be bound: .*incompatible") as caught:
        engine.bind(wrong, {"velocity": out})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("batches", "fixed"), [([1], True), ([1, 3], False)])
def test_weights_are_held_once(tiny: Callable[..., Path], batches: list[int], fixed: bool) -> None:
    """One compiled model serves all batch sizes; where there is but one, it is built in."""
    bundle = Bundle.open(tiny(batches=batches))
    backend = OpenVinoBackend(bundle, "cpu", 1)
    for network in ("predictor", "refiner"):
        compiled: Any = backend.engine(network, "guided")
        assert all(port.partial_shape.is_static == fixed for port in compiled._compiled.inputs)
    conditioner: Any = backend.engine("predictor_conditioner", None)
    assert not any(port.partial_shape.is_static for port in conditioner._compiled.inputs)


def test_each_engine_is_loaded_once(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    read = openvino.Core.read_model

    def watched(core: Any, path: Path) -> Any:
        loaded.append(path.name)
        return read(core, path)

    monkeypatch.setattr(openvino.Core, "read_model", watched)
    pipeline = Pipeline.load(tiny(), backend=NAME, threads=1)
    at_once = sorted(loaded)
    assert {"decoder.onnx", "predictor.guided.onnx", "refiner.guided.onnx"} <= set(at_once)
    for n in (1, 2, 3):
        pipeline([0] * n)
    assert sorted(loaded) == at_once == sorted(set(at_once))


@needs_bf16
def test_bf16(golden_bundle: Path, tmp_path: Path, golden_pipeline: Pipeline, golden: Arrays) -> None:
    """Near float32, and not float32."""
    lowered = changed_copy(golden_bundle, tmp_path, as_openvino("bf16"))
    pipeline = Pipeline.load(lowered, backend=NAME, threads=1)
    found = latents(pipeline, golden["y"], noise=golden["z"], guidance=1)
    expected = latents(golden_pipeline, golden["y"], noise=golden["z"], guidance=1)
    assert 1e-4 < relative_l2(found, expected) < thresholds("bf16").trajectory_relative_l2


def test_float32_is_asked_for(tiny: Callable[..., Path]) -> None:
    """By itself OpenVINO computes in bf16 where it can; threads are as many as allowed."""
    engine: Any = OpenVinoBackend(Bundle.open(tiny()), "cpu", 1).engine("predictor", "guided")
    asked = engine._compiled.get_property
    assert asked("INFERENCE_PRECISION_HINT") == openvino.Type.f32
    assert (asked("INFERENCE_NUM_THREADS"), asked("NUM_STREAMS")) == (1, 1)


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_threads(tiny: Callable[..., Path], tiny_pipeline: Pipeline, threads: int) -> None:
    found = Pipeline.load(tiny(), backend=NAME, threads=threads)([1, 2])
    assert np.abs(found.astype(int) - tiny_pipeline([1, 2])).max() <= 1


def test_bundle_for_openvino_alone(
    tiny_options: "BuildOptions", tiny_pipeline: Pipeline, tmp_path: Path, instant_export: list[str]
) -> None:
    """Built as the command builds it; without another backend's engines."""
    from flowturbo_trt.export.build import build

    bundle = build(replace(tiny_options, backends=(NAME,)), tmp_path / "bundle")
    assert {(e.backend, e.precision, e.key == {}) for e in bundle.manifest.engines} == {(NAME, "fp32", True)}
    found = latents(Pipeline.load(bundle.path, backend=NAME, threads=1), [0, 1, 2])
    assert relative_l2(found, latents(tiny_pipeline, [0, 1, 2])) < 1e-5


def test_what_a_process_loads(tiny: Callable[..., Path]) -> None:
    """Neither the libraries of the build machine, nor another backend's, nor a network."""
    path = tiny()
    before = sorted(path.parent.rglob("*"))
    process = [sys.executable, "-c", PROBE, str(path), *BUILDING]
    done = subprocess.run(process, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"shape": [2, 8, 8, 3], "loaded": []}
    assert done.stderr == ""
    assert sorted(path.parent.rglob("*")) == before
