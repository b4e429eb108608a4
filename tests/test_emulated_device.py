"""The emulated device shows what a GPU may do to a program that does not wait where it must."""

import inspect
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from flowturbo_trt.runtime.device import (
    ALIGNMENT,
    Device,
    DeviceArray,
    DeviceError,
    OutOfMemoryError,
)
from flowturbo_trt.tests.emulated_device import EmulatedDevice
from flowturbo_trt.tests.emulated_kernels import needs_compiler
from flowturbo_trt.tests.emulated_streams import POLICIES, Policy

AXPY = """
extern "C" __global__ void axpy(const float* __restrict__ c, const float* __restrict__ x, float* y) {
    unsigned i = blockIdx.y * gridDim.x * blockDim.x + blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = __fadd_rn(__fmul_rn(c[0], x[i]), y[i]);
}
extern "C" __global__ void past_the_end(float* y) { y[8] = 1.0f; }
"""
SEEDS = range(8)
DEVICES = [(policy, 0) for policy in POLICIES if policy != "random"] + [("random", seed) for seed in SEEDS]


def pinned(device: EmulatedDevice, *values: float) -> NDArray[np.float32]:
    array = device.allocate_pinned(4 * len(values)).view(np.float32)
    array[:] = values
    return array


def relay(device: EmulatedDevice, *, wait: bool) -> float:
    """Upload on one stream, download on another, and return what came through."""
    first, second, event = device.create_stream(), device.create_stream(), device.create_event()
    source, target, address = pinned(device, 7), pinned(device, 0), device.allocate(4)
    device.upload(address, source, first)
    device.record(event, first)
    if wait:
        device.wait(second, event)
    device.download(target, address, second)
    device.synchronize_stream(second)
    return float(target[0])


@pytest.fixture(params=POLICIES)
def device(request: pytest.FixtureRequest) -> EmulatedDevice:
    return EmulatedDevice(request.param)


def test_emulation_has_the_signatures_of_a_device() -> None:
    methods = {name: member for name, member in vars(Device).items() if inspect.isfunction(member)}
    methods = {name: member for name, member in methods.items() if not name.startswith("_")}
    assert len(methods) > 20
    for name, method in methods.items():
        assert inspect.signature(getattr(EmulatedDevice, name)) == inspect.signature(method), name


@pytest.mark.parametrize(("policy", "seed"), DEVICES)
def test_right_program_has_one_result(policy: Policy, seed: int) -> None:
    assert relay(EmulatedDevice(policy, seed=seed), wait=True) == 7


def test_missing_wait_shows() -> None:
    assert np.isnan(relay(EmulatedDevice("lazy"), wait=False))
    by_chance = [relay(EmulatedDevice("random", seed=seed), wait=False) for seed in SEEDS]
    assert 7 in by_chance
    assert np.isnan(by_chance).any()


def test_missing_synchronisation_shows() -> None:
    device = EmulatedDevice("lazy")
    stream, target, address = device.create_stream(), pinned(device, 1), device.allocate(4)
    device.upload(address, pinned(device, 7), stream)
    device.download(target, address, stream)
    assert target[0] == 1
    device.synchronize_stream(stream)
    assert target[0] == 7


@pytest.mark.parametrize(("policy", "expected"), [("lazy", 8), ("eager", 7)])
def test_overwriting_a_source_too_early_shows(policy: Policy, expected: float) -> None:
    device = EmulatedDevice(policy)
    stream, source, address = device.create_stream(), pinned(device, 7), device.allocate(4)
    device.upload(address, source, stream)
    source[:] = 8
    device.synchronize_stream(stream)
    assert device.array(DeviceArray(address, (1,), "float32"))[0] == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_lazy_runs_only_what_is_needed(seed: int) -> None:
    """By no chance."""
    device, ran = EmulatedDevice("lazy", seed=seed), list[str]()
    needed, other = device.create_stream(), device.create_stream()
    event, end = device.create_event(), device.create_event()

    def note(name: str) -> Callable[[], None]:
        return lambda: ran.append(name)

    device.enqueue_host(other, note("other before"))
    device.record(event, other)
    device.enqueue_host(other, note("other after"))
    device.enqueue_host(needed, note("first"))
    device.wait(needed, event)
    device.enqueue_host(needed, note("second"))
    device.record(end, needed)
    device.enqueue_host(needed, note("third"))
    device.synchronize(end)
    assert ran == ["first", "other before", "second"]


def test_wait_is_for_the_record_before_it(device: EmulatedDevice) -> None:
    """An event recorded again later holds up nobody who waited for the earlier record."""
    first, second, event = device.create_stream(), device.create_stream(), device.create_event()
    device.wait(first, event)
    device.record(event, second)
    device.wait(first, event)
    device.record(event, first)
    device.synchronize(event)
    device.synchronize_stream(second)


def test_work_of_a_destroyed_stream_is_done(device: EmulatedDevice) -> None:
    stream, other, event, ran = device.create_stream(), device.create_stream(), device.create_event(), []
    device.enqueue_host(stream, lambda: ran.append(1))
    device.record(event, stream)
    device.destroy_stream(stream)
    device.wait(other, event)
    device.synchronize_stream(other)
    assert ran == [1]
    with pytest.raises(DeviceError, match=f"stream {stream} does not exist"):
        device.synchronize_stream(stream)


def test_memory_starts_as_nan_and_ends_as_nan(device: EmulatedDevice) -> None:
    address = device.allocate(12)
    assert address % ALIGNMENT == 0
    array = device.array(DeviceArray(address, (3,), "float32"))
    assert np.isnan(array).all()
    array[:] = 1
    device.free(address)
    assert np.isnan(array).all()
    with pytest.raises(DeviceError, match="not the address of an allocation"):
        device.free(address)


def test_stale_addresses_are_caught() -> None:
    device = EmulatedDevice("lazy")
    stream, address = device.create_stream(), device.allocate(8)
    device.download(pinned(device, 0), address, stream)
    device.free(address)
    with pytest.raises(DeviceError, match=f"{address:#x}: freed"):
        device.synchronize_stream(stream)
    with pytest.raises(DeviceError, match=f"{address:#x}: freed"):
        device.copy(address, device.allocate(8), 8, stream)
    assert device.allocate(8) != address


def test_copies_stay_in_their_block(device: EmulatedDevice) -> None:
    stream, address = device.create_stream(), device.allocate(8)
    with pytest.raises(DeviceError, match="end 4 behind their block"):
        device.upload(address + 4, pinned(device, 1, 2), stream)
    with pytest.raises(DeviceError, match="never allocated"):
        device.download(pinned(device, 1), address - 4, stream)
    with pytest.raises(DeviceError, match="end 1 behind"):
        device.copy(address, address, 9, stream)
    with pytest.raises(DeviceError, match="gaps"):
        device.upload(address, np.zeros((2, 4), np.uint8)[:, :2], stream)


def test_host_memory_must_outlive_its_copy() -> None:
    device = EmulatedDevice("lazy")
    stream, address = device.create_stream(), device.allocate(8)
    device.upload(address, np.ones(4, np.float32)[1:3], stream)
    with pytest.raises(DeviceError, match="8 bytes of host memory of a copy were freed"):
        device.synchronize_stream(stream)
    kept = np.arange(4, dtype=np.float32)
    device.upload(address, kept[1:3], stream)
    device.synchronize_stream(stream)
    assert device.array(DeviceArray(address, (2,), "float32")).tolist() == [1, 2]


def test_memory_has_a_limit(device: EmulatedDevice) -> None:
    device.memory_limit = 1000
    address = device.allocate(600)
    with pytest.raises(OutOfMemoryError, match="no room for 500 bytes: 400 of 1000 are free"):
        device.allocate(500)
    assert device.memory() == (400, 1000)
    device.free(address)
    device.allocate(500)


@needs_compiler
def test_kernel_gives_numpys_bits(device: EmulatedDevice) -> None:
    rng = np.random.default_rng(0)
    c, x, y = (rng.standard_normal(size).astype(np.float32) for size in (1, 2 * 3 * 128, 2 * 3 * 128))
    stream = device.create_stream()
    arrays = [DeviceArray(device.allocate(array.nbytes), array.shape, "float32") for array in (c, x, y)]
    for array, content in zip(arrays, (c, x, y), strict=True):
        device.upload(array.address, content, stream)
    kernel = device.load_kernels(AXPY, ["axpy"])["axpy"]
    device.launch(kernel, (3, 2), 128, [array.address for array in arrays], stream)
    device.synchronize_stream(stream)
    np.testing.assert_array_equal(device.array(arrays[2]), c * x + y)


@needs_compiler
def test_kernels_mistakes_are_caught(device: EmulatedDevice) -> None:
    stream, address = device.create_stream(), device.allocate(32)
    kernel = device.load_kernels(AXPY, ["past_the_end"])["past_the_end"]

    def launch_and_wait() -> None:
        device.launch(kernel, (1, 1), 1, [address], stream)
        device.synchronize_stream(stream)

    with pytest.raises(DeviceError, match="2 arguments, it takes 1"):
        device.launch(kernel, (1, 1), 1, [address, address], stream)
    with pytest.raises(DeviceError, match="no GPU runs"):
        device.launch(kernel, (1, 1), 1025, [address], stream)
    with pytest.raises(DeviceError, match="written behind the 32 bytes"):
        launch_and_wait()
    with pytest.raises(DeviceError, match=r"kernels\.cu:1:.*error"):
        device.load_kernels("no C++", ["none"])


def test_counters_follow_what_exists(device: EmulatedDevice) -> None:
    before = device.counters
    stream, event, address = device.create_stream(), device.create_event(), device.allocate(100)
    host = device.allocate_pinned(100)
    graph = device.capture(stream, lambda: None)
    device.upload(address, host, stream)
    device.copy(address, address + 50, 50, stream)
    device.download(host, address, stream)
    now = device.counters
    assert (now.live_allocations, now.live_bytes, now.live_pinned) == (1, 100, 1)
    assert (now.live_streams, now.live_events, now.live_graphs) == (1, 1, 1)
    assert (now.uploads, now.copies, now.downloads) == (1, 1, 1)
    device.synchronize_stream(stream)
    device.destroy_graph(graph)
    device.free(address)
    device.free_pinned(host)
    device.destroy_event(event)
    device.destroy_stream(stream)
    after = vars(device.counters)
    assert {name for name in after if after[name] != vars(before)[name]} == {
        "allocations",
        "uploads",
        "copies",
        "downloads",
    }
