"""ONNX Runtime on a GPU: sessions that work on a trajectory's own buffers and stream.

Given the stream, and told not to wait after a call, a session only asks for its kernels, so that calls
and sums need no host between them. Where nothing in a session waits or allocates once it is warm, its
calls become part of the trajectory's graph; otherwise they are asked for one by one.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnxruntime

from flowturbo_trt.bundle.manifest import Engine
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.cuda_backend import CudaBackend
from flowturbo_trt.runtime.cuda_driver import open_device
from flowturbo_trt.runtime.cuda_memory import Streams
from flowturbo_trt.runtime.device import DeviceArray
from flowturbo_trt.runtime.kernel_cache import cache_folder
from flowturbo_trt.runtime.onnxruntime_session import failure, open_session


def open_on_gpu(bundle: Bundle, device: str, threads: int, provider: str) -> CudaBackend:
    """Run a bundle's ONNX engines on a GPU, with the provider `cuda` or `tensorrt`."""
    streams = Streams.on(open_device(device))
    return CudaBackend(bundle.manifest, streams, OnnxRuntimeEngines(bundle, streams, threads, provider))


class OnnxRuntimeEngines:
    """A bundle's sessions on a GPU (runtime.cuda_backend.DeviceEngines), each serving every batch size."""

    name = "onnxruntime"
    fixes_rows = False
    must_capture = False

    def __init__(self, bundle: Bundle, streams: Streams, threads: int, provider: str) -> None:
        self._bundle = bundle
        self._streams = streams
        self._threads = threads
        self._provider = provider
        self._loaded: dict[tuple[str, str | None], OnnxRuntimeDeviceEngine] = {}

    def load(self, network: str, variant: str | None) -> None:
        self._load(network, variant)

    def engine(self, network: str, variant: str | None, rows: int) -> "OnnxRuntimeDeviceEngine":
        return self._load(network, variant)

    def close(self) -> None:
        self._loaded.clear()

    def _load(self, network: str, variant: str | None) -> "OnnxRuntimeDeviceEngine":
        key = (network, variant)
        if key not in self._loaded:
            described = self._bundle.manifest.engine(network, variant, self.name)
            sha256 = self._bundle.manifest.files[described.file].sha256
            options = provider_options(self._streams, described.precision, sha256)
            session = open_session(self._bundle, described, self._provider, self._threads, options)
            self._loaded[key] = OnnxRuntimeDeviceEngine(described, session, self._streams.device.index)
        return self._loaded[key]


class OnnxRuntimeDeviceEngine:
    """A session whose calls are bound to arrays in a GPU's memory (runtime.device.DeviceEngine)."""

    def __init__(self, described: Engine, session: onnxruntime.InferenceSession, device_index: int) -> None:
        self._described = described
        self._session = session
        self._device_index = device_index
        self._run_options = onnxruntime.RunOptions()
        # The stream's order is all that the next piece of work needs.
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def bind(
        self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]
    ) -> Callable[[int], None]:
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_input(name, *self._place(array))
        for name, array in outputs.items():
            binding.bind_output(name, *self._place(array))

        # The session's own stream is the only one that it is called for.
        def call(stream: int) -> None:
            try:
                self._session.run_with_iobinding(binding, self._run_options)
            except Exception as error:  # its exceptions share no base class of their own
                raise failure(self._described, error) from error

        return call

    def is_capturable(self, stream: int) -> bool:
        """Return True: a session cannot tell before the capture."""
        return True

    def _place(self, array: DeviceArray) -> tuple[str, int, Any, tuple[int, ...], int]:
        return "cuda", self._device_index, np.dtype(array.dtype).type, array.shape, array.address


def provider_options(streams: Streams, precision: str, sha256: str) -> dict[str, dict[str, str]]:
    """Return the options of the providers on a GPU, by ONNX Runtime's names.

    TensorRT's engines are kept in a folder by the hash of the graph they were built from.
    """
    shared = {"device_id": str(streams.device.index), "user_compute_stream": str(streams.compute)}
    cuda = shared | {
        # Products and sums of float32 are to be those of the CPU.
        "use_tf32": "0",
        # It tries a convolution's algorithms once, in the warm-up.
        "cudnn_conv_algo_search": "EXHAUSTIVE",
    }
    tensorrt = shared | {
        "trt_fp16_enable": "1" if precision == "fp16" else "0",
        "trt_bf16_enable": "1" if precision == "bf16" else "0",
        # Without it TensorRT refuses graphs with Q/DQ; of fp8 the provider knows no such option.
        "trt_int8_enable": "1" if precision == "int8" else "0",
    }
    if (folder := cache_folder("onnxruntime-tensorrt")) is not None:
        tensorrt |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(folder / sha256)}
    return {"CUDAExecutionProvider": cuda, "TensorrtExecutionProvider": tensorrt}
