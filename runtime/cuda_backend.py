"""What the backends on a GPU share: streams, trajectories, single calls."""

import functools
from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import Manifest, conditioner_of
from flowturbo_trt.runtime.buffers import Block, Field
from flowturbo_trt.runtime.conditioning import Conditioning, needed_engines, plan_conditioning
from flowturbo_trt.runtime.cuda_graph import TrajectoryGraphs
from flowturbo_trt.runtime.cuda_memory import StagedBlock, Streams
from flowturbo_trt.runtime.cuda_trajectory import CudaTrajectory
from flowturbo_trt.runtime.device import Device, DeviceEngine
from flowturbo_trt.runtime.engine_loop import EngineLoop
from flowturbo_trt.sampling.program import Program


class DeviceEngines(Protocol):
    """The engines of a bundle for one backend, loaded when first asked for.

    `name` is the backend's; `fixes_rows` where a call is of one of the sizes that engines were built
    for; `must_capture` where every call can become part of a graph.
    """

    name: str
    fixes_rows: bool
    must_capture: bool

    def load(self, network: str, variant: str | None) -> None:
        """Load an engine; raises BackendError."""
        ...

    def engine(self, network: str, variant: str | None, rows: int) -> DeviceEngine:
        """Return an engine to be called on `rows` rows, for the calls of one trajectory."""
        ...

    def close(self) -> None: ...


class CudaBackend:
    """Runs a bundle's engines on one GPU (runtime.backend.Backend)."""

    def __init__(self, manifest: Manifest, streams: Streams, engines: DeviceEngines) -> None:
        self._manifest = manifest
        self._streams = streams
        self._engines = engines

    @property
    def device(self) -> Device:
        return self._streams.device

    def prepare(self, program: Program) -> None:
        for network, variant in needed_engines(self._manifest, program, self._engines.name):
            self._engines.load(network, variant)

    def bind(self, program: Program, batch: int) -> CudaTrajectory:
        manifest, engines = self._manifest, self._engines
        conditionings = self.conditionings(program, batch)
        rows = {
            conditioner_of(network): found.fixed_rows or found.rows
            for network, found in conditionings.items()
        }

        # One for all of its calls, which take turns: each has memory of its own, and compiles.
        @functools.cache
        def engine(network: str, variant: str | None) -> DeviceEngine:
            return engines.engine(network, variant, rows.get(network, batch))

        graphs = TrajectoryGraphs(
            program,
            batch,
            manifest,
            conditionings,
            self._streams,
            engine,
            must_capture=engines.must_capture,
        )
        try:
            decoder = None if manifest.model.image is None else engine("decoder", None)
            return CudaTrajectory(program, graphs, manifest.model, conditionings, self._streams, decoder)
        except BaseException:
            graphs.close()
            raise

    def conditionings(self, program: Program, batch: int) -> dict[str, Conditioning]:
        """Return how the hoisted networks of a program are conditioned here."""
        engines = self._engines
        return plan_conditioning(self._manifest, program, batch, engines.name, pads=engines.fixes_rows)

    def loop(self, network: str, variant: str | None, rows: int, count: int) -> EngineLoop:
        """Bind an engine to arrays of its own, to be called `count` times on `rows` rows."""
        engines = self._engines
        described = self._manifest.engine(network, variant, engines.name)
        engine = engines.engine(network, variant, rows)
        return EngineLoop(described, engine, rows, count, self._streams, must_capture=engines.must_capture)

    def evaluate(self, network: str, variant: str | None, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        described = self._manifest.engine(network, variant, self._engines.name)
        rows = len(next(iter(inputs.values())))
        (output,) = described.outputs
        result = Field(output.name, (rows, *map(int, output.shape[1:])), output.dtype)
        fields = (*(Field(name, array.shape, str(array.dtype)) for name, array in inputs.items()), result)
        block = StagedBlock(Block(fields), self.device)
        try:
            return self._call(self._engines.engine(network, variant, rows), block, inputs, output.name)
        finally:
            self.device.synchronize_stream(self._streams.compute)
            block.free()

    def close(self) -> None:
        """Free engines and streams; trajectories are to be closed before."""
        self._engines.close()
        self._streams.close()

    def _call(
        self, engine: DeviceEngine, block: StagedBlock, inputs: Mapping[str, NDArray[Any]], output: str
    ) -> NDArray[Any]:
        stream, arrays = self._streams.compute, dict(block.device.arrays)
        for name, array in inputs.items():
            block.host.arrays[name][...] = array
        self.device.upload(block.device.address, block.memory, stream)
        result = arrays.pop(output)
        engine.bind(arrays, {output: result})(stream)
        self.device.download(block.host.arrays[output], result.address, stream)
        self.device.synchronize_stream(stream)
        return block.host.arrays[output].copy()
