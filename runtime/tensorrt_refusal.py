"""Why TensorRT refuses: what the manifest, the device and TensorRT's own words say, and what to do."""

import re
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from flowturbo_trt.bundle.manifest import Engine
from flowturbo_trt.runtime.backend import BackendError, UnsupportedError
from flowturbo_trt.runtime.device import Device, OutOfMemoryError

# The compute capabilities that plans of TensorRT for RTX run on unless they were compiled for others
# (NVIDIA's support matrix).
PORTABLE = ("8.6", "8.9", "12.0")

_NO_DRIVER = re.compile(
    r"cudaError (3|34|35|100|803)\b|driver version is insufficient|no CUDA-capable device"
    r"|CUDA initialization fail|open cuda driver",
    re.IGNORECASE,
)
_NO_MEMORY = re.compile(r"out ?of ?memory|cudaError 2\b|amount of GPU memory", re.IGNORECASE)
_BYTES_ASKED = re.compile(r"GPU memory \((\d+) bytes\)")


@dataclass(frozen=True)
class RefusedPlan:
    """A plan of `size` bytes that TensorRT did not load, for the `reason` it gave.

    `installed` is TensorRT as the manifest would name it; `problems` are the names of what
    `plan_problems` found.
    """

    backend: str
    installed: str
    engine: Engine
    size: int
    device: Device
    reason: str
    problems: frozenset[str]

    def error(self) -> BackendError:
        """Return the error to raise: what certainly is wrong before what probably is."""
        for cause in (self._driver, self._memory, self._version, self._gpu):
            if (found := cause()) is not None:
                return found
        return BackendError(f"{self._what}: {self.reason}; rebuild it with --backend {self.backend}")

    @property
    def _what(self) -> str:
        return f"{self.engine.name}: {self.backend} cannot load {self.engine.file}"

    def _driver(self) -> BackendError | None:
        if not self.problems & {"CUDA_ERROR", "OLD_CUDA_DRIVER", "OLD_CUDA_RUNTIME"} and not (
            _NO_DRIVER.search(self.reason)
        ):
            return None
        return UnsupportedError(
            f"{self._what}: it needs an NVIDIA GPU with a driver that is new enough for {self.installed} "
            f"({self.reason}); install the latest driver, or use --backend onnxruntime"
        )

    def _memory(self) -> BackendError | None:
        if "INSUFFICIENT_GPU_MEMORY" in self.problems or out_of_memory(self.reason):
            return memory_error(self._what, self.reason, self.size, self.device)
        return None

    def _version(self) -> BackendError | None:
        built_with = self.engine.builder.partition(" for ")[0]
        if built_with == self.installed:
            return None
        return BackendError(
            f"{self._what}: it was built with {built_with}, and {self.installed} is installed "
            f"({self.reason}); install that version, or rebuild it with --backend {self.backend}"
        )

    def _gpu(self) -> BackendError | None:
        has = "{}.{}".format(*self.device.capability)
        # Where an engine is bound to the GPU it was built on, its builder names it, and the driver.
        built_on = self.engine.builder.partition(" for ")[2].rpartition(", ")[0]
        if built_on and built_on != self.device.name:
            return UnsupportedError(
                f"{self._what}: it was built on {built_on}, and this is {self.device.name} ({self.reason}); "
                "rebuild it here"
            )
        targets = tuple(map(_dotted, self.engine.targets)) or PORTABLE
        if "UNSUPPORTED_CC" not in self.problems and (built_on or has in targets):
            return None
        return UnsupportedError(
            f"{self._what}: it was compiled for compute capability {' or '.join(targets)}, and "
            f"{self.device.name} has {has} ({self.reason}); rebuild it with --target {has}, or for another "
            "backend"
        )


def plan_problems(trt: ModuleType, runtime: Any, plan: Any) -> frozenset[str]:
    """Return the names of what TensorRT finds wrong in a plan's header, where it can tell."""
    if not hasattr(runtime, "get_engine_validity"):
        return frozenset()
    _, found = runtime.get_engine_validity(plan)
    members = trt.EngineInvalidityDiagnostics.__members__
    return frozenset(name for name, member in members.items() if found & int(member))


def out_of_memory(reason: str) -> bool:
    """Tell whether TensorRT's words mean that the device has no room left."""
    return _NO_MEMORY.search(reason) is not None


def memory_error(what: str, reason: str, at_least: int, device: Device) -> OutOfMemoryError:
    """Return the error for a full device; at least so many bytes were asked for if TensorRT does not say."""
    said = _BYTES_ASKED.search(reason)
    asked = f"{int(said[1])} bytes" if said else f"at least {at_least} bytes"
    free, total = device.memory()
    return OutOfMemoryError(
        f"{what}: it asks for {asked} of GPU memory, and {free} of {total} are free on {device.name}; "
        "end what else uses it, or load fewer batch sizes and variants"
    )


def _dotted(target: str) -> str:
    digits = target.lower().removeprefix("sm").replace(".", "")
    return f"{digits[:-1]}.{digits[-1:]}"
