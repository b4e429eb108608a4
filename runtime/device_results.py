"""Results of a request that stay on the GPU, for other libraries to take over."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Protocol, cast

import numpy as np

from flowturbo_trt.bundle.manifest import Model
from flowturbo_trt.runtime.backend import Run
from flowturbo_trt.runtime.device import Device, DeviceArray
from flowturbo_trt.runtime.dlpack import DeviceTensor


class DeviceRun(Protocol):
    """A run whose results are on a GPU."""

    def copy_rows(self, rows: int, latents: int, images: int | None) -> None:
        """Copy the first rows to addresses on the device, and wait for them."""
        ...


@dataclass(frozen=True)
class GeneratedOnDevice:
    """Latents (N,C,H,W) float32 and images (N,H,W,3) uint8, which are None when not asked for.

    Both know DLPack: `torch.from_dlpack(generated.images)` copies nothing.
    """

    latents: DeviceTensor
    images: DeviceTensor | None


class DeviceResults:
    """Memory for the results of N rows, filled run by run."""

    def __init__(self, device: Device, model: Model, rows: int, *, decode: bool) -> None:
        self._device = device
        self._latents = self._allocate((rows, *model.latent), "float32")
        self._images: DeviceArray | None = None
        if decode and model.image is not None:
            try:
                self._images = self._allocate((rows, *model.image, 3), "uint8")
            except BaseException:
                self.free()
                raise

    def read(self, rows: slice, run: Run) -> None:
        """Take over the rows that a run has made."""
        images = None if self._images is None else _row_address(self._images, rows.start)
        # A backend with a device starts such runs.
        found = cast(DeviceRun, run)
        found.copy_rows(rows.stop - rows.start, _row_address(self._latents, rows.start), images)

    def hand_out(self) -> GeneratedOnDevice:
        """Give the memory to tensors, which free it."""
        images = None if self._images is None else self._tensor(self._images)
        return GeneratedOnDevice(self._tensor(self._latents), images)

    def free(self) -> None:
        for array in (self._latents, self._images):
            if array is not None:
                self._device.free(array.address)

    def _tensor(self, array: DeviceArray) -> DeviceTensor:
        return DeviceTensor(self._device, array, partial(self._device.free, array.address))

    def _allocate(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        return DeviceArray(self._device.allocate(size), shape, dtype)


def _row_address(array: DeviceArray, row: int) -> int:
    return array.address + array.nbytes // array.shape[0] * row
