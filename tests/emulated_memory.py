"""The memory of the emulated device: blocks of host memory, watched for what a GPU would not report."""

import ctypes
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.runtime.device import ALIGNMENT, DeviceError, OutOfMemoryError

Bytes = NDArray[np.uint8]

# What was never written, was freed, or lies behind a block: a NaN in every floating-point type.
POISON = 0xFF
GUARD = ALIGNMENT


@dataclass(frozen=True)
class _Block:
    """Bytes at an aligned address; the guard behind them belongs to nobody."""

    content: Bytes
    guard: Bytes

    def check_guard(self) -> None:
        if (self.guard != POISON).any():
            address = self.content.ctypes.data
            raise DeviceError(f"something was written behind the {self.content.size} bytes at {address:#x}")


class EmulatedMemory:
    """Blocks by address. Freed ones are kept, so that no address stands for two blocks in turn."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.allocations = 0
        self._blocks: dict[int, _Block] = {}
        self._freed: list[_Block] = []

    @property
    def live_allocations(self) -> int:
        return len(self._blocks)

    @property
    def live_bytes(self) -> int:
        return sum(block.content.size for block in self._blocks.values())

    def allocate(self, size: int) -> int:
        if size <= 0:
            raise DeviceError(f"cannot allocate {size} bytes")
        if self.live_bytes + size > self.limit:
            free = self.limit - self.live_bytes
            raise OutOfMemoryError(f"no room for {size} bytes: {free} of {self.limit} are free")
        memory = np.full(size + GUARD + ALIGNMENT, POISON, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT
        block = _Block(memory[start : start + size], memory[start + size : start + size + GUARD])
        address = block.content.ctypes.data
        self._blocks[address] = block
        self.allocations += 1
        return address

    def free(self, address: int) -> None:
        if address not in self._blocks:
            raise DeviceError(f"{address:#x} is not the address of an allocation")
        block = self._blocks.pop(address)
        block.check_guard()
        block.content[:] = POISON
        self._freed.append(block)

    def view(self, address: int, size: int) -> Bytes:
        """Return `size` bytes, which lie within one block; raises DeviceError."""
        block = self._block(address)
        start = address - block.content.ctypes.data
        if start + size > block.content.size:
            raise DeviceError(
                f"{size} bytes at {address:#x} end {start + size - block.content.size} behind their block"
            )
        return block.content[start : start + size]

    def check(self, address: int) -> None:
        """Raise DeviceError unless an address lies in a block with nothing written behind it."""
        self._block(address).check_guard()

    def _block(self, address: int) -> _Block:
        for start, block in self._blocks.items():
            if start <= address < start + block.content.size:
                return block
        freed = any(0 <= address - block.content.ctypes.data < block.content.size for block in self._freed)
        raise DeviceError(f"illegal address {address:#x}: {'freed' if freed else 'never allocated'}")


def host_bytes(array: NDArray[Any]) -> Callable[[], Bytes]:
    """Return how to reach an array's memory later; that raises DeviceError when it is gone by then.

    A copy does not keep host memory alive: neither does this.
    """
    if not array.flags.c_contiguous:
        raise DeviceError(f"an array {array.shape} with gaps cannot be copied")
    owner = root(array)
    # Memory that does not belong to NumPy cannot be watched: it is kept.
    kept = owner if owner.base is not None else None
    watch, address, size = weakref.ref(owner), array.ctypes.data, array.nbytes

    def reach(_kept: NDArray[Any] | None = kept) -> Bytes:
        if watch() is None:
            raise DeviceError(f"the {size} bytes of host memory of a copy were freed before it ran")
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    return reach


def root(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array whose memory this one is a view of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array
