"""One run on a GPU: its memory on both sides of the bus, and its results."""

from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.runtime.backend import BackendError
from flowturbo_trt.runtime.buffers import Block
from flowturbo_trt.runtime.cuda_memory import StagedBlock, Streams

Array = NDArray[np.float32]


class Place:
    """Memory of one run beside the graph's, and the events that say which of its copies are done."""

    def __init__(self, inputs: Block, results: Block, streams: Streams) -> None:
        self._device = streams.device
        with ExitStack() as held:
            self.inputs = self._block(inputs, held)
            self.results = self._block(results, held)
            # Inputs are on the device; taken over by the graph; results given; results on the host.
            self.uploaded, self.taken, self.given, self.downloaded = (self._event(held) for _ in range(4))
            self._held = held.pop_all()
        # Which program's tables are in the inputs.
        self.tables = -1

    def close(self) -> None:
        """Free it all, when no copies are under way."""
        self._held.close()

    def _block(self, block: Block, held: ExitStack) -> StagedBlock:
        staged = StagedBlock(block, self._device)
        held.callback(staged.free)
        return staged

    def _event(self, held: ExitStack) -> int:
        event = self._device.create_event()
        held.callback(self._device.destroy_event, event)
        return event


class CudaRun:
    """A run under way (runtime.backend.Run)."""

    def __init__(self, place: Place, streams: Streams, *, decoded: bool) -> None:
        self._place = place
        self._streams = streams
        self._decoded = decoded

    def latents(self) -> Array:
        return self._result("latents")

    def images(self) -> NDArray[np.uint8]:
        self._require_decoded()
        return self._result("image")

    def copy_rows(self, rows: int, latents: int, images: int | None) -> None:
        """Copy the first rows to addresses on the device, when the run has made them."""
        if images is not None:
            self._require_decoded()
        streams = self._streams
        try:
            self._ask_for_copies(rows, latents, images)
            streams.device.synchronize(self._place.downloaded)
        except BaseException:
            # Whoever asked frees what the copies write to.
            streams.device.synchronize_stream(streams.download)
            raise

    def _ask_for_copies(self, rows: int, latents: int, images: int | None) -> None:
        streams, results = self._streams, self._place.results.device.arrays
        targets = [(latents, results["latents"])]
        if images is not None:
            targets.append((images, results["image"]))
        for address, array in targets:
            size = array.nbytes // array.shape[0] * rows
            streams.device.copy(address, array.address, size, streams.download)
        # The stream has waited for the results already. Nothing may take the place before they are copied.
        streams.device.record(self._place.downloaded, streams.download)

    def _result(self, name: str) -> NDArray[Any]:
        self._streams.device.synchronize(self._place.downloaded)
        return self._place.results.host.arrays[name]

    def _require_decoded(self) -> None:
        if not self._decoded:
            raise BackendError("the run was started without decoding")
