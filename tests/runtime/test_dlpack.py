"""Tensors in device memory, handed on without a copy: the device is emulated in host memory."""

import ctypes
import gc
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flowturbo_trt.runtime.device import DeviceArray
from flowturbo_trt.runtime.dlpack import DeviceTensor, DLPackError

KDLCPU = 1
LATENTS = np.arange(2 * 4 * 3 * 5, dtype=np.float32).reshape(2, 4, 3, 5)
IMAGES = np.arange(2 * 6 * 10 * 3, dtype=np.uint8).reshape(2, 6, 10, 3)
VERSIONS = [None, (0, 8), (1, 0)]


class HostDevice:
    """Host memory that is allocated, read in a stream's order, and freed."""

    index = 3

    def __init__(self) -> None:
        self.blocks: dict[int, NDArray[np.uint8]] = {}
        self.streams: list[int] = []
        self.asked: dict[int, list[tuple[NDArray[Any], int]]] = {}
        self.freed: list[int] = []

    def place(self, values: NDArray[Any]) -> DeviceArray:
        block = np.frombuffer(values.tobytes(), np.uint8).copy()
        self.blocks[block.ctypes.data] = block
        return DeviceArray(block.ctypes.data, values.shape, values.dtype.name)

    def free(self, address: int) -> None:
        del self.blocks[address]
        self.freed.append(address)

    def create_stream(self) -> int:
        self.streams.append(len(self.streams) + 1)
        self.asked[self.streams[-1]] = []
        return self.streams[-1]

    def download(self, target: NDArray[Any], address: int, stream: int) -> None:
        self.asked[stream].append((target, address))

    def synchronize_stream(self, stream: int) -> None:
        for target, address in self.asked[stream]:
            ctypes.memmove(target.ctypes.data, address, target.nbytes)

    def destroy_stream(self, stream: int) -> None:
        self.streams.remove(stream)


class HostTensor(DeviceTensor):
    """One that NumPy and a torch without CUDA can take."""

    device_type = KDLCPU


class Given:
    """A producer that hands out the same capsule again and again."""

    def __init__(self, tensor: DeviceTensor, version: tuple[int, int] | None) -> None:
        self.capsule = tensor.__dlpack__(max_version=version)

    def __dlpack__(self, **_: Any) -> object:
        return self.capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return KDLCPU, 0


class Once(Given):
    """A producer that keeps nothing of what it hands out."""

    def __dlpack__(self, **_: Any) -> object:
        return self.__dict__.pop("capsule")


@pytest.fixture
def device() -> HostDevice:
    return HostDevice()


def tensor_on(
    device: HostDevice, values: NDArray[Any], kind: type[DeviceTensor] = HostTensor
) -> DeviceTensor:
    array = device.place(values)
    return kind(device, array, lambda: device.free(array.address))  # type: ignore[arg-type]


def consume(library: str, producer: object) -> Any:
    return pytest.importorskip(library).from_dlpack(producer)


def address_of(consumer: Any) -> int:
    address: int = consumer.ctypes.data if isinstance(consumer, np.ndarray) else consumer.data_ptr()
    return address


@pytest.mark.parametrize("values", [LATENTS, IMAGES], ids=["float32", "uint8"])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_consumers_see_the_same_memory(
    device: HostDevice, library: str, version: tuple[int, int] | None, values: NDArray[Any]
) -> None:
    tensor = tensor_on(device, values)
    (address,) = device.blocks
    seen = consume(library, Given(tensor, version))
    assert address_of(seen) == address
    np.testing.assert_array_equal(np.asarray(seen), values)
    assert np.asarray(seen).dtype == values.dtype
    device.blocks[address][-8:] = 1
    assert (np.asarray(seen) != values).any()
    np.testing.assert_array_equal(tensor.host(), np.asarray(seen))


def test_tensor_describes_itself(device: HostDevice) -> None:
    tensor = tensor_on(device, LATENTS, DeviceTensor)
    assert (tensor.shape, tensor.dtype, tensor.device) == ((2, 4, 3, 5), "float32", "cuda:3")
    assert tensor.__dlpack_device__() == (2, 3)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_library_takes_the_tensor_itself(device: HostDevice, library: str) -> None:
    device.index = 0
    np.testing.assert_array_equal(np.asarray(consume(library, tensor_on(device, IMAGES))), IMAGES)


# DLTensor of dlpack.h: data, device type and index, ndim, dtype, shape, strides, byte_offset.
DL_TENSOR = "PiiiBBHPPQ"


# DLManagedTensorVersioned has the version, the context, the deleter and the flags before the tensor.
@pytest.mark.parametrize(
    ("version", "name", "offset"), [((0, 8), b"dltensor", 0), ((1, 0), b"dltensor_versioned", 32)]
)
def test_capsule_is_on_the_gpu(
    device: HostDevice, version: tuple[int, int], name: bytes, offset: int
) -> None:
    tensor = tensor_on(device, LATENTS, DeviceTensor)
    capsule = tensor.__dlpack__(max_version=version, stream=1, dl_device=(2, 3), copy=False)
    pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi)
    )(capsule, name)
    if offset:
        assert ctypes.c_uint32.from_address(pointer).value == 1
        # Neither read-only nor a copy.
        assert ctypes.c_uint64.from_address(pointer + 24).value == 0
    found = struct.unpack(DL_TENSOR, ctypes.string_at(pointer + offset, struct.calcsize(DL_TENSOR)))
    assert found[0] + found[-1] in device.blocks
    assert found[1:7] == (2, 3, 4, 2, 32, 1)
    shape, strides = ((ctypes.c_int64 * 4).from_address(address) for address in found[7:9])
    assert (list(shape), list(strides)) == ([2, 4, 3, 5], [60, 15, 5, 1])


@pytest.mark.parametrize("version", VERSIONS)
def test_memory_is_released_after_the_last_consumer(
    device: HostDevice, version: tuple[int, int] | None
) -> None:
    tensor = tensor_on(device, LATENTS)
    (address,) = device.blocks
    first, second = np.from_dlpack(Given(tensor, version)), np.from_dlpack(Given(tensor, version))
    part = second[1]
    del tensor, first
    assert device.freed == []
    del second
    np.testing.assert_array_equal(part, LATENTS[1])
    del part
    assert device.freed == [address]


@pytest.mark.parametrize("version", VERSIONS)
def test_capsule_that_nobody_takes_releases(device: HostDevice, version: tuple[int, int] | None) -> None:
    tensor = tensor_on(device, LATENTS)
    capsule = tensor.__dlpack__(max_version=version)
    del tensor
    assert device.freed == []
    del capsule
    assert len(device.freed) == 1


def test_tensor_outlives_its_consumers(device: HostDevice) -> None:
    tensor = tensor_on(device, LATENTS)
    np.from_dlpack(Given(tensor, None))
    assert device.freed == []
    np.testing.assert_array_equal(tensor.host(), LATENTS)
    del tensor
    assert len(device.freed) == 1


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_capsule_is_taken_once(device: HostDevice, library: str, version: tuple[int, int] | None) -> None:
    given = Given(tensor_on(device, LATENTS), version)
    first = consume(library, given)
    with pytest.raises((ValueError, RuntimeError), match=r"(?i)capsule"):
        consume(library, given)
    np.testing.assert_array_equal(np.asarray(first), LATENTS)
    del first, given
    gc.collect()
    assert len(device.freed) == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_refusing_consumer_raises_its_own_error(device: HostDevice, version: tuple[int, int] | None) -> None:
    """NumPy drops the capsule with its error already set: releasing must not lose it."""
    given = Once(tensor_on(device, LATENTS, DeviceTensor), version)
    with pytest.raises(RuntimeError, match=r"[Dd]evice"):
        np.from_dlpack(given)
    gc.collect()
    assert len(device.freed) == 1


def test_memory_is_released_from_another_thread(device: HostDevice) -> None:
    held = [np.from_dlpack(Given(tensor_on(device, LATENTS), (1, 0)))]
    assert device.freed == []
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert len(device.freed) == 1


def test_thousands_of_tensors_leave_nothing(device: HostDevice) -> None:
    gc.collect()
    before = len(gc.get_objects())
    for index in range(3000):
        tensor = tensor_on(device, LATENTS)
        version = VERSIONS[index % 3]
        capsule = tensor.__dlpack__(max_version=version)
        seen = np.from_dlpack(Given(tensor, version))
        assert seen[1, 0, 0, 0] == 60
    del tensor, capsule, seen
    assert len(device.freed) == 3000
    assert device.blocks == {}
    gc.collect()
    assert len(gc.get_objects()) - before < 100


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"copy": True}, "copy is True"),
        ({"dl_device": (1, 0)}, r"dl_device is \(1, 0\), the tensor is on \(2, 3\)"),
        ({"dl_device": (2, 0)}, r"dl_device is \(2, 0\)"),
        ({"stream": "1"}, "stream is '1'"),
        ({"stream": 1.0}, "stream is 1.0"),
        ({"stream": True}, "stream is True"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    device: HostDevice, asked: dict[str, Any], complaint: str
) -> None:
    tensor = tensor_on(device, LATENTS, DeviceTensor)
    with pytest.raises(DLPackError, match=complaint) as caught:
        tensor.__dlpack__(**asked)
    assert isinstance(caught.value, BufferError)


def test_host_copies_once_the_stream_is_done(device: HostDevice) -> None:
    tensor = tensor_on(device, IMAGES)
    copy = tensor.host()
    np.testing.assert_array_equal(copy, IMAGES)
    assert copy.dtype == np.uint8
    copy[...] = 0
    np.testing.assert_array_equal(tensor.host(), IMAGES)
    assert device.streams == []


EXIT = """
import numpy as np
from flowturbo_trt.tests.runtime.test_dlpack import Given, HostDevice, HostTensor, LATENTS

device = HostDevice()
array = device.place(LATENTS)
tensor = HostTensor(device, array, lambda: print("released"))
given = [Given(tensor, version) for version in (None, (1, 0), None, (1, 0))]
seen = [np.from_dlpack(producer) for producer in given[:2]]
"""


def test_process_exits_with_consumers_left() -> None:
    """Taken and untaken capsules, and their memory, are left to the process's end."""
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", EXIT], cwd=root, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
