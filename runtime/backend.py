"""Backends: what runs a bundle's engines.

A backend binds a program to engines and buffers at one batch size; the result, a Trajectory, is run
as often as wanted without allocating.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.sampling.program import Program, StepMark

if TYPE_CHECKING:
    from flowturbo_trt.runtime.device import Device


@dataclass(frozen=True)
class BackendRow:
    """What opens a backend, as "module:function" (bundle, device, threads), and its device by default.

    The module is imported when asked for, so that no backend needs another's packages.
    """

    opener: str
    device: str = "cpu"


BACKENDS = {
    "onnxruntime": BackendRow("flowturbo_trt.runtime.backend_onnxruntime:open_backend"),
    "openvino": BackendRow("flowturbo_trt.runtime.backend_openvino:OpenVinoBackend"),
    "tensorrt-rtx": BackendRow("flowturbo_trt.runtime.backend_tensorrt:open_rtx", "cuda"),
    "tensorrt": BackendRow("flowturbo_trt.runtime.backend_tensorrt:open_enterprise", "cuda"),
}
DEFAULT_BACKEND = "onnxruntime"
# Of ONNX Runtime.
PROVIDERS = ("cpu", "cuda", "tensorrt")

OnStep = Callable[[StepMark, int], None]


class BackendError(FlowTurboError):
    """A backend or device that is unknown or not available, or an engine it cannot run."""


class UnsupportedError(BackendError):
    """A device lacks what an engine needs: no fault of the engine's."""


@dataclass(frozen=True)
class Inputs:
    """Host memory that a request is written into: noise (B,C,H,W), conditions (B) by name, guidance (B)."""

    noise: NDArray[np.float32]
    conditions: Mapping[str, NDArray[np.int64]]
    guidance: NDArray[np.float32]


class Run(Protocol):
    """A run that has been started. What it gives is overwritten once `depth` more have been started."""

    def latents(self) -> NDArray[np.float32]:
        """Return latents (B,C,H,W) in host memory, waiting for the run where it is still under way."""
        ...

    def images(self) -> NDArray[np.uint8]:
        """Return images (B,H,W,3) in host memory, as `latents` does."""
        ...


class Trajectory(Protocol):
    """A program bound to engines and memory for `batch` rows.

    Call `set_program`, fill `inputs`, `start`, and read the run. Up to `depth` runs may be started before
    the first is read; `inputs` are then those of the next. One thread at a time may start runs.
    """

    @property
    def depth(self) -> int:
        """How many runs may be under way."""
        ...

    @property
    def is_captured(self) -> bool:
        """Whether a run without callbacks goes another way than one with them: as one captured graph."""
        ...

    @property
    def inputs(self) -> Inputs:
        """What the next run reads: ask anew for every run."""
        ...

    def set_program(self, program: Program, rows: slice | None = None) -> None:
        """Take times and coefficients from a program of the shape this was bound for.

        With `rows` for these rows of the batch only: rows may be at different times.
        """
        ...

    def start(self, *, decode: bool, on_step: OnStep | None = None) -> Run:
        """Start a run; with `on_step`, called as (mark, index) after every step, it is over on return."""
        ...

    def state_after(self, index: int) -> NDArray[np.float32]:
        """Return the state a step ends in, from within `on_step`."""
        ...

    def velocity_after(self, index: int) -> NDArray[np.float32]:
        """Return the velocity (B,G,C,H,W) a step passes on, from within `on_step`."""
        ...

    def preview(self, index: int) -> NDArray[np.uint8]:
        """Decode where the trajectory would end if it went on straight from here, within `on_step`."""
        ...

    def close(self) -> None:
        """Give back what it holds beside host memory; it is not used again."""
        ...


class Backend(Protocol):
    """Engines of one bundle on one device."""

    @property
    def device(self) -> "Device | None":
        """The GPU whose memory results are made in; None where that is the host's."""
        ...

    def prepare(self, program: Program) -> None:
        """Load the engines a program needs, and the decoder's."""
        ...

    def bind(self, program: Program, batch: int) -> Trajectory:
        """Allocate a trajectory for programs of this shape."""
        ...

    def evaluate(self, network: str, variant: str | None, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Call one engine once, on host arrays by input name whose rows are a batch it was built for.

        For verification and calibration: it allocates its output. Raises BackendError.
        """
        ...

    def close(self) -> None:
        """Give back what it holds beside host memory; its trajectories are to be closed before."""
        ...


def default_backend(manifest: Manifest) -> str:
    """Return the backend a bundle is run on unless told: DEFAULT_BACKEND if it was built for that."""
    built = list(dict.fromkeys(engine.backend for engine in manifest.engines))
    return DEFAULT_BACKEND if DEFAULT_BACKEND in built or not built else built[0]


def default_device(backend: str, provider: str | None) -> str:
    """Return the device that a backend, with a provider of ONNX Runtime's or none, is made for."""
    if provider not in (None, "cpu"):
        return "cuda"
    return BACKENDS[backend].device if backend in BACKENDS else "cpu"


def load_backend(
    name: str, bundle: Bundle, device: str | None, threads: int, provider: str | None = None
) -> Backend:
    """Return the named backend for a bundle; raises BackendError.

    `device` is cpu, cuda or cuda:N, by default what the backend is made for; `provider` is ONNX
    Runtime's, and with one on a GPU that is the default.
    """
    if name not in BACKENDS:
        raise BackendError(f"backend {name!r} is not known; use {', '.join(BACKENDS)}")
    if provider is not None and name != "onnxruntime":
        raise BackendError(f"provider {provider}: only onnxruntime has providers, not {name}; leave it out")
    own = {} if provider is None else {"provider": provider}
    module, function = BACKENDS[name].opener.split(":")
    opener = getattr(importlib.import_module(module), function)
    chosen = default_device(name, provider) if device is None else device
    backend: Backend = opener(bundle, chosen, threads, **own)
    return backend
