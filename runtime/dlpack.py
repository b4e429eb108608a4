"""Results that stay in a device's memory, for other libraries to take over without a copy (DLPack)."""

import ctypes
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.runtime.backend import BackendError
from flowturbo_trt.runtime.device import Device, DeviceArray

KDLCUDA = 2
# NumPy before 2.1 makes capsules without a version, which every consumer takes.
_HAS_VERSIONS = tuple(map(int, np.__version__.split(".")[:2])) >= (2, 1)


class DLPackError(BackendError, BufferError):
    """An export that DLPack knows but a device tensor cannot give; a BufferError, as the protocol asks."""


class DeviceTensor:
    """An array in a device's memory that owns it: (B,C,H,W) float32 latents or (B,H,W,3) uint8 images.

    The work that fills it must be finished before it is handed out. `release` is called once, on
    whichever thread lets go last, when neither the tensor nor a consumer of its capsules is left; it must
    not hold the tensor. At the process's exit it is not called: a consumer may still be reading.
    """

    device_type = KDLCUDA

    def __init__(self, device: Device, array: DeviceArray, release: Callable[[], None]) -> None:
        self.shape = array.shape
        self.dtype = array.dtype
        self.device = f"cuda:{device.index}"
        self._device = device
        self._array = array
        self._memory = _Memory(array)
        weakref.finalize(self._memory, release).atexit = False

    def host(self) -> NDArray[Any]:
        """Return a copy in host memory; raises BackendError."""
        target = np.empty(self.shape, self.dtype)
        stream = self._device.create_stream()
        try:
            self._device.download(target, self._array.address, stream)
            self._device.synchronize_stream(stream)
        finally:
            self._device.destroy_stream(stream)
        return target

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device_type, self._device.index

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        """Return a capsule over the memory: `dltensor_versioned` from max_version (1,0) on, or `dltensor`.

        A consumer's `stream` need not wait for anything, because the work is finished. Raises DLPackError
        for a copy, another device, or a stream that is none.
        """
        own = self.__dlpack_device__()
        if stream is not None and (not isinstance(stream, int) or isinstance(stream, bool)):
            raise DLPackError(f"stream is {stream!r}, expected the integer of a CUDA stream, or None")
        if dl_device is not None and tuple(dl_device) != own:
            raise DLPackError(f"dl_device is {dl_device}, the tensor is on {own}; use host() for a copy")
        if copy:
            raise DLPackError("copy is True, expected False or None; copy what the consumer makes of it")
        # NumPy's own deleters outlive pending exceptions, foreign threads and the interpreter's end, which
        # callbacks written in Python do not. Making a view of device memory reads none of it.
        view: Any = np.asarray(self._memory)
        capsule: object = view.__dlpack__(**({"max_version": max_version} if _HAS_VERSIONS else {}))
        _set_device(capsule, *own)
        return capsule


class _Memory:
    """What the tensor and all views of its memory keep alive."""

    def __init__(self, array: DeviceArray) -> None:
        self.__array_interface__ = {
            "version": 3,
            "shape": array.shape,
            "typestr": np.dtype(array.dtype).str,
            "data": (array.address, False),
        }


class _Tensor(ctypes.Structure):
    """The beginning of DLPack's DLTensor, and so of DLManagedTensor."""

    _fields_ = (("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32))


class _VersionedTensor(ctypes.Structure):
    """The beginning of DLPack's DLManagedTensorVersioned."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("dl_tensor", _Tensor),
    )


# Prototypes of our own: those of ctypes.pythonapi are shared with every library in the process.
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def _set_device(capsule: object, device_type: int, index: int) -> None:
    """Say in a capsule that nobody has taken yet where its memory is."""
    if _is_valid(capsule, b"dltensor_versioned"):
        tensor = _VersionedTensor.from_address(_pointer(capsule, b"dltensor_versioned")).dl_tensor
    else:
        tensor = _Tensor.from_address(_pointer(capsule, b"dltensor"))
    tensor.device_type, tensor.device_id = device_type, index
