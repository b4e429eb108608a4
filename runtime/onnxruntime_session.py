"""Sessions of ONNX Runtime: the same on every device but for the providers that run them."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import onnxruntime

from flowturbo_trt.bundle.manifest import Engine
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend import BackendError, UnsupportedError
from flowturbo_trt.runtime.host_backend import FileTensors, check_interface

# A provider → ONNX Runtime's own names, the first to be tried first.
_NAMES = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
_SETTINGS = {
    # A product that was joined with its bias first is no longer found to be one of integers.
    "int8": {"optimization.disable_specified_optimizers": "MatMulAddFusion"},
    # Which it has no fp8 products for: it rounds as Q and DQ say, and computes in float32.
    "fp8": {"session.disable_quant_qdq": "1"},
}
_DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(uint8)": "uint8"}


def check_provider(provider: str) -> None:
    """Raise BackendError for a provider that is not known, or not in the installed package."""
    if provider not in _NAMES:
        raise BackendError(f"unknown provider {provider!r}; expected {', '.join(_NAMES)}")
    if _NAMES[provider][0] not in onnxruntime.get_available_providers():
        raise BackendError(
            f"provider {provider}: this ONNX Runtime does not have it; pip install onnxruntime-gpu (and "
            "uninstall onnxruntime, which overwrites it)"
        )
    if provider != "cpu":
        # CUDA and cuDNN that came as Python packages are not where the system looks for libraries. What it
        # prints of those it does not find is no result of ours; that they are missing shows in time.
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()


def open_session(
    bundle: Bundle,
    engine: Engine,
    provider: str,
    threads: int,
    options_by_provider: Mapping[str, Mapping[str, str]],
) -> onnxruntime.InferenceSession:
    """Load an engine's file and hold it against the manifest.

    `options_by_provider` are by ONNX Runtime's names; `threads` bounds the CPU's (0: all cores). Raises
    BackendError, and UnsupportedError where the device lacks what the engine needs.
    """
    for file in engine.data:
        bundle.file(file)
    path = bundle.file(engine.file)
    names = _NAMES[provider]
    providers = [(name, dict(options_by_provider.get(name, {}))) for name in names]
    try:
        options = session_options(threads, engine.precision)
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # its exceptions share no base class of their own
        raise _explain(engine, provider, str(error)) from error
    # ONNX Runtime falls back to the CPU with no more than a log line.
    if names[0] not in session.get_providers():
        needed = "driver, CUDA and cuDNN" if provider == "cuda" else "driver, CUDA and TensorRT"
        raise UnsupportedError(
            f"ONNX Runtime could not start its {names[0]}: it needs an NVIDIA GPU, and {needed} of the "
            "versions it was made for; install them, or use --device cpu"
        )
    check_interface(engine, engine.inputs, _tensors(session.get_inputs()))
    check_interface(engine, engine.outputs, _tensors(session.get_outputs()))
    return session


def session_options(threads: int, precision: str = "fp32") -> onnxruntime.SessionOptions:
    """Return the settings of an engine's session, chosen by measurement (benchmarks/cpu_settings.py)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # The sessions take turns: one that has finished must not keep a core busy waiting for its next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    for name, value in _SETTINGS.get(precision, {}).items():
        options.add_session_config_entry(name, value)
    return options


def failure(engine: Engine, error: Exception) -> BackendError:
    """Return the error for a call that failed."""
    return BackendError(f"{engine.name}: ONNX Runtime failed: {' '.join(str(error).split())[:300]}")


def _tensors(nodes: Sequence[Any]) -> FileTensors:
    return {node.name: (_DTYPES.get(node.type, node.type), node.shape) for node in nodes}


def _explain(engine: Engine, provider: str, reason: str) -> BackendError:
    if "NOT_IMPLEMENTED" in reason and engine.precision == "bf16" and provider == "cpu":
        return UnsupportedError(
            f"{engine.name}: ONNX Runtime has no bf16 arithmetic on the CPU; use --device cuda, rebuild with "
            "--precision onnxruntime=fp32, or use --backend openvino where the CPU has it"
        )
    reason = " ".join(reason.split())[:300]
    return BackendError(f"{engine.name}: ONNX Runtime cannot load {engine.file}: {reason}")
