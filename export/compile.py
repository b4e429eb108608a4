"""Engines: a float32 graph compiled for one backend, in its precision, at fixed batch sizes."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flowturbo_trt.bundle.manifest import Tensor
from flowturbo_trt.sampling.errors import FlowTurboError

# Backend → "module:function" (targets) → compiler; imported when asked for, so that none needs
# another's packages.
COMPILERS = {
    "onnxruntime": "flowturbo_trt.export.compile_onnxruntime:open_compiler",
    "tensorrt-rtx": "flowturbo_trt.export.compile_tensorrt:open_rtx",
    "tensorrt": "flowturbo_trt.export.compile_tensorrt:open_enterprise",
    "openvino": "flowturbo_trt.export.compile_openvino:open_compiler",
}
# Those whose engines are plans for a GPU.
GPU_BACKENDS = ("tensorrt-rtx", "tensorrt")
# On the CPU that which every processor has, and which loses nothing unasked.
DEFAULT_PRECISION = {"onnxruntime": "fp32", "tensorrt-rtx": "fp16", "tensorrt": "fp16", "openvino": "fp32"}
# Backends that do not have all precisions, and those that they have.
PRECISIONS_OF = {"openvino": ("fp32", "bf16")}

# Precisions in which a backend loads the float32 graph itself: there is nothing to compile.
AS_IS = {"onnxruntime": ("fp32",), "openvino": PRECISIONS_OF["openvino"]}


class CompileError(FlowTurboError):
    """A backend is not known, not installed, or refuses a network."""


@dataclass(frozen=True)
class EngineRequest:
    """What to compile: `graph` is the float32 ONNX file with inputs and outputs as described."""

    network: str
    variant: str | None
    graph: Path
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    precision: str
    batches: tuple[int, ...]
    separate: bool = False

    @property
    def name(self) -> str:
        """A file name without suffix, e.g. `predictor.guided.fp16`, or `….b8` when batches are apart."""
        batches = f"b{'-'.join(map(str, self.batches))}" if self.separate else None
        return ".".join(part for part in (self.network, self.variant, self.precision, batches) if part)


@dataclass(frozen=True)
class Compiler:
    """What compiles for one backend: `compile` (request, folder) returns the files it wrote there.

    The first of them is what the backend loads. `builder` names package and version, and the GPU where
    engines are bound to one; `targets` are the compute capabilities compiled for; where it
    `fixes_batches`, an engine for other batch sizes is another file.
    """

    builder: str
    compile: Callable[[EngineRequest, Path], tuple[Path, ...]]
    targets: tuple[str, ...] = ()
    fixes_batches: bool = False


def load_compiler(backend: str, targets: tuple[str, ...] = ()) -> Compiler:
    """Return a backend's compiler.

    Raises CompileError for what is known before anything is exported: a backend that is unknown or not
    installed, a target it does not build for.
    """
    if backend not in COMPILERS:
        raise CompileError(f"unknown backend {backend!r}; known are {', '.join(COMPILERS)}")
    module, function = COMPILERS[backend].split(":")
    compiler: Compiler = getattr(importlib.import_module(module), function)(targets)
    return compiler
