"""CUDA's calls with every return code checked, and what each failure means for whoever reads it."""

import importlib
from typing import Any

from flowturbo_trt.runtime.backend import BackendError
from flowturbo_trt.runtime.device import CaptureError, DeviceError, OutOfMemoryError

_LOST = "nothing can run on it in this process any more: start it again"
_REMEDIES = {
    "CUDA_ERROR_OUT_OF_MEMORY": "use a smaller batch, or end what else uses the GPU",
    "CUDA_ERROR_NO_DEVICE": "nvidia-smi and CUDA_VISIBLE_DEVICES say which GPUs there are",
    "CUDA_ERROR_NO_BINARY_FOR_GPU": "it was compiled for another GPU: build it for this one",
    "CUDA_ERROR_DEVICE_UNAVAILABLE": "another process has it to itself: end that, or change the compute mode "
    "(nvidia-smi --compute-mode)",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "the driver was updated while it was running: restart the machine",
    "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE": "update the NVIDIA driver",
    "CUDA_ERROR_STUB_LIBRARY": "the libcuda that was found is a stand-in for linking: put the driver's own "
    "first on the library path",
    "CUDA_ERROR_ILLEGAL_ADDRESS": f"work on the GPU touched memory that is not its own; {_LOST}",
    "CUDA_ERROR_MISALIGNED_ADDRESS": f"work on the GPU read from an address it cannot read from; {_LOST}",
    "CUDA_ERROR_LAUNCH_FAILED": f"work on the GPU failed; {_LOST}",
    "CUDA_ERROR_LAUNCH_TIMEOUT": f"work on the GPU took longer than the display allows; {_LOST}",
    "CUDA_ERROR_ECC_UNCORRECTABLE": f"the GPU's memory is faulty (nvidia-smi -q -d ECC); {_LOST}",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED": _LOST,
}


def import_bindings(module: str) -> Any:
    """Return cuda.bindings.<module>; raises BackendError where it is not installed."""
    try:
        return importlib.import_module(f"cuda.bindings.{module}")
    except ImportError as error:
        raise BackendError(
            f"device cuda needs cuda-bindings, which cannot be imported ({error}); pip install "
            "'flowturbo_trt[tensorrt-rtx]' or 'flowturbo_trt[cuda]'"
        ) from error


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


class CheckedDriver:
    """Calls functions of cuda.bindings.driver by name; raises DeviceError for whatever is no success."""

    def __init__(self, driver: Any) -> None:
        self.api = driver

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Return what the function returns beside its code: nothing, a value, or a tuple."""
        try:
            result, *values = getattr(self.api, name)(*arguments)
        # The driver's library is looked for at the first call, each of its functions at its own.
        except RuntimeError as error:
            raise DeviceError(f"{name}: {one_line(error)}") from error
        if result != self.api.CUresult.CUDA_SUCCESS:
            raise self._error(name, result)
        return values[0] if len(values) == 1 else tuple(values) or None

    def _error(self, name: str, result: Any) -> DeviceError:
        code, text = (self._describe(describe, result) for describe in ("cuGetErrorName", "cuGetErrorString"))
        message = "; ".join(filter(None, (f"{name}: {code}: {text}", _REMEDIES.get(code))))
        if code == "CUDA_ERROR_OUT_OF_MEMORY":
            return OutOfMemoryError(message)
        if code.startswith("CUDA_ERROR_STREAM_CAPTURE_") or code == "CUDA_ERROR_CAPTURED_EVENT":
            return CaptureError(message)
        return DeviceError(message)

    def _describe(self, describe: str, result: Any) -> str:
        known, text = getattr(self.api, describe)(result)
        return text.decode() if known == self.api.CUresult.CUDA_SUCCESS else f"error {int(result)}"
