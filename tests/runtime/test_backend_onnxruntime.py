"""ONNX Runtime as backend: devices, precisions, and files that are checked before they are loaded."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest

from flowturbo_trt.bundle.manifest import BundleError
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.metrics import relative_l2
from flowturbo_trt.runtime.backend import BackendError, UnsupportedError
from flowturbo_trt.runtime.backend_onnxruntime import NAME, OnnxRuntimeBackend
from flowturbo_trt.runtime.onnxruntime_session import open_session
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.trace import trace
from flowturbo_trt.tests.bundles import changed_copy, latents

if TYPE_CHECKING:
    from flowturbo_trt.export.options import BuildOptions


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that sessions are made of."""
    names: list[str] = []
    session = onnxruntime.InferenceSession

    def watched(path: Any, *arguments: Any, **options: Any) -> Any:
        names.append(Path(path).name)
        return session(path, *arguments, **options)

    monkeypatch.setattr("onnxruntime.InferenceSession", watched)
    return names


def test_only_what_is_needed_is_loaded(golden_bundle: Path, loaded: list[str]) -> None:
    """The default schedule's engines at once, others when first asked for, each once for all batches."""
    pipeline = Pipeline.load(golden_bundle, threads=1)
    conditioners = ["predictor_conditioner.onnx", "refiner_conditioner.onnx"]
    first = ["decoder.onnx", "predictor.guided.onnx", "refiner.guided.onnx", *conditioners]
    assert sorted(loaded) == sorted(first)
    for n in (1, 2, 3):
        pipeline(list(range(n)))
    assert len(loaded) == len(first)
    pipeline([1], guidance=1, schedule="H1")
    assert loaded[len(first) :] == ["predictor.unguided.onnx"]


def test_fused_conditioning_loads_no_conditioner(golden_fused_bundle: Path, loaded: list[str]) -> None:
    Pipeline.load(golden_fused_bundle, threads=1)([1, 2])
    assert sorted(loaded) == ["decoder.onnx", "predictor.guided.onnx", "refiner.guided.onnx"]


def test_latents_need_no_decoder(golden_bundle: Path, loaded: list[str]) -> None:
    """What runs only to decode is loaded when first asked for, where `load` did not foresee it."""
    backend = OnnxRuntimeBackend(Bundle.open(golden_bundle), 1)
    trajectory = backend.bind(trace(Schedule.parse("E1"), "unguided"), 1)
    trajectory.start(decode=False)
    assert sorted(loaded) == ["predictor.unguided.onnx", "predictor_conditioner.onnx"]
    trajectory.start(decode=True)
    assert loaded[2:] == ["decoder.onnx"]


@pytest.mark.parametrize("file", ["decoder.onnx", "refiner.guided.onnx"])
def test_nothing_is_loaded_before_all_sizes_are_checked(
    tiny_copy: Path, loaded: list[str], file: str
) -> None:
    content = (tiny_copy / "onnx" / file).read_bytes()
    (tiny_copy / "onnx" / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(BundleError, match=rf"{file}: has \d+ bytes, expected {len(content)}"):
        Pipeline.load(tiny_copy, threads=1)
    assert loaded == []


def test_altered_file_is_not_loaded(tiny_copy: Path, loaded: list[str]) -> None:
    file = tiny_copy / "onnx" / "refiner.guided.onnx"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match=r"refiner\.guided\.onnx: .*sha256 differs"):
        Pipeline.load(tiny_copy, threads=1)
    assert file.name not in loaded


def test_external_weights_are_checked(tiny_bundle: Path, tmp_path: Path, loaded: list[str]) -> None:
    def list_data(data: dict[str, Any]) -> None:
        data["files"]["onnx/w.data"] = {"bytes": 4, "sha256": "0" * 64}
        data["engines"][0]["data"] = ["onnx/w.data"]

    damaged = changed_copy(tiny_bundle, tmp_path, list_data)
    (damaged / "onnx" / "w.data").write_bytes(b"1234")
    with pytest.raises(BundleError, match=r"w\.data: .*sha256 differs"):
        Pipeline.load(damaged, threads=1)
    assert loaded == []


def test_file_that_is_no_graph(tiny_bundle: Path, tmp_path: Path) -> None:
    from flowturbo_trt.bundle.store import sha256

    (tmp_path / "junk").write_bytes(b"junk" * 10)
    record = {"bytes": 40, "sha256": sha256(tmp_path / "junk")}
    name = "onnx/predictor.guided.onnx"
    damaged = changed_copy(tiny_bundle, tmp_path, lambda data: data["files"].update({name: record}))
    (tmp_path / "junk").rename(damaged / name)
    with pytest.raises(
        BackendError, match=rf"^predictor guided: ONNX Runtime cannot load {name}: "
    ) as caught:
        Pipeline.load(damaged, threads=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "CPU", "", "cpu:0", "cuda:-1"])
def test_unknown_device(tiny_bundle: Path, device: str) -> None:
    with pytest.raises(BackendError, match=rf"unknown device '{device}'; expected cpu, cuda or cuda:N"):
        Pipeline.load(tiny_bundle, device=device)


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_package_without_cuda(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendError, match=r"provider cuda: .*pip install onnxruntime-gpu"):
        Pipeline.load(tiny_bundle, device=device)


def test_cuda_that_does_not_start(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime goes on on the CPU with a log line; the pipeline does not."""

    class CpuSession:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            pass

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr("onnxruntime.InferenceSession", CpuSession)
    bundle = Bundle.open(tiny_bundle)
    engine = bundle.manifest.engine("predictor", "guided", NAME)
    for provider, name in (("cuda", "CUDA"), ("tensorrt", "Tensorrt")):
        with pytest.raises(
            UnsupportedError, match=rf"could not start its {name}ExecutionProvider: .* --device cpu"
        ):
            open_session(bundle, engine, provider, 1, {})


@pytest.fixture
def in_precision(
    tiny_options: "BuildOptions", tmp_path: Path, instant_export: list[str]
) -> Callable[[str], Path]:
    """Give a function that builds the tiny model in a precision."""
    from flowturbo_trt.export.build import build

    return lambda precision: build(replace(tiny_options, precisions=(precision,)), tmp_path / "bundle").path


def test_bf16_on_the_cpu(in_precision: Callable[[str], Path]) -> None:
    with pytest.raises(
        BackendError, match="no bf16 arithmetic on the CPU; use --device cuda, rebuild with --precision onnxr"
    ):
        Pipeline.load(in_precision("bf16"), threads=1)


def test_fp16_on_the_cpu(in_precision: Callable[[str], Path], tiny_pipeline: Pipeline) -> None:
    """Over a whole trajectory: near float32, and not float32."""
    found = latents(Pipeline.load(in_precision("fp16"), threads=1), [0, 1, 2])
    assert 1e-6 < relative_l2(found, latents(tiny_pipeline, [0, 1, 2])) < 1e-2


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_threads(tiny_bundle: Path, tiny_pipeline: Pipeline, threads: int) -> None:
    images = Pipeline.load(tiny_bundle, threads=threads)([1, 2])
    assert np.abs(images.astype(int) - tiny_pipeline([1, 2]).astype(int)).max() <= 1
