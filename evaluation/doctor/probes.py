"""Questions that load libraries which may be broken: asked of a child process, which may die of them."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# Seconds: a large library read for the first time from a slow disk takes more than one minute.
TIMEOUT = 120
# -P and a path that is given: the child imports what this process would.
CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from flowturbo_trt.evaluation.doctor.probes import answer; answer(*sys.argv[2:])"
)
# ONNX Runtime's own names of its providers.
PROVIDER_NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
KERNEL = 'extern "C" __global__ void nothing() {}'
# ONNX's numbers of the element types a network may be in.
ELEMENT_TYPES = {"fp32": 1, "fp16": 10, "bf16": 16}
_COLOURS = re.compile(r"\x1b\[[\d;]*m")


@dataclass(frozen=True)
class Answer:
    """What a child found: `error` is empty where all went well, `said` what libraries printed meanwhile.

    `missing` names the module that is not installed, where that is the error.
    """

    version: str = ""
    error: str = ""
    missing: str = ""
    said: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def works(self) -> bool:
        return not self.error


def ask(question: str, *arguments: str, timeout: float = TIMEOUT) -> Answer:
    """Call a function of QUESTIONS in a child process; whatever becomes of that is an answer."""
    command = [sys.executable, "-P", "-c", CHILD, json.dumps(sys.path), question, *arguments]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return Answer(error=f"no answer within {timeout:g} s")
    except OSError as error:
        return Answer(error=f"no child process can be started: {error}")
    said = _COLOURS.sub("", done.stderr.decode(errors="replace")).strip()
    if done.returncode:
        last = said.splitlines()[-1:] or [""]
        return Answer(error=f"{_ending(done.returncode)} {last[0]}".strip(), said=said)
    if not done.stdout:
        return Answer(error="its process ended without a word", said=said)
    return Answer(**json.loads(done.stdout), said=said)


def _ending(status: int) -> str:
    if status > 0:
        return f"its process ended with status {status}:"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"its process was killed by {name}"


def answer(question: str, *arguments: str) -> None:
    """Answer one question on stdout: the child's side of `ask`."""
    # Libraries print; what they print must not get between.
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        found = QUESTIONS[question](*arguments)
    except ModuleNotFoundError as error:
        found = {"error": _line(error), "missing": error.name or ""}
    except BaseException as error:  # whatever an import raises, SystemExit included
        found = {"error": f"{type(error).__name__}: {_line(error)}"}
    os.write(stdout, json.dumps(found).encode())


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _library(module: str, *attributes: str) -> dict[str, Any]:
    """Import a module and, where it is lazy, what is used of it."""
    imported = importlib.import_module(module)
    for attribute in attributes:
        getattr(imported, attribute)
    return {"version": str(getattr(imported, "__version__", ""))}


def _registries() -> dict[str, Any]:
    """Tell what this version builds for and runs on; NumPy is all that this needs."""
    import numpy as np

    from flowturbo_trt.export.compile import COMPILERS, GPU_BACKENDS
    from flowturbo_trt.runtime.backend import BACKENDS

    details = {
        "compilers": list(COMPILERS),
        "precisions": {name: row.precision for name, row in COMPILERS.items()},
        "gpu": list(GPU_BACKENDS),
        "backends": list(BACKENDS),
    }
    return {"version": np.__version__, "details": details}


def _backend(name: str) -> dict[str, Any]:
    from flowturbo_trt.runtime.backend import BACKENDS

    module, function = BACKENDS[name].opener.split(":")
    return _library(module, function)


def _compiler(backend: str) -> dict[str, Any]:
    from flowturbo_trt.export.compile import CompileError, load_compiler

    try:
        return {"version": load_compiler(backend).builder}
    except CompileError as error:
        # It knows which module is not installed.
        raise error.__cause__ or error from None


def _openvino() -> dict[str, Any]:
    """Ask OpenVINO which precisions it has on this processor."""
    from flowturbo_trt.runtime.backend_openvino import precisions

    openvino = importlib.import_module("openvino")
    version = openvino.__version__.partition("-")[0]
    return {"version": version, "details": {"devices": {"cpu": precisions(openvino.Core())}}}


def _cuda(*devices: str) -> dict[str, Any]:
    """Compile a kernel and reach each device, as trajectories on a GPU do; tell what is lacking for it."""
    from flowturbo_trt.runtime.cuda_driver import open_device
    from flowturbo_trt.runtime.cuda_kernels import compile_kernels
    from flowturbo_trt.sampling.errors import FlowTurboError

    details: dict[str, dict[str, str]] = {"lacking": {}, "devices": {}}
    for package, use in CUDA_PACKAGES.items():
        try:
            use()
        except Exception as error:  # without a library of theirs they fail in ways of their own
            details["lacking"][package] = _line(error)
    for device in devices if not details["lacking"] else ():
        try:
            opened = open_device(device)
            compile_kernels(KERNEL, opened.capability)
            opened.close()
            details["devices"][device] = ""
        except FlowTurboError as error:
            details["devices"][device] = _line(error)
    return {"details": details}


def _compile_kernel() -> None:
    from flowturbo_trt.runtime.cuda_kernels import compile_kernels

    # One that every NVRTC of the versions required knows.
    compile_kernels(KERNEL, (9, 0))


def _tensorrt(module: str) -> dict[str, Any]:
    """Start a TensorRT's builder; an engine of one without ComputeCapability is bound to this GPU."""
    trt = importlib.import_module(module)
    try:
        builds = trt.Builder(trt.Logger(trt.Logger.ERROR)) is not None
    except Exception as error:  # as pybind11 sees fit: without a GPU its constructor gives nothing
        print(error)
        builds = False
    details = {"builds": builds, "bound": not hasattr(trt, "ComputeCapability")}
    return {"version": str(trt.__version__), "details": details}


def _onnxruntime(name: str, *devices: str) -> dict[str, Any]:
    """Multiply matrices on each device, in every precision: providers that are listed may not start."""
    import onnxruntime

    from flowturbo_trt.runtime.onnxruntime_session import check_provider

    providers = onnxruntime.get_available_providers()
    provider = PROVIDER_NAMES[name]
    able = {}
    if provider in providers:
        # It loads what came as Python packages, as pipelines do.
        check_provider(name)
        for device in devices:
            index = device.partition(":")[2]
            wanted = (provider, {"device_id": index} if index else {})
            found = [precision for precision, kind in ELEMENT_TYPES.items() if _multiplies(wanted, kind)]
            if "fp32" in found:
                able[device] = found
    return {"version": onnxruntime.__version__, "details": {"providers": providers, "devices": able}}


def _multiplies(provider: tuple[str, dict[str, str]], element: int) -> bool:
    import numpy as np
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(matmul_model(element), providers=[provider])
        # ONNX Runtime falls back to the CPU with no more than a log line.
        if session.get_providers()[0] != provider[0]:
            return False
        if element != ELEMENT_TYPES["fp32"]:
            return True
        (product,) = session.run(None, {"x": np.full((1, 1), 3, np.float32)})
    except Exception as error:  # its exceptions share no base class of their own
        print(error)
        return False
    return bool(product[0, 0] == 9)


def matmul_model(element: int) -> bytes:
    """Return an ONNX model of y (1,1) = x (1,1) @ x, written as the protocol buffer it is."""
    one = _number(1, 1)
    shape = _part(2, _part(1, one) + _part(1, one))
    tensor = _part(2, _part(1, _number(1, element) + shape))
    node = _part(1, b"x") + _part(1, b"x") + _part(2, b"y") + _part(4, b"MatMul")
    ends = _part(11, _part(1, b"x") + tensor) + _part(12, _part(1, b"y") + tensor)
    graph = _part(1, node) + _part(2, b"matmul") + ends
    version, opset = _number(1, 8), _part(8, _number(2, 17))
    return version + _part(7, graph) + opset


def _part(field_number: int, content: bytes) -> bytes:
    return bytes([field_number << 3 | 2, len(content)]) + content


def _number(field_number: int, value: int) -> bytes:
    return bytes([field_number << 3, value])


# Package → what fails without it.
CUDA_PACKAGES: dict[str, Callable[[], object]] = {
    "cuda-bindings": lambda: importlib.import_module("cuda.bindings.driver"),
    "nvidia-cuda-nvrtc": _compile_kernel,
}
QUESTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "registries": _registries,
    "library": _library,
    "backend": _backend,
    "compiler": _compiler,
    "tensorrt": _tensorrt,
    "onnxruntime": _onnxruntime,
    "cuda": _cuda,
    "openvino": _openvino,
}
