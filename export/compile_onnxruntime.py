"""Engines for ONNX Runtime: the graph itself, in the asked-for precision.

One file with a symbolic batch serves every batch size from one session, so weights are held once;
the bound buffers fix the sizes.
"""

from pathlib import Path

import onnxruntime

from flowturbo_trt.export.compile import Compiler, EngineRequest
from flowturbo_trt.export.onnx_graph import load_graph, save_graph
from flowturbo_trt.export.precision import lower_precision


def open_compiler(targets: tuple[str, ...]) -> Compiler:
    """Return ONNX Runtime's compiler; its engines run anywhere, so targets concern other backends."""
    return Compiler(f"onnxruntime {onnxruntime.__version__}", compile_engine)


def compile_engine(request: EngineRequest, folder: Path) -> tuple[Path, ...]:
    """Write the graph in the request's precision."""
    model = lower_precision(load_graph(request.graph), request.precision)
    return tuple(save_graph(model, folder / f"{request.name}.onnx"))
