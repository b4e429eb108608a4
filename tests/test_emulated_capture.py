"""Graphs of the emulated device: captured without being done, and only what CUDA could capture."""

import contextlib
import threading
from collections.abc import Callable

import numpy as np
import pytest

from flowturbo_trt.runtime.device import CaptureError, DeviceError
from flowturbo_trt.tests.emulated_device import EmulatedDevice
from flowturbo_trt.tests.emulated_streams import POLICIES


@pytest.fixture(params=POLICIES)
def device(request: pytest.FixtureRequest) -> EmulatedDevice:
    return EmulatedDevice(request.param)


def test_captured_work_is_done_when_launched(device: EmulatedDevice) -> None:
    """Not before, every time, and on what is at its addresses by then."""
    stream, address = device.create_stream(), device.allocate(4)
    source, target, event = device.allocate_pinned(4), device.allocate_pinned(4), device.create_event()

    def work() -> None:
        device.upload(address, source, stream)
        device.record(event, stream)
        device.wait(stream, event)
        device.download(target, address, stream)

    target[:] = 0
    graph = device.capture(stream, work)
    device.synchronize_stream(stream)
    assert target.tolist() == [0] * 4
    for value in (2, 3):
        source[:] = value
        device.launch_graph(graph, stream)
        device.synchronize_stream(stream)
        assert target.tolist() == [value] * 4
    assert (device.counters.uploads, device.counters.graph_launches) == (0, 2)
    with pytest.raises(CaptureError, match="recorded in a capture"):
        device.synchronize(event)
    device.free(address)

    def launch_and_wait() -> None:
        device.launch_graph(graph, stream)
        device.synchronize_stream(stream)

    with pytest.raises(DeviceError, match="freed"):
        launch_and_wait()


Mistake = Callable[["DeviceWithBlock", int, int], object]
MISTAKES: dict[str, Mistake] = {
    "allocating": lambda device, stream, event: device.allocate_pinned(4),
    "freeing": lambda device, stream, event: device.free(0),
    "waiting on the host": lambda device, stream, event: device.synchronize(event),
    "waiting on the host during": lambda device, stream, event: device.synchronize_stream(stream),
    "from before the capture": lambda device, stream, event: device.wait(stream, event),
    "not pinned": lambda device, stream, event: device.download(np.zeros(1), device.kept, stream),
    "loading kernels": lambda device, stream, event: device.load_kernels("", []),
    "capturing": lambda device, stream, event: device.capture(stream, lambda: None),
}


class DeviceWithBlock(EmulatedDevice):
    """A device that has 8 bytes allocated, at `kept`."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: int = self.allocate(8)


@pytest.mark.parametrize(("complaint", "mistake"), MISTAKES.items(), ids=MISTAKES)
@pytest.mark.parametrize("hidden", [False, True])
def test_what_no_graph_can_hold(complaint: str, mistake: Mistake, hidden: bool) -> None:
    """The capture fails even if the work hides what went wrong in it."""
    device = DeviceWithBlock()
    stream, event = device.create_stream(), device.create_event()
    device.record(event, stream)

    def work() -> None:
        with contextlib.suppress(CaptureError) if hidden else contextlib.nullcontext():
            mistake(device, stream, event)

    with pytest.raises(CaptureError, match=complaint):
        device.capture(stream, work)
    assert device.counters.live_graphs == 0
    device.synchronize_stream(stream)


def test_failing_work_leaves_no_capture(device: EmulatedDevice) -> None:
    stream, ran = device.create_stream(), list[int]()

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        device.capture(stream, fail)
    device.enqueue_host(stream, lambda: ran.append(1))
    device.synchronize_stream(stream)
    assert ran == [1]


def test_other_threads_go_on_during_a_capture(device: EmulatedDevice) -> None:
    stream, other = device.create_stream(), device.create_stream()

    def elsewhere() -> None:
        device.allocate(4)
        device.synchronize_stream(other)

    def work() -> None:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()

    device.capture(stream, work)
    assert device.counters.allocations == 1
