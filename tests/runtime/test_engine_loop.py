"""Engines called alone on the emulated GPU."""

from pathlib import Path

import numpy as np
import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend import BackendError
from flowturbo_trt.runtime.cuda_backend import CudaBackend
from flowturbo_trt.runtime.cuda_graph import WARM_UPS
from flowturbo_trt.runtime.device import CaptureError
from flowturbo_trt.runtime.engine_loop import EngineLoop
from flowturbo_trt.tests.emulated_device import EmulatedDevice
from flowturbo_trt.tests.emulated_engines import EmulatedEngines, open_emulated


@pytest.fixture
def device() -> EmulatedDevice:
    return EmulatedDevice()


@pytest.fixture
def backend(tiny_bundle: Path, device: EmulatedDevice) -> CudaBackend:
    return open_emulated(Bundle.open(tiny_bundle), device)


def engines(backend: CudaBackend) -> EmulatedEngines:
    found = backend._engines
    assert isinstance(found, EmulatedEngines)
    return found


def test_calls_are_one_graph(backend: CudaBackend, device: EmulatedDevice) -> None:
    loop = backend.loop("predictor", "guided", 3, 5)
    # Once to warm up; capturing runs nothing.
    assert engines(backend).runs == {"predictor": WARM_UPS}
    before = device.counters
    for _ in range(2):
        loop()
    assert engines(backend).runs == {"predictor": WARM_UPS + 2 * 5}
    after = device.counters
    assert after.graph_launches - before.graph_launches == 2
    assert after.allocations == before.allocations
    loop.close()
    assert (device.counters.live_bytes, device.counters.live_graphs) == (0, 0)


def test_inputs_are_no_zeros(backend: CudaBackend, device: EmulatedDevice) -> None:
    """Products of zeros may be faster than of numbers."""
    loop = backend.loop("decoder", None, 1, 1)
    described = backend._manifest.engine("decoder", None, "onnxruntime")
    size = 4 * int(np.prod([int(n) for n in described.inputs[0].shape[1:]]))
    state = device._memory.view(loop._address, size).view(np.float32)
    assert 0.5 < state.std() < 2
    loop.close()


@pytest.mark.parametrize("error", [CaptureError, BackendError])
@pytest.mark.parametrize("must_capture", [True, False])
def test_what_cannot_be_captured(
    backend: CudaBackend,
    device: EmulatedDevice,
    monkeypatch: pytest.MonkeyPatch,
    must_capture: bool,
    error: type[BackendError],
) -> None:
    def refuse(stream: int, work: object) -> int:
        raise error("it waits")

    monkeypatch.setattr(device, "capture", refuse)
    monkeypatch.setattr(engines(backend), "must_capture", must_capture)
    if must_capture:
        with pytest.raises(error, match="it waits"):
            backend.loop("predictor", "guided", 1, 4)
    else:
        loop: EngineLoop = backend.loop("predictor", "guided", 1, 4)
        loop()
        assert engines(backend).runs == {"predictor": WARM_UPS + 4}
        loop.close()
    assert device.counters.live_bytes == 0
