"""What a trajectory asks of a GPU: memory, streams, copies, kernels, captured graphs.

`runtime.cuda_driver` answers with CUDA; the tests answer with an emulation in host memory, which keeps
the order that streams and events promise and no other.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.runtime.backend import BackendError

# Where arrays may begin: TensorRT asks it of every tensor.
ALIGNMENT = 256


class DeviceError(BackendError):
    """A device that failed, or was asked for what it cannot do."""


class OutOfMemoryError(DeviceError):
    """A device, or the host memory it can reach, has no room left."""


class CaptureError(DeviceError):
    """Work that cannot become a graph: something waits, allocates, or depends on work outside of it."""


@dataclass(frozen=True)
class DeviceArray:
    """An array in a device's memory, row by row without gaps; it does not own the memory."""

    address: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Device(Protocol):
    """One GPU. Addresses and handles are integers; errors are DeviceError.

    What takes a stream only asks for the work, which is done in the stream's order. Memory that such
    work reads or writes must stay as it is until then: nothing here waits but `synchronize`.
    """

    index: int
    name: str
    capability: tuple[int, int]

    def memory(self) -> tuple[int, int]:
        """Return the bytes that are free, and all there are."""
        ...

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes, aligned to ALIGNMENT; raises OutOfMemoryError."""
        ...

    def free(self, address: int) -> None: ...

    def allocate_pinned(self, size: int) -> NDArray[np.uint8]:
        """Return host memory that copies can read and write without the CPU."""
        ...

    def free_pinned(self, array: NDArray[np.uint8]) -> None: ...

    def create_stream(self) -> int:
        """Return a stream of its own, which never waits for the default stream."""
        ...

    def destroy_stream(self, stream: int) -> None: ...

    def create_event(self) -> int: ...

    def destroy_event(self, event: int) -> None: ...

    def record(self, event: int, stream: int) -> None:
        """Let an event stand for all work asked of the stream so far."""
        ...

    def wait(self, stream: int, event: int) -> None:
        """Let a stream's further work begin after the event; one never recorded is past."""
        ...

    def synchronize(self, event: int) -> None:
        """Wait on the host for an event."""
        ...

    def synchronize_stream(self, stream: int) -> None:
        """Wait on the host for all work of a stream."""
        ...

    def upload(self, address: int, source: NDArray[Any], stream: int) -> None:
        """Copy contiguous host memory to the device."""
        ...

    def download(self, target: NDArray[Any], address: int, stream: int) -> None:
        """Copy device memory to contiguous host memory."""
        ...

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy within the device."""
        ...

    def load_kernels(self, source: str, names: Sequence[str]) -> Mapping[str, int]:
        """Compile CUDA C++ for this device, or take it from the cache, and return its kernels by name."""
        ...

    def launch(
        self, kernel: int, blocks: tuple[int, int], threads: int, arguments: Sequence[int], stream: int
    ) -> None:
        """Run a kernel whose arguments are all addresses."""
        ...

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        """Return the graph of what `work` asks of the stream, without doing it; raises CaptureError.

        `work` must not wait, allocate or free, and copies only from and to pinned host memory. What
        goes wrong in it is raised as it is, after the capture has ended.
        """
        ...

    def launch_graph(self, graph: int, stream: int) -> None: ...

    def destroy_graph(self, graph: int) -> None: ...


class DeviceEngine(Protocol):
    """An engine that can be called on arrays in a device's memory."""

    def bind(
        self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]
    ) -> Callable[[int], None]:
        """Fix the arrays of a call; the result asks a stream for it, allocating nothing."""
        ...

    def is_capturable(self, stream: int) -> bool:
        """Tell whether calls can become part of a graph captured from the stream, once one has run."""
        ...
