"""Engines: a float32 graph compiled for one backend, in its precision, at fixed batch sizes."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flowturbo_trt.bundle.manifest import Tensor
from flowturbo_trt.sampling.errors import FlowTurboError

if TYPE_CHECKING:
    # For what takes part in building alone: its packages are not where bundles are only verified.
    from flowturbo_trt.export.quantization import QuantizedLinear

PRECISIONS = ("fp32", "fp16", "bf16")
# Those that take a recipe, which says what of a network is in 8 bits.
QUANTIZED = ("int8", "fp8")


@dataclass(frozen=True)
class CompilerRow:
    """What opens a backend's compiler, as "module:function" (targets), and what it can be asked for.

    `precision` is its default, and of what is not quantised in a network that is; `precisions` are those
    it has. In those it takes `as_is` the backend loads the float32 graph itself, and there is nothing to
    compile; those that it `emulates` it has no arithmetic for, and computes in float32 after rounding.
    `for_gpu`: engines are plans for a GPU.
    The module is imported when asked for, so that no compiler needs another's packages.
    """

    opener: str
    precision: str
    precisions: tuple[str, ...] = (*PRECISIONS, *QUANTIZED)
    as_is: tuple[str, ...] = ()
    emulates: tuple[str, ...] = ()
    for_gpu: bool = False


_EXPORT = "flowturbo_trt.export"
# On the CPU the default is what every processor has, and what loses nothing unasked.
COMPILERS = {
    "onnxruntime": CompilerRow(
        f"{_EXPORT}.compile_onnxruntime:open_compiler", "fp32", as_is=("fp32",), emulates=("fp8",)
    ),
    "tensorrt-rtx": CompilerRow(f"{_EXPORT}.compile_tensorrt:open_rtx", "fp16", for_gpu=True),
    "tensorrt": CompilerRow(f"{_EXPORT}.compile_tensorrt:open_enterprise", "fp16", for_gpu=True),
    "openvino": CompilerRow(
        f"{_EXPORT}.compile_openvino:open_compiler",
        "fp32",
        precisions=("fp32", "bf16", "int8"),
        as_is=("fp32", "bf16"),
    ),
}
GPU_BACKENDS = tuple(name for name, row in COMPILERS.items() if row.for_gpu)


class CompileError(FlowTurboError):
    """A backend is not known, not installed, or refuses a network."""


@dataclass(frozen=True)
class Quantization:
    """Which linear layers of a network are in 8 bits, and the precision of all else."""

    layers: "Mapping[str, QuantizedLinear]"
    base: str


@dataclass(frozen=True)
class EngineRequest:
    """What to compile: `graph` is the float32 ONNX file with inputs and outputs as described.

    A `precision` of QUANTIZED comes with its `quantization`, no other does.
    """

    network: str
    variant: str | None
    graph: Path
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    precision: str
    batches: tuple[int, ...]
    separate: bool = False
    quantization: Quantization | None = None

    @property
    def base(self) -> str:
        """The precision of what is not quantised."""
        return self.precision if self.quantization is None else self.quantization.base

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


def is_as_is(backend: str, precision: str) -> bool:
    """Tell whether a backend loads the float32 graph itself in a precision."""
    return backend in COMPILERS and precision in COMPILERS[backend].as_is


def load_compiler(backend: str, targets: tuple[str, ...] = ()) -> Compiler:
    """Return a backend's compiler.

    Raises CompileError for what is known before anything is exported: a backend that is unknown or not
    installed, a target it does not build for.
    """
    if backend not in COMPILERS:
        raise CompileError(f"unknown backend {backend!r}; known are {', '.join(COMPILERS)}")
    module, function = COMPILERS[backend].opener.split(":")
    compiler: Compiler = getattr(importlib.import_module(module), function)(targets)
    return compiler
