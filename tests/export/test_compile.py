"""Compilers by backend: the registry, ONNX Runtime's engines, and what a missing package is answered with."""

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.export import compile_tensorrt, onnx_graph
from flowturbo_trt.export.compile import COMPILERS, CompileError, EngineRequest, load_compiler
from flowturbo_trt.export.onnx_graph import load_graph, save_graph

PACKAGES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


@pytest.fixture
def request_for_tests(tiny_bundle: Path) -> EngineRequest:
    graph = next(g for g in Bundle.open(tiny_bundle).manifest.graphs if g.network == "refiner")
    file = tiny_bundle / graph.file
    return EngineRequest("refiner", "guided", file, graph.inputs, graph.outputs, "fp32", (1, 3), ())


def test_unknown_backend() -> None:
    with pytest.raises(CompileError, match="unknown backend 'openvino'; known are onnxruntime, tensorrt-rtx"):
        load_compiler("openvino")


@pytest.mark.parametrize("backend", COMPILERS)
def test_every_backend_has_a_compiler(backend: str) -> None:
    """Its module imports without its package, whose absence is an error of its own."""
    module, function = COMPILERS[backend].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_float32_graph_is_the_engine(request_for_tests: EngineRequest, tmp_path: Path) -> None:
    compiled = load_compiler("onnxruntime")(request_for_tests, tmp_path / "engines")
    assert compiled.files == (request_for_tests.graph,)
    assert compiled.builder == f"onnxruntime {onnxruntime.__version__}"
    assert compiled.targets == ()
    assert not (tmp_path / "engines").exists()


def test_float32_graph_with_its_weights_beside_it(
    request_for_tests: EngineRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graph, "EXTERNAL_DATA_BYTES", 0)
    files = save_graph(load_graph(request_for_tests.graph), tmp_path / "refiner.onnx")
    compiled = load_compiler("onnxruntime")(replace(request_for_tests, graph=files[0]), tmp_path)
    assert compiled.files == tuple(files) == (tmp_path / "refiner.onnx", tmp_path / "refiner.onnx.data")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_a_file_of_its_own(
    request_for_tests: EngineRequest, tmp_path: Path, precision: str
) -> None:
    engines = tmp_path / "engines" / "onnxruntime"
    compiled = load_compiler("onnxruntime")(replace(request_for_tests, precision=precision), engines)
    assert compiled.files == (engines / f"refiner.guided.{precision}.onnx",)
    assert 0 < compiled.files[0].stat().st_size < request_for_tests.graph.stat().st_size


@pytest.mark.parametrize("backend", PACKAGES)
@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("No module named 'x'"), OSError("libnvinfer.so: cannot open")]
)
def test_missing_package_names_the_extra(
    request_for_tests: EngineRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    error: Exception,
) -> None:
    """Not installed, or installed without the library it needs."""
    found = importlib.import_module

    def import_module(name: str, *arguments: Any) -> ModuleType:
        if name == PACKAGES[backend]:
            raise error
        return found(name, *arguments)

    monkeypatch.setattr("importlib.import_module", import_module)
    remedy = rf"pip install 'flowturbo_trt\[{backend}\]'"
    with pytest.raises(CompileError, match=rf"backend {backend} is not installed \(.*\); {remedy}"):
        load_compiler(backend)(request_for_tests, tmp_path / "engines")
    assert not (tmp_path / "engines").exists()


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed here")
def test_enterprise_tensorrt_is_not_here(request_for_tests: EngineRequest, tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"backend tensorrt is not installed .*flowturbo_trt\[tensorrt\]"):
        load_compiler("tensorrt")(request_for_tests, tmp_path)


def test_builder_without_a_gpu(request_for_tests: EngineRequest, tmp_path: Path) -> None:
    """TensorRT says why on its logger, and returns None."""

    class Logger:
        Severity = SimpleNamespace(ERROR=1)

    def builder(log: Any) -> None:
        log.log(1, "CUDA initialization\nfailure with error: 35")

    trt = SimpleNamespace(ILogger=Logger, Builder=builder)
    reason = r"\(CUDA initialization failure with error: 35\)"
    with pytest.raises(CompileError, match=rf"^tensorrt: cannot start {reason}; .* needs an NVIDIA GPU"):
        compile_tensorrt.compile_plan(trt, "tensorrt", request_for_tests, tmp_path)  # type: ignore[arg-type]
