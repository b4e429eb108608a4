"""Streams of a GPU, and the memory of a trajectory on it."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.runtime.buffers import Block, DeviceBlock, HostBlock, Layout
from flowturbo_trt.runtime.device import Device, DeviceArray


@dataclass(frozen=True)
class Streams:
    """A device and its streams: engines and sums run on `compute`, copies to and from the host beside it."""

    device: Device
    upload: int
    compute: int
    download: int

    @classmethod
    def on(cls, device: Device) -> "Streams":
        streams: list[int] = []
        with ExitStack() as undo:
            for _ in range(3):
                streams.append(device.create_stream())
                undo.callback(device.destroy_stream, streams[-1])
            undo.pop_all()
        return cls(device, *streams)

    def close(self) -> None:
        for stream in (self.upload, self.compute, self.download):
            self.device.synchronize_stream(stream)
            self.device.destroy_stream(stream)


class TrajectoryMemory:
    """A layout in device memory, inputs zero at first: engines must not meet labels that there are not."""

    def __init__(self, layout: Layout, streams: Streams) -> None:
        self._device = streams.device
        self._address = self._device.allocate(layout.nbytes)
        starts = np.cumsum([0, *(block.nbytes for block in layout.blocks)])
        self.inputs, self.work, self.results = (
            DeviceBlock(block, self._address + int(start))
            for block, start in zip(layout.blocks, starts, strict=False)
        )
        self._arrays = {**self.inputs.arrays, **self.work.arrays, **self.results.arrays}
        try:
            self.write(self.inputs.address, np.zeros(layout.inputs.nbytes, dtype=np.uint8), streams.compute)
        except BaseException:
            self.free()
            raise

    def array(self, name: str, rows: slice | None = None) -> DeviceArray:
        """Return an array, or some of its rows."""
        whole = self._arrays[name]
        if rows is None:
            return whole
        start, stop, _ = rows.indices(whole.shape[0])
        row_bytes = whole.nbytes // whole.shape[0]
        return DeviceArray(whole.address + start * row_bytes, (stop - start, *whole.shape[1:]), whole.dtype)

    def write(self, address: int, content: NDArray[Any], stream: int) -> None:
        """Copy host memory to an address, and wait."""
        self._device.upload(address, content, stream)
        self._device.synchronize_stream(stream)

    def read(self, array: DeviceArray, stream: int) -> NDArray[Any]:
        """Copy an array to the host when the stream gets there, and wait."""
        content = np.empty(array.shape, dtype=array.dtype)
        self._device.download(content, array.address, stream)
        self._device.synchronize_stream(stream)
        return content

    def free(self) -> None:
        self._device.free(self._address)


class StagedBlock:
    """A block in host memory that copies need no CPU for, and its counterpart on the device."""

    def __init__(self, block: Block, device: Device) -> None:
        self._device = device
        self._pinned = device.allocate_pinned(block.nbytes)
        self.host = HostBlock(block, self._pinned)
        try:
            self.device = DeviceBlock(block, device.allocate(block.nbytes))
        except BaseException:
            device.free_pinned(self._pinned)
            raise
        self.nbytes = block.nbytes

    @property
    def memory(self) -> NDArray[np.uint8]:
        return self.host.memory

    def free(self) -> None:
        self._device.free(self.device.address)
        self._device.free_pinned(self._pinned)
