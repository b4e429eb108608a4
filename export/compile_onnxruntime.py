"""Engines for ONNX Runtime: the graph itself, in the asked-for precision.

One file with a symbolic batch serves every batch size from one session, so weights are held once;
the bound buffers fix the sizes.
"""

from pathlib import Path

import onnxruntime

from flowturbo_trt.export.compile import CompileError, Compiler, EngineRequest
from flowturbo_trt.export.onnx_graph import save_graph
from flowturbo_trt.export.precision import engine_graph


def open_compiler(targets: tuple[str, ...]) -> Compiler:
    """Return ONNX Runtime's compiler; its engines run anywhere, so targets concern other backends."""
    return Compiler(f"onnxruntime {onnxruntime.__version__}", compile_engine)


def compile_engine(request: EngineRequest, folder: Path) -> tuple[Path, ...]:
    """Write the graph in the request's precision."""
    model = engine_graph(request)
    files = save_graph(model, folder / f"{request.name}.onnx")
    # What it holds is compared by `verify`; that it can be loaded at all is known here already.
    del model
    _check_loads(request, files[0])
    return tuple(files)


def _check_loads(request: EngineRequest, file: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class of their own
        reason = " ".join(str(error).split())[:300]
        # Arithmetic that this processor lacks another device may have.
        if "NOT_IMPLEMENTED" not in reason:
            raise CompileError(f"onnxruntime, {request.name}: cannot be loaded ({reason})") from error
