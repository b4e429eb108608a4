"""Sessions that stand for ONNX Runtime's providers on a GPU, on an emulated device."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from flowturbo_trt.runtime.device import DeviceArray
from flowturbo_trt.tests.emulated_device import EmulatedDevice

_Session = onnxruntime.InferenceSession
Place = tuple[str, int, Any, tuple[int, ...], int]


class FakeBinding:
    def __init__(self) -> None:
        self.inputs: dict[str, Place] = {}
        self.outputs: dict[str, Place] = {}

    def bind_input(self, name: str, *place: Any) -> None:
        self.inputs[name] = place

    def bind_output(self, name: str, *place: Any) -> None:
        self.outputs[name] = place


class FakeSessions:
    """What opens sessions in place of ONNX Runtime: those on a GPU run its CPU provider as work of a stream.

    `opened` and `bound` are the sessions and bindings so far; calls of the graph `fails` fail, and no
    provider starts but the CPU's unless it `starts`.
    """

    def __init__(self, device: EmulatedDevice) -> None:
        self.device = device
        self.opened: list[FakeSession] = []
        self.bound: list[FakeBinding] = []
        self.fails = ""
        self.starts = True

    def __call__(self, path: Path, options: Any, *, providers: list[tuple[str, dict[str, str]]]) -> Any:
        if providers[0][0] == "CPUExecutionProvider":
            return _Session(path, options, providers=providers)
        self.opened.append(FakeSession(self, path, options, providers))
        return self.opened[-1]


class FakeSession:
    def __init__(self, owner: FakeSessions, path: Path, options: Any, providers: Any) -> None:
        self.owner, self.path, self.options, self.providers = owner, path, options, providers
        self.real = _Session(path, options, providers=["CPUExecutionProvider"])
        self.run_options: list[Any] = []

    def get_providers(self) -> list[str]:
        return [name for name, _ in self.providers if self.owner.starts or name.startswith("CPU")]

    def get_inputs(self) -> Any:
        return self.real.get_inputs()

    def get_outputs(self) -> Any:
        return self.real.get_outputs()

    def io_binding(self) -> FakeBinding:
        self.owner.bound.append(FakeBinding())
        return self.owner.bound[-1]

    def run_with_iobinding(self, binding: FakeBinding, run_options: Any) -> None:
        if self.path.name == self.owner.fails:
            raise RuntimeError("CUDA failure 900:\n operation not permitted")
        self.run_options.append(run_options)
        (stream,) = {int(options["user_compute_stream"]) for _, options in self.providers if options}

        def view(place: Place) -> NDArray[Any]:
            _, _, dtype, shape, address = place
            array: NDArray[Any] = self.owner.device.array(DeviceArray(address, shape, np.dtype(dtype).name))
            return array

        def work() -> None:
            results = self.real.run(None, {name: view(place) for name, place in binding.inputs.items()})
            for place, result in zip(binding.outputs.values(), results, strict=True):
                view(place)[...] = result

        self.owner.device.enqueue_host(stream, work)
