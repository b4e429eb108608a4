"""Trajectories on a GPU: copies in and out beside the graphs, two requests under way at once.

Each run has a place with memory of its own on both sides of the bus. Its inputs are copied to the device
while the graph of the run before still works, taken over by the graph's buffers when that is done, and its
results are copied out while the next graph works:

    upload    in 1 | in 2 |
    compute          take 1 | graph 1 | give 1 | take 2 | graph 2 | give 2
    download                                   | out 1  |         | out 2
"""

from collections.abc import Mapping
from contextlib import ExitStack, closing

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import Model
from flowturbo_trt.runtime.backend import BackendError, Inputs, OnStep
from flowturbo_trt.runtime.buffers import Block, Field, plan_results, register_name
from flowturbo_trt.runtime.conditioning import Conditioning
from flowturbo_trt.runtime.cuda_graph import Part, TrajectoryGraphs
from flowturbo_trt.runtime.cuda_memory import StagedBlock, Streams
from flowturbo_trt.runtime.cuda_run import CudaRun, Place
from flowturbo_trt.runtime.device import DeviceEngine
from flowturbo_trt.runtime.host_trajectory import extrapolate
from flowturbo_trt.runtime.tables import spread_conditions, table_names, write_program
from flowturbo_trt.sampling.program import Program

Array = NDArray[np.float32]
PLACES = 2


class CudaTrajectory:
    """Runs programs of one shape over DeviceEngines (runtime.backend.Trajectory).

    `decoder` binds previews, which have buffers of their own; None without a decoder.
    """

    depth = PLACES

    def __init__(
        self,
        program: Program,
        graphs: TrajectoryGraphs,
        model: Model,
        conditionings: Mapping[str, Conditioning],
        streams: Streams,
        decoder: DeviceEngine | None,
    ) -> None:
        self._graphs = graphs
        self._conditionings = conditionings
        self._streams = streams
        self._decoder = decoder
        self._conditions = tuple(condition.name for condition in model.conditions)
        self._latents = graphs.memory.array(register_name(graphs.plan.output))
        results = plan_results(graphs.plan, self._latents.shape[0], model)
        with ExitStack() as undo:
            places = (Place(graphs.layout.inputs, results, streams) for _ in range(PLACES))
            self._places = [undo.enter_context(closing(place)) for place in places]
            undo.pop_all()
        self._next = 0
        self._preview: DevicePreview | None = None
        # Times and coefficients as they are to be; places take them over when theirs are older.
        fields = graphs.layout.inputs.by_name
        self._tables = {
            name: np.zeros(fields[name].shape, dtype=fields[name].dtype)
            for name in table_names(graphs.plan, conditionings)
        }
        self._version = 0
        self._null_is_current = False
        self._program = program
        self.set_program(program)

    @property
    def is_captured(self) -> bool:
        return self._graphs.is_captured

    @property
    def inputs(self) -> Inputs:
        place = self._places[self._next]
        # A run that nobody read may still be copied from there.
        self._streams.device.synchronize(place.uploaded)
        arrays = place.inputs.host.arrays
        noise = arrays[register_name(self._graphs.plan.noise)]
        return Inputs(noise, {name: arrays[name] for name in self._conditions}, arrays["guidance"])

    def set_program(self, program: Program, rows: slice | None = None) -> None:
        changed = write_program(program, self._graphs.plan, self._conditionings, self._tables, rows)
        self._null_is_current = self._null_is_current and not changed
        self._program = program
        self._version += 1

    def start(self, *, decode: bool, on_step: OnStep | None = None) -> CudaRun:
        if decode and self._decoder is None:
            raise BackendError("the bundle has no decoder; ask for latents, or build it with --decoder")
        parts = self._parts(decode=decode, stepwise=on_step is not None)
        self._graphs.prepare(parts)
        place = self._places[self._next]
        self._next = (self._next + 1) % PLACES
        self._bring(place)
        if not self._null_is_current:
            self._graphs.launch_null_conditioning()
            self._null_is_current = True
        for index, part in enumerate(parts):
            self._graphs.launch(part)
            if on_step is not None and isinstance(part, int):
                self._streams.device.synchronize_stream(self._streams.compute)
                on_step(self._program.steps[index], index)
        self._give(place, decode=decode)
        return CudaRun(place, self._streams, decoded=decode)

    def state_after(self, index: int) -> Array:
        return self._read_register(self._graphs.plan.marks[index][0])

    def velocity_after(self, index: int) -> Array:
        return self._read_register(self._graphs.plan.marks[index][1])

    def preview(self, index: int) -> NDArray[np.uint8]:
        if self._decoder is None:
            raise BackendError("the bundle has no decoder to preview with")
        if self._preview is None:
            image = self._graphs.memory.array("image")
            self._preview = DevicePreview(self._latents.shape, image.shape, self._decoder, self._streams)
        state = np.empty(self._latents.shape, dtype=np.float32)
        extrapolate(self.state_after(index), self.velocity_after(index), self._program.steps[index], state)
        return self._preview.decode(state)

    def close(self) -> None:
        # Not only for its events: a run that failed may have recorded none.
        for stream in (self._streams.upload, self._streams.compute, self._streams.download):
            self._streams.device.synchronize_stream(stream)
        self._graphs.close()
        for place in self._places:
            place.close()
        if self._preview is not None:
            self._preview.close()

    def _parts(self, *, decode: bool, stepwise: bool) -> list[Part]:
        if not stepwise:
            return ["images" if decode else "latents"]
        steps: list[Part] = [*range(len(self._graphs.plan.steps))]
        return [*steps, "decoding"] if decode else steps

    def _bring(self, place: Place) -> None:
        """Copy a place's inputs to the device, and from there to the graph's buffers in its turn."""
        device, streams, inputs = self._streams.device, self._streams, place.inputs
        arrays = inputs.host.arrays
        if place.tables != self._version:
            for name, table in self._tables.items():
                arrays[name][...] = table
            place.tables = self._version
        spread_conditions(self._conditionings, {n: arrays[n] for n in self._conditions}, arrays)
        device.wait(streams.upload, place.taken)
        device.upload(inputs.device.address, inputs.memory, streams.upload)
        device.record(place.uploaded, streams.upload)
        device.wait(streams.compute, place.uploaded)
        device.copy(self._graphs.memory.inputs.address, inputs.device.address, inputs.nbytes, streams.compute)
        device.record(place.taken, streams.compute)

    def _give(self, place: Place, *, decode: bool) -> None:
        """Copy results from the graph's buffers to a place's, and from there to the host."""
        device, streams, results = self._streams.device, self._streams, place.results
        device.wait(streams.compute, place.downloaded)
        given = {"latents": self._latents}
        if decode:
            given["image"] = self._graphs.memory.array("image")
        for name, array in given.items():
            device.copy(results.device.arrays[name].address, array.address, array.nbytes, streams.compute)
        device.record(place.given, streams.compute)
        device.wait(streams.download, place.given)
        for name in given:
            device.download(results.host.arrays[name], results.device.arrays[name].address, streams.download)
        device.record(place.downloaded, streams.download)

    def _read_register(self, slot: int) -> Array:
        array = self._graphs.memory.array(register_name(slot))
        return self._graphs.memory.read(array, self._streams.compute)


class DevicePreview:
    """A decoder with buffers of its own: those of the trajectory are in use while it runs."""

    def __init__(
        self, state: tuple[int, ...], image: tuple[int, ...], decoder: DeviceEngine, streams: Streams
    ) -> None:
        fields = (Field("state", state), Field("image", image, "uint8"))
        self._streams = streams
        self._block = StagedBlock(Block(fields), streams.device)
        arrays = self._block.device.arrays
        try:
            self._call = decoder.bind({"state": arrays["state"]}, {"image": arrays["image"]})
        except BaseException:
            self.close()
            raise

    def decode(self, state: Array) -> NDArray[np.uint8]:
        device, stream = self._streams.device, self._streams.compute
        host, arrays = self._block.host.arrays, self._block.device.arrays
        host["state"][...] = state
        device.upload(arrays["state"].address, host["state"], stream)
        self._call(stream)
        device.download(host["image"], arrays["image"].address, stream)
        device.synchronize_stream(stream)
        image: NDArray[np.uint8] = host["image"]
        return image

    def close(self) -> None:
        self._block.free()
