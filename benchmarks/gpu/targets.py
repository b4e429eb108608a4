"""What can run engines on a GPU: a backend, of ONNX Runtime one for each of its providers."""

import importlib
from dataclasses import dataclass
from typing import Any

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend import Backend, BackendError, load_backend
from flowturbo_trt.runtime.cuda_driver import open_device
from flowturbo_trt.runtime.onnxruntime_session import check_provider


@dataclass(frozen=True)
class Target:
    """A backend of the manifest's, imported as `module`; `captures` if every trajectory must be one graph."""

    backend: str
    module: str
    provider: str | None = None
    captures: bool = False

    def missing(self) -> str | None:
        """Tell why it is not installed, None where it is."""
        try:
            importlib.import_module(self.module)
        except Exception as error:  # without the vendor's libraries they fail in ways of their own
            return " ".join(str(error).split())[:200]
        if self.provider is None:
            return None
        try:
            check_provider(self.provider)
        except BackendError as error:
            return str(error)
        return None

    def open(self, bundle: Bundle, device: str) -> Backend:
        """Load the backend; raises BackendError."""
        return load_backend(self.backend, bundle, device, 0, self.provider)


TARGETS = {
    "tensorrt-rtx": Target("tensorrt-rtx", "tensorrt_rtx", captures=True),
    "tensorrt": Target("tensorrt", "tensorrt", captures=True),
    "onnxruntime-tensorrt": Target("onnxruntime", "onnxruntime", "tensorrt"),
    "onnxruntime-cuda": Target("onnxruntime", "onnxruntime", "cuda"),
}
# On the CPU, to try out the scripts themselves.
DRY_TARGETS = {"onnxruntime-cpu": Target("onnxruntime", "onnxruntime", "cpu")}


def targets_for(device: str) -> dict[str, Target]:
    """Return what may run on a device by name."""
    return DRY_TARGETS if device == "cpu" else TARGETS


def describe_gpu(device: str) -> dict[str, Any] | None:
    """Describe the GPU that cuda or cuda:N names, None for cpu; raises BackendError where there is none."""
    if device == "cpu":
        return None
    found = open_device(device)
    try:
        memory = found.memory()[1]
    finally:
        found.close()
    return {"name": found.name, "capability": list(found.capability), "memory_bytes": memory}
