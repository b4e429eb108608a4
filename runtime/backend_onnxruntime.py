"""Engines on ONNX Runtime: on the CPU, or through its CUDA provider on a GPU."""

import contextlib
import io
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import Engine, Tensor
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend import BackendError, UnsupportedError
from flowturbo_trt.runtime.host_trajectory import HostTrajectory
from flowturbo_trt.sampling.program import Evaluate, Program

NAME = "onnxruntime"
_DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(uint8)": "uint8"}


class OnnxRuntimeBackend:
    """One session per network variant, loaded when first needed, serving every batch size."""

    def __init__(self, bundle: Bundle, device: str, threads: int) -> None:
        self._bundle = bundle
        self._providers = _providers(device)
        self._threads = threads
        self._engines: dict[tuple[str, str | None], OnnxRuntimeEngine] = {}

    def prepare(self, program: Program) -> None:
        for instruction in program.instructions:
            if isinstance(instruction, Evaluate):
                self.engine(instruction.network, instruction.variant)
        if self._bundle.manifest.model.image is not None:
            self.engine("decoder", None)

    def bind(self, program: Program, batch: int) -> HostTrajectory:
        return HostTrajectory(program, batch, self._bundle.manifest.model, self.engine)

    def evaluate(self, network: str, variant: str | None, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        engine = self.engine(network, variant)
        (described,) = engine.described.outputs
        rows = len(inputs["state"])
        output = np.empty((rows, *map(int, described.shape[1:])), dtype=described.dtype)
        # Bound by address: what is sliced out of a larger array has to be whole.
        whole = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        engine.bind(whole, {described.name: output})()
        return output

    def engine(self, network: str, variant: str | None) -> "OnnxRuntimeEngine":
        key = (network, variant)
        if key not in self._engines:
            described = self._bundle.manifest.engine(network, variant, NAME)
            self._engines[key] = OnnxRuntimeEngine(self._bundle, described, self._providers, self._threads)
        return self._engines[key]


class OnnxRuntimeEngine:
    """A session whose calls are bound to arrays (runtime.host_trajectory.HostEngine)."""

    def __init__(self, bundle: Bundle, engine: Engine, providers: list[Any], threads: int) -> None:
        self.described = engine
        for file in engine.data:
            bundle.file(file)
        path = bundle.file(engine.file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # The sessions take turns: one that has finished must not keep a core busy waiting for its next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=providers)
        except Exception as error:  # its exceptions share no base class of their own
            raise _explain(engine, providers, str(error)) from error
        wanted = providers[0][0] if isinstance(providers[0], tuple) else providers[0]
        # ONNX Runtime falls back to the CPU with no more than a log line.
        if wanted not in self._session.get_providers():
            raise UnsupportedError(
                f"ONNX Runtime could not start its {wanted}: it needs an NVIDIA GPU, and driver, CUDA and "
                "cuDNN of the versions it was made for; install them, or use --device cpu"
            )
        self._check_interface(engine.inputs, self._session.get_inputs())
        self._check_interface(engine.outputs, self._session.get_outputs())

    def bind(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]
    ) -> Callable[[], None]:
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        session = self._session
        # The arrays are held by the closure: the binding knows only their addresses.
        held = (*inputs.values(), *outputs.values())

        def call(_held: tuple[NDArray[Any], ...] = held) -> None:
            try:
                session.run_with_iobinding(binding)
            except Exception as error:  # as above: out of memory, a device lost
                reason = " ".join(str(error).split())[:300]
                raise BackendError(f"{self.described.name}: ONNX Runtime failed: {reason}") from error

        return call

    def _check_interface(self, described: tuple[Tensor, ...], found: list[Any]) -> None:
        """Hold the file's tensors against the manifest's; a free batch axis serves every batch."""
        tensors = {node.name: (_DTYPES.get(node.type, node.type), node.shape) for node in found}
        for tensor in described:
            dtype, shape = tensors.pop(tensor.name, ("nothing", []))
            batch = shape[:1] if shape and isinstance(shape[0], int) else [tensor.shape[0]]
            if (dtype, [*batch, *shape[1:]]) != (tensor.dtype, list(tensor.shape)):
                raise BackendError(
                    f"{self.described.name}: its {tensor.name} is {dtype} {shape} in "
                    f"{self.described.file}, {tensor.dtype} {list(tensor.shape)} in the manifest; rebuild it"
                )
        if tensors:
            raise BackendError(
                f"{self.described.name}: {self.described.file} has {min(tensors)}, which the manifest "
                "does not know; rebuild it"
            )


def _providers(device: str) -> list[Any]:
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    if match is None:
        raise BackendError(f"unknown device {device!r}; expected cpu, cuda or cuda:N")
    if device == "cpu":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise BackendError(
            f"device {device}: this ONNX Runtime has no CUDA provider; pip install onnxruntime-gpu (and "
            "uninstall onnxruntime, which overwrites it)"
        )
    # CUDA and cuDNN that came as Python packages are not where the system looks for libraries. What it
    # prints of those it does not find is no result of ours; that they are missing shows in time.
    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()
    return [("CUDAExecutionProvider", {"device_id": int(match[1] or 0)}), "CPUExecutionProvider"]


def _explain(engine: Engine, providers: list[Any], reason: str) -> BackendError:
    what = engine.name
    if "NOT_IMPLEMENTED" in reason and engine.precision == "bf16" and providers == ["CPUExecutionProvider"]:
        return UnsupportedError(
            f"{what}: ONNX Runtime has no bf16 arithmetic on the CPU; use --device cuda, or rebuild with "
            "--precision onnxruntime=fp32"
        )
    return BackendError(f"{what}: ONNX Runtime cannot load {engine.file}: {' '.join(reason.split())[:300]}")
