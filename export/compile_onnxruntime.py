"""Engines for ONNX Runtime: the graph itself, in the asked-for precision.

One file with a symbolic batch serves every batch size from one session, so weights are held once;
the bound buffers fix the sizes.
"""

from pathlib import Path

import onnxruntime

from flowturbo_trt.export.compile import CompiledEngine, Compiler, EngineRequest
from flowturbo_trt.export.onnx_graph import load_graph, save_graph
from flowturbo_trt.export.precision import lower_precision


def open_compiler(targets: tuple[str, ...]) -> Compiler:
    """Return `compile_engine`; its engines run anywhere, so targets concern other backends."""
    return compile_engine


def compile_engine(request: EngineRequest, folder: Path) -> CompiledEngine:
    """Write the engine's files, or name the float32 graph's, which then is the engine."""
    builder = f"onnxruntime {onnxruntime.__version__}"
    if request.precision == "fp32":
        data = request.graph.with_name(request.graph.name + ".data")
        return CompiledEngine((request.graph, data) if data.exists() else (request.graph,), builder)
    model = lower_precision(load_graph(request.graph), request.precision)
    folder.mkdir(parents=True, exist_ok=True)
    return CompiledEngine(tuple(save_graph(model, folder / f"{request.name}.onnx")), builder)
