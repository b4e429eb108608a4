"""Captured graphs over a trajectory's buffers: both live, and end, in the same object.

Times, coefficients, conditions and noise are read from the buffers at every launch, so another request,
or another schedule of the same shape, needs no new graph. Without callbacks the whole trajectory is one
graph, decoding included; with them there is one graph for each step.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.runtime.backend import BackendError
from flowturbo_trt.runtime.buffers import plan_layout
from flowturbo_trt.runtime.conditioning import Conditioning, null_values
from flowturbo_trt.runtime.cuda_launches import EngineCall, Launch, bind_launches
from flowturbo_trt.runtime.cuda_memory import Streams, TrajectoryMemory
from flowturbo_trt.runtime.device import CaptureError, DeviceEngine
from flowturbo_trt.runtime.launch_plan import plan_launches
from flowturbo_trt.sampling.program import Program

# The whole trajectory without and with decoding, a step of it by its number, decoding alone.
Part = Literal["latents", "images", "decoding"] | int
# Engines compile and allocate when they first run; ONNX Runtime plans its memory in the first run and
# allocates as planned in the second.
WARM_UPS = 3


class TrajectoryGraphs:
    """The buffers of a program's shape at a batch size, and the graphs of its parts.

    With `must_capture` work that cannot be captured is an error; without, it is launched piece by piece,
    and `is_captured` says so.
    """

    def __init__(
        self,
        program: Program,
        batch: int,
        manifest: Manifest,
        conditionings: dict[str, Conditioning],
        streams: Streams,
        engine: Callable[[str, str | None], DeviceEngine],
        *,
        must_capture: bool,
    ) -> None:
        self.plan = plan_launches(program)
        self.layout = plan_layout(self.plan, batch, manifest.model, conditionings)
        self.is_captured = True
        self._must_capture = must_capture
        self._streams = streams
        self._graphs: dict[Part, int | None] = {}
        self.memory = TrajectoryMemory(self.layout, streams)
        try:
            self._write_null_conditions(manifest, conditionings)
            self._launches = bind_launches(
                program,
                self.plan,
                manifest.model,
                batch,
                conditionings,
                streams.device,
                self.memory.array,
                engine,
            )
        except BaseException:
            self.memory.free()
            raise

    def prepare(self, parts: Sequence[Part]) -> None:
        """Capture what is to be launched; this overwrites the buffers, and waits.

        Raises CaptureError, BackendError.
        """
        for part in parts:
            if part not in self._graphs:
                self._graphs[part] = self._capture(self._work(part))

    def launch(self, part: Part) -> None:
        """Ask for a part that has been prepared."""
        graph = self._graphs[part]
        if graph is None:
            self._enqueue(self._work(part))
        else:
            self._streams.device.launch_graph(graph, self._streams.compute)

    def launch_null_conditioning(self) -> None:
        """Ask for the modulations of the null condition, at the times that are in the buffers."""
        self._enqueue(self._launches.null)

    def close(self) -> None:
        """Wait for all work and free graphs and buffers."""
        self._streams.device.synchronize_stream(self._streams.compute)
        for graph in self._graphs.values():
            if graph is not None:
                self._streams.device.destroy_graph(graph)
        self._graphs.clear()
        self.memory.free()

    def _work(self, part: Part) -> tuple[Launch, ...]:
        found = self._launches
        if part == "decoding":
            return found.decoding
        if part == "latents":
            return (*found.conditioning, *found.whole)
        if part == "images":
            return (*found.conditioning, *found.whole, *found.decoding)
        return (*(found.conditioning if part == 0 else ()), *found.steps[part])

    def _enqueue(self, work: Sequence[Launch]) -> None:
        for launch in work:
            launch(self._streams.compute)

    def _capture(self, work: Sequence[Launch]) -> int | None:
        device, stream = self._streams.device, self._streams.compute
        for _ in range(WARM_UPS):
            self._enqueue(work)
            device.synchronize_stream(stream)
        try:
            self._require_capturable(work)
            return device.capture(stream, lambda: self._enqueue(work))
        except BackendError:
            # An engine that notices first says so in an error of its own.
            if self._must_capture:
                raise
            self.is_captured = False
            return None

    def _require_capturable(self, work: Sequence[Launch]) -> None:
        """Name the engine that cannot be captured, where engines can tell."""
        for call in work:
            if isinstance(call, EngineCall) and not call.engine.is_capturable(self._streams.compute):
                raise CaptureError(
                    f"{call.name}: its engine waits, allocates or compiles whenever it runs, and cannot "
                    "become part of a graph; rebuild it, or use --backend onnxruntime"
                )

    def _write_null_conditions(self, manifest: Manifest, conditionings: dict[str, Conditioning]) -> None:
        guided = [network for network, found in conditionings.items() if found.guided]
        null = null_values(manifest.model.conditions) if guided else {}
        for network in guided:
            for name, value in null.items():
                array = self.memory.array(f"{network}.null_{name}")
                content = np.full(array.shape, value, dtype=array.dtype)
                self.memory.write(array.address, content, self._streams.compute)
