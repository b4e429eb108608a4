"""Engines for OpenVINO: the float32 graph itself, whatever the precision.

OpenVINO lowers a network when it loads it, so that nothing is left to compile here.
"""

from importlib import import_module
from pathlib import Path

from flowturbo_trt.export.compile import COMPILERS, CompileError, Compiler, EngineRequest

NAME = "openvino"


def open_compiler(targets: tuple[str, ...]) -> Compiler:
    """Return OpenVINO's compiler; its engines run on the CPU, so targets concern other backends."""
    try:
        version = import_module(NAME).__version__
    except Exception as error:  # without the libraries it is linked to it fails in ways of its own
        raise CompileError(
            f"backend {NAME} is not installed ({error}); pip install 'flowturbo_trt[{NAME}]'"
        ) from error
    return Compiler(f"{NAME} {version.partition('-')[0]}", refuse)


def refuse(request: EngineRequest, folder: Path) -> tuple[Path, ...]:
    """Refuse a precision that OpenVINO does not have on the CPU: of those it has nothing is compiled."""
    raise CompileError(
        f"{NAME}, {request.name}: OpenVINO has no {request.precision} arithmetic on the CPU; use "
        f"--precision {NAME}={' or '.join(COMPILERS[NAME].precisions)}"
    )
