"""Building for OpenVINO: the float32 graphs are its engines, in either of its precisions."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.export.compile import (
    COMPILERS,
    CompileError,
    EngineRequest,
    load_compiler,
)
from flowturbo_trt.export.precision import PrecisionError
from flowturbo_trt.runtime.backend_openvino import NAME, PRECISIONS

if TYPE_CHECKING:
    from flowturbo_trt.export.options import BuildOptions

openvino = pytest.importorskip("openvino")


def test_compiler() -> None:
    compiler = load_compiler(NAME)
    assert openvino.__version__.startswith(compiler.builder.removeprefix("openvino "))
    assert (compiler.builder.count(" "), compiler.targets, compiler.fixes_batches) == (1, (), False)


def test_precisions_are_those_of_the_runtime() -> None:
    """But for INT8 none is compiled: OpenVINO lowers the graph itself."""
    row = COMPILERS[NAME]
    assert row.precisions == tuple(PRECISIONS) == (*row.as_is, "int8")
    assert row.precision == "fp32"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_engines_are_the_graphs(
    tiny_options: "BuildOptions", tmp_path: Path, instant_export: list[str], precision: str
) -> None:
    from flowturbo_trt.export.build import build

    options = replace(tiny_options, backends=(NAME, "onnxruntime"), precisions=(f"{NAME}={precision}",))
    manifest = build(options, tmp_path / "bundle").manifest
    graphs = [(graph.name, graph.files) for graph in manifest.graphs]
    engines = [engine for engine in manifest.engines if engine.backend == NAME]
    assert [(engine.name, engine.files) for engine in engines] == graphs
    assert {engine.precision for engine in engines} == {precision}
    assert not (tmp_path / "bundle" / "engines").exists()


@pytest.mark.parametrize("precisions", [("fp16",), ("openvino=fp16",), ("bf16", "openvino=fp16")])
def test_fp16_is_refused_before_anything_is_read(
    tiny_options: "BuildOptions", precisions: tuple[str, ...]
) -> None:
    reason = r"^backend openvino has no fp16 arithmetic; add --precision openvino=fp32 or bf16"
    with pytest.raises(PrecisionError, match=reason):
        replace(tiny_options, backends=(NAME,), precisions=precisions)
    both = replace(tiny_options, backends=(NAME, "onnxruntime"), precisions=("fp16", "openvino=bf16"))
    assert [both.precision_of(backend) for backend in both.backends] == ["bf16", "fp16"]


def test_compiler_refuses_what_is_left(tiny_bundle: Path, tmp_path: Path) -> None:
    graph = Bundle.open(tiny_bundle).manifest.graphs[0]
    request = EngineRequest(
        graph.network, graph.variant, tiny_bundle / graph.file, graph.inputs, graph.outputs, "fp16", (1,)
    )
    with pytest.raises(
        CompileError, match=r"^openvino, predictor\.guided\.fp16: .* --precision openvino=fp32"
    ):
        load_compiler(NAME).compile(request, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    remedy = r"pip install 'flowturbo_trt\[openvino\]'"
    with pytest.raises(CompileError, match=rf"backend openvino is not installed \(.*\); {remedy}"):
        load_compiler(NAME)
