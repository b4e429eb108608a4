"""A machine with an emulated GPU, a fake TensorRT and a bundle of plans for it."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.device import DeviceArray
from flowturbo_trt.runtime.tensorrt_engine import TensorRtEngine, TensorRtRuntime, open_runtime
from flowturbo_trt.tests.emulated_device import EmulatedDevice
from flowturbo_trt.tests.fake_tensorrt import FakeTensorRt
from flowturbo_trt.tests.fake_tensorrt_plans import FakePlan, with_fake_plans

FLAVOURS = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
BUILDERS = {"tensorrt-rtx": "tensorrt_rtx 1.7.1", "tensorrt": "tensorrt 11.0.0 for emulated GPU, 580.1"}


@dataclass
class Machine:
    """`kernels` is where compiled kernels are kept; `bundle` has plans for batches 1 and 3."""

    backend: str
    module: FakeTensorRt
    device: EmulatedDevice
    kernels: Path
    bundle: Path

    def open(self) -> TensorRtRuntime:
        return open_runtime(FLAVOURS[self.backend], self.backend, self.kernels)

    def load(self, network: str = "refiner", variant: str | None = "guided") -> TensorRtEngine:
        bundle = Bundle.open(self.bundle)
        return self.open().load(bundle, bundle.manifest.engine(network, variant, self.backend), self.device)

    def scratch(self, size: int) -> DeviceArray:
        return DeviceArray(self.device.allocate(size), (size,), "uint8")

    def put(self, array: NDArray[Any]) -> DeviceArray:
        """Return an array in device memory with a host array's content."""
        placed = DeviceArray(self.device.allocate(array.nbytes), array.shape, array.dtype.name)
        self.device.array(placed)[...] = array
        return placed


def arguments(engine: TensorRtEngine, batch: int, first: float = 0) -> dict[str, NDArray[Any]]:
    """Return inputs for an engine: every one another number."""
    tensors = {t.name: (t.dtype, (batch, *map(int, t.shape[1:]))) for t in engine.described.inputs}
    return {
        name: np.full(shape, first + index, dtype)
        for index, (name, (dtype, shape)) in enumerate(tensors.items())
    }


def total(name: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Stand for the refiner: the sum of all inputs, row by row."""
    assert name == "refiner guided"
    rows = sum(array.reshape(len(array), -1)[:, 0] for array in inputs.values())
    velocity = inputs["velocity"]
    return {"offset": np.broadcast_to(np.reshape(rows, (-1, 1, 1, 1, 1)), velocity.shape)}


MakeMachine = Callable[..., Machine]


def machine_maker(tiny_bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> MakeMachine:
    """Return a function that makes the machine for a backend; what it changes is as in with_fake_plans."""

    def make(
        backend: str,
        change: Callable[[FakePlan], FakePlan | bytes] = lambda plan: plan,
        device: EmulatedDevice | None = None,
        builder: str | None = None,
        **entries: Any,
    ) -> Machine:
        device = device or EmulatedDevice()
        module = FakeTensorRt(FLAVOURS[backend], device.enqueue_host, device.array, total)
        monkeypatch.setitem(sys.modules, FLAVOURS[backend], module)
        builder = builder or BUILDERS[backend]
        bundle = with_fake_plans(tiny_bundle, folder, backend, builder, change, **entries)
        return Machine(backend, module, device, folder / "kernels", bundle)

    return make
