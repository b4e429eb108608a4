"""One engine called over and over on a GPU, for what it costs alone."""

import numpy as np

from flowturbo_trt.bundle.manifest import Engine
from flowturbo_trt.runtime.backend import BackendError
from flowturbo_trt.runtime.buffers import Block, Field, HostBlock
from flowturbo_trt.runtime.cuda_graph import WARM_UPS
from flowturbo_trt.runtime.cuda_memory import Streams
from flowturbo_trt.runtime.device import DeviceArray, DeviceEngine


class EngineLoop:
    """`count` calls of an engine on arrays of its own, launched as trajectories launch them: as one graph.

    With `must_capture` what cannot be captured is an error, without it is asked for call by call. Raises
    CaptureError, BackendError.
    """

    def __init__(
        self,
        described: Engine,
        engine: DeviceEngine,
        rows: int,
        count: int,
        streams: Streams,
        *,
        must_capture: bool,
    ) -> None:
        self._streams = streams
        self._count = count
        tensors = (*described.inputs, *described.outputs)
        fields = (Field(t.name, (rows, *map(int, t.shape[1:])), t.dtype) for t in tensors)
        block = HostBlock(Block(tuple(fields)))
        self._address = streams.device.allocate(block.block.nbytes)
        self._graph: int | None = None
        try:
            self._write(block)
            arrays = {
                field.name: DeviceArray(
                    self._address + block.block.offsets[field.name], field.shape, field.dtype
                )
                for field in block.block.fields
            }
            outputs = {tensor.name: arrays.pop(tensor.name) for tensor in described.outputs}
            self._call = engine.bind(arrays, outputs)
            self._graph = self._capture(must_capture=must_capture)
        except BaseException:
            streams.device.free(self._address)
            raise

    def __call__(self) -> None:
        """Run the calls, and wait for them."""
        device, stream = self._streams.device, self._streams.compute
        if self._graph is None:
            self._enqueue()
        else:
            device.launch_graph(self._graph, stream)
        device.synchronize_stream(stream)

    def close(self) -> None:
        """Free the arrays and the graph."""
        device = self._streams.device
        device.synchronize_stream(self._streams.compute)
        if self._graph is not None:
            device.destroy_graph(self._graph)
        device.free(self._address)

    def _write(self, block: HostBlock) -> None:
        # Of zeros products take less power, and so less time, than of numbers; conditions may be any.
        random = np.random.default_rng(0)
        for array in block.arrays.values():
            if array.dtype == np.float32:
                array[...] = random.standard_normal(array.shape, dtype=np.float32)
        self._streams.device.upload(self._address, block.memory, self._streams.compute)
        self._streams.device.synchronize_stream(self._streams.compute)

    def _capture(self, *, must_capture: bool) -> int | None:
        device, stream = self._streams.device, self._streams.compute
        for _ in range(WARM_UPS):
            self._call(stream)
            device.synchronize_stream(stream)
        try:
            return device.capture(stream, self._enqueue)
        except BackendError:
            # An engine that notices first says so in an error of its own.
            if must_capture:
                raise
            return None

    def _enqueue(self) -> None:
        for _ in range(self._count):
            self._call(self._streams.compute)
