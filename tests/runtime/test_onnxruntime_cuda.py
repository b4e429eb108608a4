"""ONNX Runtime on a GPU, with sessions that stand for its CUDA provider on an emulated device."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend import BackendError, UnsupportedError, load_backend
from flowturbo_trt.runtime.cuda_backend import CudaBackend
from flowturbo_trt.runtime.cuda_memory import Streams
from flowturbo_trt.runtime.onnxruntime_cuda import OnnxRuntimeEngines, provider_options
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.tests.bundles import edit_manifest
from flowturbo_trt.tests.emulated_kernels import needs_compiler
from flowturbo_trt.tests.emulated_streams import POLICIES, Policy
from flowturbo_trt.tests.runtime.emulated_machines import NOTHING, WatchedDevice, held, program_of, run
from flowturbo_trt.tests.runtime.fake_sessions import FakeSessions

NAMES = {
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
}


class Opened:
    """A bundle through a provider of ONNX Runtime on an emulated GPU."""

    def __init__(self, path: Path, policy: Policy, provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bundle, self.device = Bundle.open(path), WatchedDevice(policy)
        self.device.index = 2
        self.sessions = FakeSessions(self.device)
        monkeypatch.setattr(onnxruntime, "InferenceSession", self.sessions)
        self.streams = Streams.on(self.device)
        self.engines = OnnxRuntimeEngines(self.bundle, self.streams, 3, provider)
        self.backend = CudaBackend(self.bundle.manifest, self.streams, self.engines)

    @property
    def held(self) -> tuple[int, ...]:
        return held(self.device.counters)


Open = Callable[..., Opened]


@pytest.fixture
def opened(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    def opened(provider: str = "cuda", policy: Policy = "lazy", path: Path = tiny_bundle) -> Opened:
        return Opened(path, policy, provider, monkeypatch)

    return opened


@needs_compiler
@pytest.mark.parametrize("policy", POLICIES)
def test_whole_pipelines(
    golden_either: Path, golden_either_pipeline: Pipeline, opened: Open, policy: Policy
) -> None:
    """The CPU provider's numbers, whole and with callbacks, captured."""
    found = opened(policy=policy, path=golden_either)
    pipeline = Pipeline(found.bundle, found.backend)
    for schedule in ("H1P1R1", "H1P1R1@0,0.2,0.7,1", "H2R1:guided=0.4..1"):
        asked: dict[str, Any] = {"labels": [1, 2, 3], "guidance": [1.5, 3, 0], "schedule": schedule}
        expected = golden_either_pipeline(**asked)
        np.testing.assert_array_equal(pipeline(**asked), expected)
        np.testing.assert_array_equal(pipeline(**asked, on_step=lambda step: step.preview()), expected)
    assert found.device.counters.graph_launches > 0
    pipeline.close()
    assert found.held == NOTHING


@pytest.mark.parametrize("provider", NAMES)
def test_sessions(opened: Open, provider: str) -> None:
    """On the trajectory's stream and device, and no core kept busy; as few as there are engines."""
    found = opened(provider)
    for _ in range(2):
        found.backend.prepare(program_of("H1R1"))
    files = {session.path.name for session in found.sessions.opened}
    assert files == {
        *("predictor.guided.onnx", "refiner.guided.onnx", "decoder.onnx"),
        *("predictor_conditioner.onnx", "refiner_conditioner.onnx"),
    }
    assert len(found.sessions.opened) == len(files)
    for session in found.sessions.opened:
        assert session.options.get_session_config_entry("session.force_spinning_stop") == "1"
        assert session.options.intra_op_num_threads == 3
        given = dict(session.providers)
        assert list(given) == NAMES[provider]
        assert given["CPUExecutionProvider"] == {}
        assert given["CUDAExecutionProvider"] == {
            "device_id": "2",
            "user_compute_stream": str(found.streams.compute),
            "use_tf32": "0",
            "cudnn_conv_algo_search": "EXHAUSTIVE",
        }
        if provider == "tensorrt":
            own = given["TensorrtExecutionProvider"]
            assert own["user_compute_stream"] == str(found.streams.compute)
            assert (own["device_id"], own["trt_fp16_enable"], own["trt_bf16_enable"]) == ("2", "0", "0")


def test_sessions_take_any_rows(opened: Open) -> None:
    """They serve every batch size and trajectory, and are let go of in the end."""
    found = opened()
    engines = found.engines
    assert (engines.name, engines.fixes_rows, engines.must_capture) == ("onnxruntime", False, False)
    assert engines.engine("decoder", None, 1) is engines.engine("decoder", None, 3)
    found.backend.close()
    engines.engine("decoder", None, 1)
    assert len(found.sessions.opened) == 2


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8"])
def test_provider_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """TensorRT may use the precision that was asked for, and keeps what it builds by the graph's hash."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    streams = Streams.on(WatchedDevice())
    options = provider_options(streams, precision, "0123abcd")
    tensorrt = options["TensorrtExecutionProvider"]
    # It knows no option for fp8, and refuses names that it does not know.
    for name in ("fp16", "bf16", "int8"):
        assert tensorrt[f"trt_{name}_enable"] == str(int(precision == name))
    assert "trt_fp8_enable" not in tensorrt
    assert tensorrt["trt_engine_cache_enable"] == "1"
    folder = Path(tensorrt["trt_engine_cache_path"])
    assert folder.is_relative_to(tmp_path)
    assert "0123abcd" in folder.parts
    assert provider_options(streams, precision, "ffff")["TensorrtExecutionProvider"] != tensorrt
    assert options["CUDAExecutionProvider"].keys().isdisjoint({"trt_fp16_enable"})


def test_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept, and nothing fails."""
    monkeypatch.setattr("flowturbo_trt.runtime.onnxruntime_cuda.cache_folder", lambda name: None)
    options = provider_options(Streams.on(WatchedDevice()), "fp32", "0123abcd")
    assert not [name for name in options["TensorrtExecutionProvider"] if "cache" in name]


@needs_compiler
def test_what_is_bound_where(opened: Open) -> None:
    """The trajectory's own arrays on its own device, and no copy in between."""
    found = opened()
    trajectory = found.backend.bind(program_of("H1R1"), 3)
    memory = trajectory._graphs.memory
    start, end = memory.inputs.address, memory.inputs.address + trajectory._graphs.layout.nbytes
    for binding in found.sessions.bound:
        for kind, index, dtype, shape, address in (*binding.inputs.values(), *binding.outputs.values()):
            assert (kind, index) == ("cuda", 2)
            assert start <= address < end
            assert dtype in (np.float32, np.int64, np.uint8)
            assert shape[0] in (3, 6, 9)
    (decoding,) = (binding for binding in found.sessions.bound if "image" in binding.outputs)
    image = memory.array("image")
    assert decoding.outputs["image"] == ("cuda", 2, np.uint8, image.shape, image.address)
    run(trajectory)
    for session in found.sessions.opened:
        for options in session.run_options:
            # The host waits for the stream when it wants something, not after every call.
            assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"


@needs_compiler
def test_a_call_that_fails(opened: Open) -> None:
    found = opened()
    trajectory = found.backend.bind(program_of("H1R1"), 1)
    found.sessions.fails = "refiner.guided.onnx"
    message = r"^refiner guided: ONNX Runtime failed: CUDA failure 900: operation not permitted$"
    with pytest.raises(BackendError, match=message):
        run(trajectory)
    found.sessions.fails = ""
    run(trajectory)
    trajectory.close()
    found.backend.close()
    assert found.held == NOTHING


@needs_compiler
def test_a_session_that_cannot_be_captured(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so in words of its own, when it is captured; then every call is asked for by itself."""
    expected = run(opened().backend.bind(program_of("H1R1"), 1))
    found = opened()
    capture = found.device.capture

    def failing(stream: int, work: Callable[[], None]) -> int:
        found.sessions.fails = "refiner.guided.onnx"
        try:
            return int(capture(stream, work))
        finally:
            found.sessions.fails = ""

    monkeypatch.setattr(found.device, "capture", failing)
    trajectory = found.backend.bind(program_of("H1R1"), 1)
    np.testing.assert_array_equal(run(trajectory), expected)
    assert not trajectory.is_captured
    assert found.device.counters.graph_launches == 0


def test_a_provider_that_does_not_start(opened: Open) -> None:
    """Nothing goes on on the CPU."""
    found = opened()
    found.sessions.starts = False
    with pytest.raises(
        UnsupportedError, match=r"could not start its CUDAExecutionProvider: .* --device cpu$"
    ):
        found.backend.prepare(program_of("H1R1"))


NO_GPU = "needs an NVIDIA GPU"


@pytest.mark.parametrize(
    ("backend", "device", "provider", "message"),
    [
        ("onnxruntime", "cpu", "cuda", "provider cuda does not run on device cpu; leave one of them out"),
        ("onnxruntime", "cuda:1", "cpu", "provider cpu does not run on device cuda:1; leave one of them out"),
        ("onnxruntime", "cpu", "tensorrt", "provider tensorrt does not run on device cpu"),
        ("onnxruntime", None, "rocm", "unknown provider 'rocm'; expected cpu, cuda, tensorrt"),
        (
            "openvino",
            None,
            "cuda",
            "provider cuda: only onnxruntime has providers, not openvino; leave it out",
        ),
        ("tensorrt", "cuda", "cpu", "provider cpu: only onnxruntime has providers, not tensorrt"),
    ],
)
def test_combinations_that_are_none(
    tiny_bundle: Path, backend: str, device: str | None, provider: str, message: str
) -> None:
    with pytest.raises(BackendError, match=message) as caught:
        load_backend(backend, Bundle.open(tiny_bundle), device, 0, provider)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a driver")
@pytest.mark.parametrize(
    "asked", [{"device": "cuda"}, {"provider": "cuda"}, {"provider": "tensorrt"}, {"device": "cuda:1"}]
)
def test_without_a_gpu(tiny_bundle: Path, capfd: pytest.CaptureFixture[str], asked: dict[str, str]) -> None:
    """One line with the remedy, and none beside it; with another package, that it has no such provider."""
    with pytest.raises(BackendError) as caught:
        Pipeline.load(tiny_bundle, **asked)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert (NO_GPU in message and "--device cpu" in message) or "pip install" in message
    assert capfd.readouterr().out == ""


def test_precision_of_a_bundle(opened: Open, tiny_copy: Path) -> None:
    """What an engine was built in is what TensorRT may use."""

    def halve(data: dict[str, Any]) -> None:
        for engine in data["engines"]:
            engine["precision"] = "fp16"

    edit_manifest(tiny_copy, halve)
    found = opened("tensorrt", path=tiny_copy)
    found.engines.load("decoder", None)
    ((name, options), *_) = found.sessions.opened[0].providers
    assert (name, options["trt_fp16_enable"]) == ("TensorrtExecutionProvider", "1")
    sha256 = found.bundle.manifest.files["onnx/decoder.onnx"].sha256
    assert sha256 in options["trt_engine_cache_path"]
