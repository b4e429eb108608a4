"""Engines for OpenVINO: the float32 graph itself, or with Q/DQ what a recipe quantises of it.

OpenVINO lowers a network when it loads it, so that in other precisions nothing is left to compile here.
"""

from importlib import import_module
from pathlib import Path

from flowturbo_trt.export.compile import COMPILERS, CompileError, Compiler, EngineRequest
from flowturbo_trt.export.onnx_graph import save_graph
from flowturbo_trt.export.precision import engine_graph

NAME = "openvino"


def open_compiler(targets: tuple[str, ...]) -> Compiler:
    """Return OpenVINO's compiler; its engines run on the CPU, so targets concern other backends."""
    try:
        version = import_module(NAME).__version__
    except Exception as error:  # without the libraries it is linked to it fails in ways of its own
        raise CompileError(
            f"backend {NAME} is not installed ({error}); pip install 'flowturbo_trt[{NAME}]'"
        ) from error
    return Compiler(f"{NAME} {version.partition('-')[0]}", compile_engine)


def compile_engine(request: EngineRequest, folder: Path) -> tuple[Path, ...]:
    """Write a quantised graph; refuses precisions that OpenVINO does not have on the CPU."""
    row = COMPILERS[NAME]
    if request.precision not in row.precisions or request.base not in row.as_is:
        raise CompileError(
            f"{NAME}, {request.name}: OpenVINO has no {request.precision} arithmetic on the CPU; use "
            f"--precision {NAME}={' or '.join(row.precisions)}"
        )
    return tuple(save_graph(engine_graph(request), folder / f"{request.name}.onnx"))
