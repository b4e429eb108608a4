"""The CUDA device: which driver calls it makes, in which order and context."""

import ctypes
import ctypes.util
import inspect
import os
import threading
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.runtime.cuda_driver import CudaDevice
from flowturbo_trt.runtime.device import CaptureError, Device, DeviceError, OutOfMemoryError
from flowturbo_trt.tests.fake_cuda import CONTEXT, OTHER_CONTEXT, FakeDriver, real

CUresult = real.CUresult
HOST = np.arange(6, dtype=np.float32)
MODE = real.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
KERNEL = 'extern "C" __global__ void one(float* y) { y[threadIdx.x] = 1.0f; }'

# What is asked of the device, what it asks of the driver, and what it returns.
Ask = Callable[[CudaDevice], object]
ASKED: list[tuple[Ask, tuple[Any, ...], object]] = [
    (lambda d: d.memory(), ("cuMemGetInfo",), (2**20, 2**30)),
    (lambda d: d.allocate(100), ("cuMemAlloc", 100), 4096),
    (lambda d: d.free(4096), ("cuMemFree", 4096), None),
    (lambda d: d.free_pinned(HOST.view(np.uint8)), ("cuMemFreeHost", HOST.ctypes.data), None),
    (lambda d: d.create_stream(), ("cuStreamCreate", real.CUstream_flags.CU_STREAM_NON_BLOCKING), 11),
    (lambda d: d.destroy_stream(11), ("cuStreamDestroy", 11), None),
    (lambda d: d.create_event(), ("cuEventCreate", real.CUevent_flags.CU_EVENT_DISABLE_TIMING), 12),
    (lambda d: d.destroy_event(12), ("cuEventDestroy", 12), None),
    (lambda d: d.record(12, 11), ("cuEventRecord", 12, 11), None),
    (lambda d: d.wait(11, 12), ("cuStreamWaitEvent", 11, 12, 0), None),
    (lambda d: d.synchronize(12), ("cuEventSynchronize", 12), None),
    (lambda d: d.synchronize_stream(11), ("cuStreamSynchronize", 11), None),
    (lambda d: d.upload(4096, HOST, 11), ("cuMemcpyHtoDAsync", 4096, HOST.ctypes.data, 24, 11), None),
    (lambda d: d.download(HOST, 4096, 11), ("cuMemcpyDtoHAsync", HOST.ctypes.data, 4096, 24, 11), None),
    (lambda d: d.copy(8192, 4096, 24, 11), ("cuMemcpyDtoDAsync", 8192, 4096, 24, 11), None),
    (
        lambda d: d.launch(14, (3, 2), 128, [4096, 8192], 11),
        ("cuLaunchKernel", 14, 3, 2, 1, 128, 1, 1, 0, 11, ((4096, 8192), (ctypes.c_void_p,) * 2), 0),
        None,
    ),
    (lambda d: d.launch_graph(16, 11), ("cuGraphLaunch", 16, 11), None),
    (lambda d: d.destroy_graph(16), ("cuGraphExecDestroy", 16), None),
]
NAMES = [call[0] for _, call, _ in ASKED]


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
def device(driver: FakeDriver, tmp_path: Path) -> CudaDevice:
    device = CudaDevice(1, driver, tmp_path)
    driver.calls.clear()
    return device


def test_device_has_the_signatures_of_a_device() -> None:
    methods = {name: member for name, member in vars(Device).items() if inspect.isfunction(member)}
    for name in (name for name in methods if not name.startswith("_")):
        assert inspect.signature(getattr(CudaDevice, name)) == inspect.signature(methods[name]), name


@pytest.mark.parametrize(("ask", "call", "answer"), ASKED, ids=NAMES)
def test_device_asks_the_driver(
    device: CudaDevice, driver: FakeDriver, ask: Ask, call: tuple[Any, ...], answer: object
) -> None:
    assert ask(device) == answer
    assert driver.asked() == [call]


@pytest.mark.parametrize(("ask", "call", "answer"), ASKED, ids=NAMES)
def test_every_code_is_checked(
    device: CudaDevice, driver: FakeDriver, ask: Ask, call: tuple[Any, ...], answer: object
) -> None:
    driver.failures[call[0]] = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(DeviceError, match=rf"{call[0]}: CUDA_ERROR_ILLEGAL_ADDRESS: what CUDA says; work on"):
        ask(device)


@pytest.mark.skipif(ctypes.util.find_library("cuda") is not None, reason="it would really be done")
def test_the_real_bindings_take_these_arguments(device: CudaDevice, driver: FakeDriver) -> None:
    """They convert what they are given before they look for the driver's library."""
    for ask, _, _ in ASKED:
        ask(device)
    device.allocate_pinned(16)
    device.capture(11, lambda: None)
    device.load_kernels(KERNEL, ["one"])
    device.close()
    CudaDevice(0, driver, None)
    calls = {call[0]: call for call in driver.calls}
    assert len(calls) >= 35
    assert in_a_child(lambda: call_without_driver(calls.values())) == 0


def call_without_driver(calls: Iterable[tuple[Any, ...]]) -> None:
    for name, *arguments in calls:
        with pytest.raises(RuntimeError, match="NVIDIA driver"):
            getattr(real, name)(*arguments)


def in_a_child(work: Callable[[], None]) -> int:
    """Do something in a forked process and return its status: addresses here are made up."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_context_becomes_current_where_it_is_not(device: CudaDevice, driver: FakeDriver) -> None:
    def made_current() -> int:
        device.record(12, 11)
        asked = [call for call in driver.calls if call[0] == "cuCtxSetCurrent"]
        assert all(int(call[1]) == CONTEXT for call in asked)
        driver.calls.clear()
        return len(asked)

    counts = [made_current(), made_current()]
    thread = threading.Thread(target=lambda: counts.extend((made_current(), made_current())))
    thread.start()
    thread.join()
    # Another library took the thread over.
    driver.current.context = OTHER_CONTEXT
    assert [*counts, made_current()] == [1, 0, 1, 0, 1]


def test_pinned_memory_is_the_drivers(device: CudaDevice, driver: FakeDriver) -> None:
    array = device.allocate_pinned(8)
    assert driver.asked() == [("cuMemHostAlloc", 8, real.CU_MEMHOSTALLOC_PORTABLE)]
    array.view(np.float32)[:] = (1, 2)
    assert driver.host.raw[:8] == np.array([1, 2], np.float32).tobytes()
    device.free_pinned(array)
    assert driver.asked() == [("cuMemFreeHost", ctypes.addressof(driver.host))]


def test_copies_are_of_whole_arrays(device: CudaDevice, driver: FakeDriver) -> None:
    with pytest.raises(DeviceError, match=r"\(2, 2\) with gaps"):
        device.upload(4096, np.zeros((2, 3))[:, :2], 11)
    with pytest.raises(DeviceError, match=r"\(3, 2\) with gaps"):
        device.download(np.zeros((2, 3)).T, 4096, 11)
    with pytest.raises(DeviceError, match="read-only"):
        device.download(np.broadcast_to(np.float32(0), ()), 4096, 11)
    assert driver.asked() == []


def test_full_memory_is_told_in_figures(device: CudaDevice, driver: FakeDriver) -> None:
    driver.failures |= dict.fromkeys(("cuMemAlloc", "cuMemHostAlloc"), CUresult.CUDA_ERROR_OUT_OF_MEMORY)
    with pytest.raises(OutOfMemoryError, match=r"3\.0 MiB asked of Test GPU, where 1\.0 MiB of 1024\.0"):
        device.allocate(3 * 2**20)
    with pytest.raises(OutOfMemoryError, match=r"3\.0 MiB of pinned host memory"):
        device.allocate_pinned(3 * 2**20)


CAPTURED = [("cuStreamBeginCapture", 11, MODE), ("cuEventRecord", 12, 11), ("cuStreamEndCapture", 11)]
DESTROYED = ("cuGraphDestroy", real.CUgraph(15))


def names(calls: list[tuple[Any, ...]]) -> list[str]:
    return [call[0] for call in calls]


def test_capture_makes_a_graph(device: CudaDevice, driver: FakeDriver) -> None:
    assert device.capture(11, lambda: device.record(12, 11)) == 16
    asked = driver.asked()
    assert asked[:3] == CAPTURED
    assert [(name, int(graph)) for name, graph, *_ in asked[3:]] == [
        ("cuGraphInstantiate", 15),
        ("cuGraphDestroy", 15),
    ]


@pytest.mark.parametrize("error", [ZeroDivisionError("own"), KeyboardInterrupt("own")])
@pytest.mark.parametrize("lost", [False, True])
def test_failing_work_ends_its_capture(
    device: CudaDevice, driver: FakeDriver, error: BaseException, lost: bool
) -> None:
    def work() -> None:
        raise error

    if lost:
        driver.failures["cuStreamEndCapture"] = CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    with pytest.raises(type(error), match="own"):
        device.capture(11, work)
    ended = ["cuStreamBeginCapture", "cuStreamEndCapture"]
    assert names(driver.asked()) == (ended if lost else [*ended, "cuGraphDestroy"])


def test_lost_capture_has_its_own_error(device: CudaDevice, driver: FakeDriver) -> None:
    driver.failures["cuStreamEndCapture"] = CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    with pytest.raises(CaptureError, match="CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"):
        device.capture(11, lambda: None)


def test_graph_that_cannot_be_made_is_destroyed(device: CudaDevice, driver: FakeDriver) -> None:
    driver.failures["cuGraphInstantiate"] = CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(OutOfMemoryError, match="cuGraphInstantiate"):
        device.capture(11, lambda: None)
    assert names(driver.asked())[-1] == "cuGraphDestroy"


def test_kernels_are_loaded_and_unloaded(device: CudaDevice, driver: FakeDriver) -> None:
    assert device.load_kernels(KERNEL, ["one"]) == {"one": 14}
    (load, cubin), (get, module, name), (finish, _) = driver.asked()
    assert (load, get, finish) == ("cuModuleLoadData", "cuModuleGetFunction", "cuFuncLoad")
    assert (cubin[:4], int(module), name) == (b"\x7fELF", 13, b"one")
    # A trajectory that is bound again finds them.
    assert device.load_kernels(KERNEL, ["one"]) == {"one": 14}
    assert driver.asked() == []
    device.close()
    (unload, module), (release, gpu) = driver.asked()
    assert (unload, int(module)) == ("cuModuleUnload", 13)
    assert (release, int(gpu)) == ("cuDevicePrimaryCtxRelease", 1)
    device.close()
    assert driver.asked() == []
    with pytest.raises(DeviceError, match="cuda:1 was closed"):
        device.allocate(4)


def test_context_is_released_after_a_failure(device: CudaDevice, driver: FakeDriver) -> None:
    device.load_kernels(KERNEL, ["one"])
    driver.failures["cuModuleUnload"] = CUresult.CUDA_ERROR_LAUNCH_FAILED
    with pytest.raises(DeviceError, match="cuModuleUnload"):
        device.close()
    assert names(driver.asked())[-1] == "cuDevicePrimaryCtxRelease"
