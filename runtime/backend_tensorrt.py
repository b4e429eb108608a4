"""Engines on TensorRT, both flavours: `tensorrt_rtx` and `tensorrt`."""

from typing import Any

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.cuda_backend import CudaBackend
from flowturbo_trt.runtime.cuda_driver import open_device
from flowturbo_trt.runtime.cuda_memory import Streams
from flowturbo_trt.runtime.device import Device, DeviceArray
from flowturbo_trt.runtime.tensorrt_engine import (
    TensorRtContext,
    TensorRtEngine,
    TensorRtRuntime,
    open_runtime,
)


def open_rtx(bundle: Bundle, device: str, threads: int) -> CudaBackend:
    """Open TensorRT for RTX on a device; `threads` concerns CPUs."""
    return open_backend(bundle, open_runtime("tensorrt_rtx", "tensorrt-rtx"), open_device(device))


def open_enterprise(bundle: Bundle, device: str, threads: int) -> CudaBackend:
    """Open TensorRT on a device; `threads` concerns CPUs."""
    return open_backend(bundle, open_runtime("tensorrt", "tensorrt"), open_device(device))


def open_backend(bundle: Bundle, runtime: TensorRtRuntime, device: Device) -> CudaBackend:
    """Run a bundle's plans on a device."""
    streams = Streams.on(device)
    return CudaBackend(bundle.manifest, streams, TensorRtEngines(bundle, runtime, streams))


class TensorRtEngines:
    """A bundle's plans (runtime.cuda_backend.DeviceEngines).

    Contexts work in one scratch memory, because all of them run one after the other on one stream.
    Trajectories have contexts of their own, whose addresses their graphs hold.
    """

    fixes_rows = True
    must_capture = True

    def __init__(self, bundle: Bundle, runtime: TensorRtRuntime, streams: Streams) -> None:
        self.name = runtime.backend
        self._bundle = bundle
        self._runtime = runtime
        self._streams = streams
        self._loaded: dict[str, TensorRtEngine] = {}
        # Smaller ones stay: graphs may have been captured over them.
        self._scratch: list[DeviceArray] = []

    def load(self, network: str, variant: str | None) -> None:
        for described in self._bundle.manifest.engines:
            if (described.network, described.variant, described.backend) == (network, variant, self.name):
                self._load(described)

    def engine(self, network: str, variant: str | None, rows: int) -> TensorRtContext:
        engine = self._load(self._bundle.manifest.engine(network, variant, self.name, rows))
        return engine.context(rows, self._scratch_of(engine.scratch_bytes(rows)), self._streams.compute)

    def close(self) -> None:
        for engine in self._loaded.values():
            # Some kernels are compiled only when a context first runs.
            engine.save_kernels()
        self._loaded.clear()
        for scratch in self._scratch:
            self._streams.device.free(scratch.address)
        self._scratch.clear()

    def _load(self, described: Any) -> TensorRtEngine:
        if described.file not in self._loaded:
            self._loaded[described.file] = self._runtime.load(self._bundle, described, self._streams.device)
        return self._loaded[described.file]

    def _scratch_of(self, size: int) -> DeviceArray:
        """Return scratch memory of at least a size, that of the largest engine so far where it will do."""
        if not self._scratch or self._scratch[-1].nbytes < size:
            largest = max(
                engine.scratch_bytes(rows)
                for engine in self._loaded.values()
                for rows in engine.described.batches
            )
            needed = max(size, largest)
            self._scratch.append(DeviceArray(self._streams.device.allocate(needed), (needed,), "uint8"))
        return self._scratch[-1]
