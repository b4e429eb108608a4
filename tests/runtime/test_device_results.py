"""Results that stay in a GPU's memory: in order over all batches, the caller's alone, and freed once."""

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend import BackendError
from flowturbo_trt.runtime.backend_onnxruntime import OnnxRuntimeBackend
from flowturbo_trt.runtime.device import DeviceError, OutOfMemoryError
from flowturbo_trt.runtime.device_results import DeviceResults
from flowturbo_trt.runtime.dlpack import DeviceTensor
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.runtime.request import Request, RequestError, make_request
from flowturbo_trt.tests.bundles import changed_copy
from flowturbo_trt.tests.emulated_kernels import needs_compiler
from flowturbo_trt.tests.emulated_streams import POLICIES, Policy
from flowturbo_trt.tests.runtime.emulated_machines import NOTHING, Machine, machine

pytestmark = needs_compiler
KDLCPU = 1
LABELS = [2, 0, 1, 2, 1, 0, 0]


def request(pipeline: Pipeline, labels: list[int], first_seed: int = 0) -> Request:
    seeds = range(first_seed, first_seed + len(labels))
    return make_request(pipeline.manifest.model, {"label": labels}, seeds, 1.5, None)


@pytest.fixture
def emulated(tiny_bundle: Path) -> Machine:
    return machine(tiny_bundle)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("rows", [1, 3, 7])
def test_equal_to_results_on_the_host(tiny_either: Path, policy: Policy, rows: int) -> None:
    """Rows in order, padding left out, over several batches of three and of one."""
    pipeline = machine(tiny_either, policy).pipeline()
    for seed in (0, 50):
        asked = request(pipeline, LABELS[:rows], seed)
        expected = pipeline.generate(asked, "H1R1")
        found = pipeline.generate_on_device(asked, "H1R1")
        assert found.images is not None
        assert (found.latents.shape, found.latents.dtype) == ((rows, 2, 4, 4), "float32")
        assert (found.images.shape, found.images.dtype) == ((rows, 8, 8, 3), "uint8")
        np.testing.assert_array_equal(found.latents.host(), expected.latents)
        np.testing.assert_array_equal(found.images.host(), expected.images)


def test_later_requests_leave_them_alone(emulated: Machine) -> None:
    """They are copies: nothing that runs afterwards writes into them."""
    pipeline = emulated.pipeline()
    kept = pipeline.generate_on_device(request(pipeline, LABELS))
    before = kept.latents.host()
    pipeline.generate_on_device(request(pipeline, LABELS, 50))
    pipeline.generate(request(pipeline, LABELS, 90))
    np.testing.assert_array_equal(kept.latents.host(), before)


def test_latents_only(emulated: Machine) -> None:
    pipeline = emulated.pipeline()
    found = pipeline.generate_on_device(request(pipeline, LABELS), decode=False)
    assert found.images is None
    expected = pipeline.generate(request(pipeline, LABELS), decode=False)
    np.testing.assert_array_equal(found.latents.host(), expected.latents)
    assert emulated.engines.runs["decoder"] == 0


def test_taken_over_without_a_copy(emulated: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulation's memory is the host's: another library sees the very bytes."""
    monkeypatch.setattr(DeviceTensor, "device_type", KDLCPU)
    pipeline = emulated.pipeline()
    asked = request(pipeline, LABELS)
    found = pipeline.generate_on_device(asked)
    assert found.images is not None
    taken = np.from_dlpack(found.images)  # type: ignore[arg-type]
    np.testing.assert_array_equal(taken, pipeline.generate(asked).images)
    assert taken.ctypes.data == found.images._array.address


def test_freed_once(emulated: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """When neither tensor nor consumer is left, each by itself; also after the pipeline has ended."""
    monkeypatch.setattr(DeviceTensor, "device_type", KDLCPU)
    pipeline = emulated.pipeline()
    pipeline.generate(request(pipeline, LABELS))
    before = emulated.device.counters.live_allocations
    found: Any = pipeline.generate_on_device(request(pipeline, LABELS))
    assert emulated.device.counters.live_allocations == before + 2
    latents, images, taken = found.latents, found.images, np.from_dlpack(found.images)
    del found, latents
    gc.collect()
    assert emulated.device.counters.live_allocations == before + 1
    pipeline.close()
    copy = taken.copy()
    del images
    gc.collect()
    np.testing.assert_array_equal(taken, copy)
    assert emulated.device.counters.live_allocations == 1
    del taken
    gc.collect()
    assert emulated.held == NOTHING


def test_many_requests_leave_nothing(emulated: Machine) -> None:
    pipeline = emulated.pipeline()
    pipeline.generate_on_device(request(pipeline, LABELS))
    gc.collect()
    before = emulated.held
    for _ in range(100):
        pipeline.generate_on_device(request(pipeline, LABELS))
    gc.collect()
    assert emulated.held == before


def test_whichever_request_fails(emulated: Machine) -> None:
    """Of the device: nothing is left of the results, and the next request is as it should be."""
    pipeline, device = emulated.pipeline(), emulated.device
    asked = request(pipeline, LABELS[:4])
    expected = pipeline.generate_on_device(asked, "E1").latents.host()
    gc.collect()
    before, failures = emulated.held, 0
    while True:
        device.fails_at = device.asked.total() + failures + 1
        try:
            found = pipeline.generate_on_device(asked, "E1")
        except DeviceError:
            device.fails_at = 0
            failures += 1
            assert emulated.held == before
            again = pipeline.generate_on_device(asked, "E1")
            np.testing.assert_array_equal(again.latents.host(), expected)
            del again
        else:
            device.fails_at = 0
            break
    np.testing.assert_array_equal(found.latents.host(), expected)
    # Two allocations, and for both batches a graph and its copies.
    assert failures > 2 + 2 * 8


def test_no_room(emulated: Machine) -> None:
    pipeline = emulated.pipeline()
    pipeline.generate(request(pipeline, LABELS))
    before, counters = emulated.held, emulated.device.counters
    latents_bytes = len(LABELS) * 2 * 4 * 4 * 4
    for limit in (0, latents_bytes):
        emulated.device.memory_limit = counters.live_bytes + limit
        with pytest.raises(OutOfMemoryError):
            pipeline.generate_on_device(request(pipeline, LABELS))
        assert emulated.held == before


def test_an_engine_that_fails(emulated: Machine) -> None:
    pipeline = emulated.pipeline()
    emulated.engines.failing = "refiner"
    with pytest.raises(BackendError, match="refiner failed"):
        pipeline.generate_on_device(request(pipeline, LABELS))
    emulated.engines.failing = ""
    pipeline.close()
    assert emulated.held == NOTHING


def test_a_run_without_images(emulated: Machine) -> None:
    """Is refused before anything is taken from it."""
    trajectory = emulated.bind("E1", 1)
    run = trajectory.start(decode=False)
    results = DeviceResults(emulated.device, emulated.bundle.manifest.model, 1, decode=True)
    with pytest.raises(BackendError, match="started without decoding"):
        results.read(slice(0, 1), run)
    results.free()


def test_host_backends_are_refused(tiny_bundle: Path, tiny_pipeline: Pipeline) -> None:
    with pytest.raises(RequestError, match="in host memory; use generate"):
        tiny_pipeline.generate_on_device(request(tiny_pipeline, LABELS))
    assert OnnxRuntimeBackend(Bundle.open(tiny_bundle), 1).device is None


def test_a_bundle_without_a_decoder(tiny_bundle: Path, tmp_path: Path) -> None:
    def without(data: dict[str, Any]) -> None:
        data["model"] |= {"image": None, "decoder_config": None}
        data["engines"] = [e for e in data["engines"] if e["network"] != "decoder"]
        data["graphs"] = [g for g in data["graphs"] if g["network"] != "decoder"]

    found = machine(changed_copy(tiny_bundle, tmp_path, without))
    pipeline = found.pipeline()
    with pytest.raises(RequestError, match="the bundle has no decoder"):
        pipeline.generate_on_device(request(pipeline, LABELS))
    latents = pipeline.generate_on_device(request(pipeline, LABELS), decode=False).latents
    gc.collect()
    expected = machine(tiny_bundle).pipeline().generate(request(pipeline, LABELS), decode=False)
    np.testing.assert_array_equal(latents.host(), expected.latents)
    del latents
    gc.collect()
    pipeline.close()
    assert found.held == NOTHING
