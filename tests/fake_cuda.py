"""A stand-in for cuda.bindings.driver that writes down its calls; constants and types are the real ones."""

import ctypes
import functools
import re
import threading
from typing import Any

import pytest

real = pytest.importorskip("cuda.bindings.driver")
CONTEXT, OTHER_CONTEXT = 77, 78
# What a device does before it can be used, and in every call of a thread that has used it.
BESIDE = ("cuCtxGetCurrent", "cuCtxSetCurrent", "cuGetErrorName", "cuGetErrorString")


class FakeDriver:
    """Two GPUs of compute capability 9.0; `failures` lets functions return another code than success."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.failures: dict[str, Any] = {}
        self.host = ctypes.create_string_buffer(4096)
        self.current = threading.local()
        self.values: dict[str, tuple[Any, ...]] = {
            "cuDriverGetVersion": (real.CUDA_VERSION,),
            "cuDeviceGetCount": (2,),
            "cuDeviceGet": (real.CUdevice(1),),
            "cuDeviceGetName": (b"Test GPU" + bytes(20),),
            "cuDevicePrimaryCtxRetain": (real.CUcontext(CONTEXT),),
            "cuMemGetInfo": (2**20, 2**30),
            "cuMemAlloc": (real.CUdeviceptr(4096),),
            "cuMemHostAlloc": (ctypes.addressof(self.host),),
            "cuStreamCreate": (real.CUstream(11),),
            "cuEventCreate": (real.CUevent(12),),
            "cuModuleLoadData": (real.CUmodule(13),),
            "cuModuleGetFunction": (real.CUfunction(14),),
            "cuStreamEndCapture": (real.CUgraph(15),),
            "cuGraphInstantiate": (real.CUgraphExec(16),),
        }

    def asked(self) -> list[tuple[Any, ...]]:
        """Return the calls so far, but for those that make the context current, and forget them."""
        calls = [call for call in self.calls if call[0] not in BESIDE]
        self.calls.clear()
        return calls

    def __getattr__(self, name: str) -> Any:
        # Functions are "cu" and a capital letter; enumerations and constants begin with "CU".
        if re.match("cu[A-Z]", name):
            return functools.partial(self._answer, name)
        return getattr(real, name)

    def _answer(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        self.calls.append((name, *arguments))
        code = self.failures.get(name, real.CUresult.CUDA_SUCCESS)
        if isinstance(code, Exception):
            raise code
        values = self.values.get(name, ())
        match name:
            case "cuCtxGetCurrent":
                values = (real.CUcontext(getattr(self.current, "context", 0)),)
            case "cuCtxSetCurrent":
                self.current.context = int(arguments[0])
            case "cuDeviceGetAttribute":
                values = (9 if arguments[0].name.endswith("MAJOR") else 0,)
            case "cuGetErrorName":
                values = (arguments[0].name.encode(),)
            case "cuGetErrorString":
                values = (b"what CUDA says",)
        return (code, *(values if code == real.CUresult.CUDA_SUCCESS else (None,) * len(values)))
