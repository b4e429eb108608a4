"""Compilers by backend: the registry, ONNX Runtime's engines, and what a missing package is answered with."""

import importlib
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.export import compile_tensorrt, onnx_graph
from flowturbo_trt.export.compile import COMPILERS, CompileError, EngineRequest, is_as_is, load_compiler
from flowturbo_trt.export.onnx_graph import load_graph, save_graph

PACKAGES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


@pytest.fixture
def request_for_tests(tiny_bundle: Path) -> EngineRequest:
    graph = next(g for g in Bundle.open(tiny_bundle).manifest.graphs if g.network == "refiner")
    file = tiny_bundle / graph.file
    return EngineRequest("refiner", "guided", file, graph.inputs, graph.outputs, "fp32", (1, 3))


def test_unknown_backend() -> None:
    with pytest.raises(CompileError, match="unknown backend 'abacus'; known are onnxruntime, tensorrt-rtx"):
        load_compiler("abacus")


@pytest.mark.parametrize("backend", COMPILERS)
def test_every_backend_has_a_compiler(backend: str) -> None:
    """Its module imports without its package, whose absence is an error of its own."""
    module, function = COMPILERS[backend].opener.split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_float32_graph_is_the_engine() -> None:
    compiler = load_compiler("onnxruntime")
    assert is_as_is("onnxruntime", "fp32")
    assert not is_as_is("onnxruntime", "fp16")
    assert compiler.builder == f"onnxruntime {onnxruntime.__version__}"
    assert compiler.targets == ()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_a_file_of_its_own(
    request_for_tests: EngineRequest, tmp_path: Path, precision: str
) -> None:
    compile_engine = load_compiler("onnxruntime").compile
    files = compile_engine(replace(request_for_tests, precision=precision), tmp_path)
    assert files == (tmp_path / f"refiner.guided.{precision}.onnx",)
    assert 0 < files[0].stat().st_size < request_for_tests.graph.stat().st_size


def test_weights_past_the_limit_lie_beside(
    request_for_tests: EngineRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graph, "EXTERNAL_DATA_BYTES", 0)
    files = load_compiler("onnxruntime").compile(replace(request_for_tests, precision="fp16"), tmp_path)
    assert [file.name for file in files] == ["refiner.guided.fp16.onnx", "refiner.guided.fp16.onnx.data"]


def test_engine_of_one_batch_size_has_a_name_of_its_own(request_for_tests: EngineRequest) -> None:
    assert replace(request_for_tests, batches=(8,), separate=True).name == "refiner.guided.fp32.b8"


@pytest.mark.parametrize("backend", PACKAGES)
@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("No module named 'x'"), OSError("libnvinfer.so: cannot open")]
)
def test_missing_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, backend: str, error: Exception
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
        load_compiler(backend)


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed here")
def test_enterprise_tensorrt_is_not_here() -> None:
    with pytest.raises(CompileError, match=r"backend tensorrt is not installed .*flowturbo_trt\[tensorrt\]"):
        load_compiler("tensorrt")


def test_enterprise_tensorrt_needs_the_gpu_it_builds_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before anything is exported, though the package imports without a GPU."""
    fake = ModuleType("tensorrt")
    fake.__dict__["__version__"] = "11.0.0"
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        CompileError, match=r"builds on the GPU it is to run on \(no NVIDIA driver.*tensorrt-rtx"
    ):
        load_compiler("tensorrt")


def test_enterprise_engines_are_told_apart_by_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ModuleType("tensorrt")
    fake.__dict__["__version__"] = "11.0.0"
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho NVIDIA H200, 580.10, 143771, 143000, 9.0\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert load_compiler("tensorrt").builder == "tensorrt 11.0.0 for NVIDIA H200, 580.10"


def test_builder_without_a_gpu(request_for_tests: EngineRequest, tmp_path: Path) -> None:
    """TensorRT says why on its logger, and returns None."""

    class Logger:
        Severity = SimpleNamespace(ERROR=1)

    def builder(log: Any) -> None:
        log.log(1, "CUDA initialization\nfailure with error: 35")

    trt = SimpleNamespace(ILogger=Logger, Builder=builder)
    reason = r"\(CUDA initialization failure with error: 35\)"
    with pytest.raises(CompileError, match=rf"^tensorrt: cannot start {reason}; .* needs an NVIDIA GPU"):
        compile_tensorrt.compile_plan(trt, "tensorrt", (), request_for_tests, tmp_path)  # type: ignore[arg-type]


def test_engine_that_cannot_be_loaded(
    request_for_tests: EngineRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that writes it would end with success."""

    def save(model: Any, path: Path) -> list[Path]:
        next(node for node in model.graph if node.op_type == "Softmax").op_type = "Hardmax3"
        return save_graph(model, path)

    monkeypatch.setattr("flowturbo_trt.export.compile_onnxruntime.save_graph", save)
    compile_engine = load_compiler("onnxruntime").compile
    with pytest.raises(
        CompileError, match=r"^onnxruntime, refiner.guided.fp16: cannot be loaded \(.*Hardmax3"
    ):
        compile_engine(replace(request_for_tests, precision="fp16"), tmp_path)


def test_weights_that_lay_beside_the_graph_come_along(
    request_for_tests: EngineRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a network whose float32 weights are too large for one file, and whose fp16 ones are not."""
    monkeypatch.setattr(onnx_graph, "EXTERNAL_DATA_BYTES", 0)
    (tmp_path / "onnx").mkdir()
    graph, _ = save_graph(load_graph(request_for_tests.graph), tmp_path / "onnx" / "refiner.onnx")
    monkeypatch.setattr(onnx_graph, "EXTERNAL_DATA_BYTES", 2**40)
    (tmp_path / "engines").mkdir()
    request = replace(request_for_tests, graph=graph, precision="fp16")
    (file,) = load_compiler("onnxruntime").compile(request, tmp_path / "engines")
    onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
