"""Engines on ONNX Runtime: on the CPU, or through its CUDA or TensorRT provider on a GPU."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import Engine
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend import Backend, BackendError
from flowturbo_trt.runtime.host_backend import HostBackend
from flowturbo_trt.runtime.onnxruntime_session import check_provider, failure, open_session

NAME = "onnxruntime"


def open_backend(bundle: Bundle, device: str, threads: int, provider: str | None = None) -> Backend:
    """Open ONNX Runtime on a device; by default its CPU provider on the CPU, CUDA's on a GPU."""
    if re.fullmatch(r"cpu|cuda(:\d+)?", device) is None:
        raise BackendError(f"unknown device {device!r}; expected cpu, cuda or cuda:N")
    provider = provider or ("cpu" if device == "cpu" else "cuda")
    if (provider == "cpu") != (device == "cpu"):
        raise BackendError(f"provider {provider} does not run on device {device}; leave one of them out")
    check_provider(provider)
    if provider == "cpu":
        return OnnxRuntimeBackend(bundle, threads)
    # Needs the packages that talk to a GPU.
    from flowturbo_trt.runtime.onnxruntime_cuda import open_on_gpu

    return open_on_gpu(bundle, device, threads, provider)


class OnnxRuntimeBackend(HostBackend):
    """On the CPU: one session per network variant, serving every batch size."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        super().__init__(bundle, NAME)
        self._threads = threads

    def load(self, described: Engine) -> "OnnxRuntimeEngine":
        return OnnxRuntimeEngine(described, open_session(self._bundle, described, "cpu", self._threads, {}))


class OnnxRuntimeEngine:
    """A session whose calls are bound to arrays in host memory (runtime.host_trajectory.HostEngine)."""

    def __init__(self, described: Engine, session: onnxruntime.InferenceSession) -> None:
        self.described = described
        self._session = session

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
            except Exception as error:  # its exceptions share no base class of their own
                raise failure(self.described, error) from error

        return call
