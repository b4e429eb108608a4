"""A GPU through CUDA's driver API: cuda-bindings and nothing heavier."""

import contextlib
import ctypes
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.runtime.backend import BackendError
from flowturbo_trt.runtime.cuda_errors import CheckedDriver, import_bindings
from flowturbo_trt.runtime.cuda_kernels import cached_kernels
from flowturbo_trt.runtime.device import DeviceError, OutOfMemoryError
from flowturbo_trt.runtime.kernel_cache import KernelCache, cache_folder


def open_device(text: str) -> "CudaDevice":
    """Return the GPU that "cuda" or "cuda:N" names; raises BackendError."""
    match = re.fullmatch(r"cuda(?::(\d+))?", text)
    if match is None:
        raise BackendError(f"unknown device {text!r}; expected cuda or cuda:N")
    return CudaDevice(int(match[1] or 0), import_bindings("driver"), cache_folder("kernels"))


class CudaDevice:
    """A Device (runtime.device) in the primary context of a GPU, which every library of a process shares.

    The context becomes the current one of each thread that calls, and stays it: engines called in the
    same thread find it. Compiled kernels are kept in `kernel_folder`.
    """

    def __init__(self, index: int, driver: Any, kernel_folder: Path | None) -> None:
        self.index = index
        self._cuda = CheckedDriver(driver)
        self._cache = KernelCache(kernel_folder)
        self._modules: list[Any] = []
        self._kernels: dict[tuple[str, ...], Mapping[str, int]] = {}
        device = _find(self._cuda, index)
        self.name: str = self._cuda("cuDeviceGetName", 256, device).split(b"\0")[0].decode()
        kinds = driver.CUdevice_attribute
        self.capability: tuple[int, int] = (
            self._cuda("cuDeviceGetAttribute", kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device),
            self._cuda("cuDeviceGetAttribute", kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device),
        )
        self._device = device
        self._context: Any = self._cuda("cuDevicePrimaryCtxRetain", device)

    def close(self) -> None:
        """Let go of the context; memory, streams, events and graphs are for whoever made them to free."""
        if self._context is None:
            return
        try:
            for module in self._modules:
                self._call("cuModuleUnload", module)
        finally:
            self._modules.clear()
            self._kernels.clear()
            self._context = None
            self._cuda("cuDevicePrimaryCtxRelease", self._device)

    def make_current(self) -> None:
        """Make the device's context the calling thread's."""
        if self._context is None:
            raise DeviceError(f"device cuda:{self.index} was closed")
        # Asked every time: other libraries change it too.
        if int(self._cuda("cuCtxGetCurrent")) != int(self._context):
            self._cuda("cuCtxSetCurrent", self._context)

    def memory(self) -> tuple[int, int]:
        free, total = self._call("cuMemGetInfo")
        return free, total

    def allocate(self, size: int) -> int:
        try:
            return int(self._call("cuMemAlloc", size))
        except OutOfMemoryError as error:
            free, total = self.memory()
            raise OutOfMemoryError(
                f"{_readable(size)} asked of {self.name}, where {_readable(free)} of {_readable(total)} are "
                f"free: {error}"
            ) from error

    def free(self, address: int) -> None:
        self._call("cuMemFree", address)

    def allocate_pinned(self, size: int) -> NDArray[np.uint8]:
        try:
            address = int(self._call("cuMemHostAlloc", size, self._cuda.api.CU_MEMHOSTALLOC_PORTABLE))
        except OutOfMemoryError as error:
            raise OutOfMemoryError(f"{_readable(size)} of pinned host memory asked for: {error}") from error
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def free_pinned(self, array: NDArray[np.uint8]) -> None:
        self._call("cuMemFreeHost", array.ctypes.data)

    def create_stream(self) -> int:
        return int(self._call("cuStreamCreate", self._cuda.api.CUstream_flags.CU_STREAM_NON_BLOCKING))

    def destroy_stream(self, stream: int) -> None:
        self._call("cuStreamDestroy", stream)

    def create_event(self) -> int:
        return int(self._call("cuEventCreate", self._cuda.api.CUevent_flags.CU_EVENT_DISABLE_TIMING))

    def destroy_event(self, event: int) -> None:
        self._call("cuEventDestroy", event)

    def record(self, event: int, stream: int) -> None:
        self._call("cuEventRecord", event, stream)

    def wait(self, stream: int, event: int) -> None:
        self._call("cuStreamWaitEvent", stream, event, 0)

    def synchronize(self, event: int) -> None:
        self._call("cuEventSynchronize", event)

    def synchronize_stream(self, stream: int) -> None:
        self._call("cuStreamSynchronize", stream)

    def upload(self, address: int, source: NDArray[Any], stream: int) -> None:
        _require_whole(source)
        self._call("cuMemcpyHtoDAsync", address, source.ctypes.data, source.nbytes, stream)

    def download(self, target: NDArray[Any], address: int, stream: int) -> None:
        _require_whole(target)
        if not target.flags.writeable:
            raise DeviceError(f"the array {target.shape} to download to is read-only")
        self._call("cuMemcpyDtoHAsync", target.ctypes.data, address, target.nbytes, stream)

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        self._call("cuMemcpyDtoDAsync", target, source, size, stream)

    def load_kernels(self, source: str, names: Sequence[str]) -> Mapping[str, int]:
        # Modules stay until the device is closed: trajectories that come and go share theirs.
        key = (source, *names)
        if key not in self._kernels:
            self._kernels[key] = self._load_kernels(source, names)
        return self._kernels[key]

    def launch(
        self, kernel: int, blocks: tuple[int, int], threads: int, arguments: Sequence[int], stream: int
    ) -> None:
        values = (tuple(arguments), (ctypes.c_void_p,) * len(arguments))
        self._call("cuLaunchKernel", kernel, *blocks, 1, threads, 1, 1, 0, stream, values, 0)

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        # Of this thread alone: what others do meanwhile is their own affair.
        mode = self._cuda.api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", stream, mode)
        try:
            work()
        except BaseException:
            # What went wrong in the work is the error; that its capture is lost only follows from it.
            with contextlib.suppress(DeviceError):
                self._call("cuGraphDestroy", self._call("cuStreamEndCapture", stream))
            raise
        graph = self._call("cuStreamEndCapture", stream)
        try:
            return int(self._call("cuGraphInstantiate", graph, 0))
        finally:
            self._call("cuGraphDestroy", graph)

    def launch_graph(self, graph: int, stream: int) -> None:
        self._call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call("cuGraphExecDestroy", graph)

    def _load_kernels(self, source: str, names: Sequence[str]) -> Mapping[str, int]:
        module = self._call("cuModuleLoadData", cached_kernels(source, self.capability, self._cache))
        self._modules.append(module)
        functions = {name: self._call("cuModuleGetFunction", module, name.encode()) for name in names}
        for function in functions.values():
            # Left to itself it is loaded when first launched: in a capture that may fail.
            self._call("cuFuncLoad", function)
        return {name: int(function) for name, function in functions.items()}

    def _call(self, name: str, *arguments: Any) -> Any:
        self.make_current()
        return self._cuda(name, *arguments)


def _find(cuda: CheckedDriver, index: int) -> Any:
    """Start the driver and return a device of it; raises BackendError."""
    asked = f"device cuda:{index}"
    try:
        cuda("cuInit", 0)
        supported = cuda("cuDriverGetVersion")
        count = cuda("cuDeviceGetCount")
    except DeviceError as error:
        raise BackendError(
            f"{asked} needs an NVIDIA GPU and its driver, which do not answer: {error}; use "
            "--backend onnxruntime --device cpu"
        ) from error
    needed = cuda.api.CUDA_VERSION // 1000
    if supported // 1000 < needed:
        version = f"{supported // 1000}.{supported % 1000 // 10}"
        raise BackendError(
            f"{asked}: its driver is made for CUDA {version}, the cuda-bindings here for CUDA {needed}; "
            "update the NVIDIA driver, or use --backend onnxruntime --device cpu"
        )
    if index >= count:
        there = "there is only cuda:0" if count == 1 else f"there are {count}, cuda:0 to cuda:{count - 1}"
        raise BackendError(f"{asked} does not exist: {there}")
    return cuda("cuDeviceGet", index)


def _require_whole(array: NDArray[Any]) -> None:
    if not array.flags.c_contiguous:
        raise DeviceError(f"an array {array.shape} with gaps cannot be copied")


def _readable(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
