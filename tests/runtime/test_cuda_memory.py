"""Streams and memory on a GPU: where arrays lie, and that failures leave nothing behind."""

from functools import partial

import numpy as np
import pytest

from flowturbo_trt.runtime.buffers import Block, Field, Layout
from flowturbo_trt.runtime.cuda_memory import StagedBlock, Streams, TrajectoryMemory
from flowturbo_trt.runtime.device import ALIGNMENT, DeviceArray, DeviceError
from flowturbo_trt.tests.runtime.emulated_machines import NOTHING, WatchedDevice, held

LAYOUT = Layout(
    Block((Field("noise", (3, 5)), Field("label", (3,), "int64"))),
    Block((Field("register", (4, 100)),)),
    Block((Field("image", (3, 2, 2, 3), "uint8"),)),
)


@pytest.fixture
def device() -> WatchedDevice:
    return WatchedDevice()


def test_streams(device: WatchedDevice) -> None:
    """Three, whose work is over before they end."""
    streams = Streams.on(device)
    assert len({streams.upload, streams.compute, streams.download}) == 3
    done: list[int] = []
    for stream in (streams.upload, streams.compute, streams.download):
        device.enqueue_host(stream, partial(done.append, stream))
    streams.close()
    assert sorted(done) == [streams.upload, streams.compute, streams.download]
    assert held(device.counters) == NOTHING


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_streams_that_cannot_be_made(device: WatchedDevice, fails_at: int) -> None:
    device.fails_at = fails_at
    with pytest.raises(DeviceError, match="create_stream failed"):
        Streams.on(device)
    assert held(device.counters) == NOTHING


def test_layout_in_one_allocation(device: WatchedDevice) -> None:
    """Blocks follow each other, arrays are aligned, and inputs are zero: nothing else is known."""
    streams = Streams.on(device)
    memory = TrajectoryMemory(LAYOUT, streams)
    assert device.counters.live_allocations == 1
    assert device.counters.live_bytes == LAYOUT.nbytes == 3 * ALIGNMENT + 7 * ALIGNMENT
    assert memory.work.address == memory.inputs.address + LAYOUT.inputs.nbytes
    assert memory.results.address == memory.work.address + LAYOUT.work.nbytes
    for block, found in zip(LAYOUT.blocks, (memory.inputs, memory.work, memory.results), strict=True):
        for field in block.fields:
            array = memory.array(field.name)
            assert array == DeviceArray(found.address + block.offsets[field.name], field.shape, field.dtype)
            assert array.address % ALIGNMENT == 0
    assert not device.array(memory.array("noise")).any()
    assert not device.array(memory.array("label")).any()
    memory.free()
    streams.close()
    assert held(device.counters) == NOTHING


def test_rows(device: WatchedDevice) -> None:
    streams = Streams.on(device)
    memory = TrajectoryMemory(LAYOUT, streams)
    whole = np.arange(400, dtype=np.float32).reshape(4, 100)
    memory.write(memory.array("register").address, whole, streams.compute)
    for rows in (slice(1, 3), slice(0, 4), slice(2, None), slice(3, 4)):
        found = memory.array("register", rows)
        assert found.shape == whole[rows].shape
        np.testing.assert_array_equal(device.array(found), whole[rows])
        np.testing.assert_array_equal(memory.read(found, streams.compute), whole[rows])


def test_read_is_in_the_streams_order(device: WatchedDevice) -> None:
    streams = Streams.on(device)
    memory = TrajectoryMemory(LAYOUT, streams)
    array = memory.array("label")

    def work() -> None:
        device.array(array)[...] = 7

    device.enqueue_host(streams.compute, work)
    assert memory.read(array, streams.compute).tolist() == [7, 7, 7]


@pytest.mark.parametrize("failing", ["allocate", "upload"])
def test_layout_that_cannot_be_allocated(device: WatchedDevice, failing: str) -> None:
    streams = Streams.on(device)
    device.fails_at = device.asked.total() + ("allocate", "upload").index(failing) + 1
    with pytest.raises(DeviceError, match=f"the {failing} failed"):
        TrajectoryMemory(LAYOUT, streams)
    streams.close()
    assert held(device.counters) == NOTHING


def test_staged_block(device: WatchedDevice) -> None:
    """The same arrays on both sides, copied as one."""
    stream = device.create_stream()
    block = StagedBlock(LAYOUT.inputs, device)
    assert block.nbytes == block.memory.nbytes == LAYOUT.inputs.nbytes
    block.host.arrays["noise"][...] = 3
    block.host.arrays["label"][...] = [4, 5, 6]
    device.upload(block.device.address, block.memory, stream)
    device.synchronize_stream(stream)
    assert (device.array(block.device.arrays["noise"]) == 3).all()
    assert device.array(block.device.arrays["label"]).tolist() == [4, 5, 6]
    block.free()
    device.destroy_stream(stream)
    assert held(device.counters) == NOTHING


@pytest.mark.parametrize("fails_at", [1, 2])
def test_staged_block_that_cannot_be_allocated(device: WatchedDevice, fails_at: int) -> None:
    device.fails_at = fails_at
    with pytest.raises(DeviceError):
        StagedBlock(LAYOUT.inputs, device)
    assert held(device.counters) == NOTHING
