"""Machines with an emulated GPU, which write down what they are asked for and fail when they are told to."""

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend_onnxruntime import OnnxRuntimeBackend
from flowturbo_trt.runtime.cuda_backend import CudaBackend
from flowturbo_trt.runtime.cuda_memory import Streams
from flowturbo_trt.runtime.cuda_trajectory import CudaTrajectory
from flowturbo_trt.runtime.device import DeviceError
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.sampling.program import Program
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.trace import trace
from flowturbo_trt.tests.bundles import Array
from flowturbo_trt.tests.emulated_device import Counters, EmulatedDevice
from flowturbo_trt.tests.emulated_engines import EmulatedEngines
from flowturbo_trt.tests.emulated_streams import Policy

# Whatever may fail; what frees, or waits before it frees, does not.
_REQUESTS = frozenset(
    {
        *("allocate", "allocate_pinned", "create_stream", "create_event", "load_kernels", "capture"),
        *("record", "wait", "upload", "download", "copy", "launch", "launch_graph"),
    }
)
# (Fixture of a bundle, whether engines fix their rows): without conditioners that makes no difference.
KINDS = [("golden_bundle", True), ("golden_bundle", False), ("golden_fused_bundle", False)]


class WatchedDevice(EmulatedDevice):
    """`asked` counts requests by name, those during captures included; the `fails_at`-th of all fails."""

    def __init__(self, policy: Policy = "lazy", *, seed: int = 0, memory_limit: int = 2**30) -> None:
        self.asked: Counter[str] = Counter()
        self.fails_at = 0
        super().__init__(policy, seed=seed, memory_limit=memory_limit)

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return functools.partial(self._request, name, found) if name in _REQUESTS else found

    def _request(self, name: str, request: Callable[..., Any], *arguments: Any) -> Any:
        self.asked[name] += 1
        if self.asked.total() == self.fails_at:
            raise DeviceError(f"the {name} failed")
        return request(*arguments)


@dataclass
class Machine:
    """A bundle on an emulated GPU."""

    bundle: Bundle
    device: WatchedDevice
    engines: EmulatedEngines
    backend: CudaBackend

    def pipeline(self) -> Pipeline:
        return Pipeline(self.bundle, self.backend)

    def bind(self, text: str, batch: int = 2, variant: str = "guided") -> CudaTrajectory:
        return self.backend.bind(program_of(text, variant), batch)

    @property
    def held(self) -> tuple[int, ...]:
        return held(self.device.counters)


def machine(
    path: Path,
    policy: Policy = "lazy",
    *,
    fixes_rows: bool = True,
    must_capture: bool = True,
    device: WatchedDevice | None = None,
) -> Machine:
    """Open a bundle on an emulated GPU of its own, or a given one."""
    bundle, device = Bundle.open(path), device or WatchedDevice(policy)
    engines = EmulatedEngines(
        bundle, device, fixes_rows=fixes_rows, must_capture=must_capture, sessions=_sessions(path)
    )
    return Machine(bundle, device, engines, CudaBackend(bundle.manifest, Streams.on(device), engines))


def held(counters: Counters) -> tuple[int, ...]:
    """Return how much there is now of all that has to be freed."""
    return (
        counters.live_allocations,
        counters.live_bytes,
        counters.live_pinned,
        counters.live_streams,
        counters.live_events,
        counters.live_graphs,
    )


NOTHING = held(Counters())


def program_of(text: str, variant: str = "guided") -> Program:
    return trace(Schedule.parse(text), variant)


def fill(trajectory: Any, seed: int = 0) -> None:
    """Write a request of random rows into a trajectory's inputs."""
    random, inputs = np.random.default_rng(seed), trajectory.inputs
    inputs.noise[...] = random.standard_normal(inputs.noise.shape)
    inputs.conditions["label"][...] = random.integers(0, 3, len(inputs.noise))
    inputs.guidance[...] = random.uniform(1.5, 3, len(inputs.noise))


def run(trajectory: Any, seed: int = 0) -> Array:
    """Return the latents of a request of random rows."""
    fill(trajectory, seed)
    latents: Array = trajectory.start(decode=False).latents().copy()
    return latents


@functools.cache
def _sessions(path: Path) -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(Bundle.open(path), 1)
