"""Backends: what runs a bundle's engines.

A backend binds a program to engines and buffers at one batch size; the result, a Trajectory, is run
as often as wanted without allocating.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.sampling.program import Program, StepMark

# Name → "module:class"; imported when asked for, so that none needs another's packages.
BACKENDS = {"onnxruntime": "flowturbo_trt.runtime.backend_onnxruntime:OnnxRuntimeBackend"}
DEFAULT_BACKEND = "onnxruntime"

OnStep = Callable[[StepMark, int], None]


class BackendError(FlowTurboError):
    """A backend or device that is unknown or not available, or an engine it cannot run."""


class UnsupportedError(BackendError):
    """A device lacks what an engine needs: no fault of the engine's."""


class Trajectory(Protocol):
    """A program bound to engines and memory for `batch` rows.

    Fill `noise` (B,C,H,W), `conditions[name]` (B) and `guidance` (B), call `set_program` and `run`,
    read `latents` (B,C,H,W) or call `decode` for images (B,H,W,3) uint8. The arrays stay the same
    for the trajectory's life; their content is overwritten by the next run.
    """

    noise: NDArray[np.float32]
    conditions: dict[str, NDArray[np.int64]]
    guidance: NDArray[np.float32]
    latents: NDArray[np.float32]

    def set_program(self, program: Program) -> None:
        """Take times and coefficients from a program of the shape this was bound for."""
        ...

    def run(self, on_step: OnStep | None = None) -> None:
        """Run all instructions; `on_step(mark, index)` is called after every step."""
        ...

    def state_after(self, mark: StepMark) -> NDArray[np.float32]:
        """Return the state a step ends in, readable from within `on_step`."""
        ...

    def velocity_after(self, mark: StepMark) -> NDArray[np.float32]:
        """Return the velocity (B,G,C,H,W) a step passes on, readable from within `on_step`."""
        ...

    def decode(self) -> NDArray[np.uint8]:
        """Decode the latents."""
        ...

    def preview(self, mark: StepMark) -> NDArray[np.uint8]:
        """Decode where the trajectory would end if it went on straight from here."""
        ...


class Backend(Protocol):
    """Engines of one bundle on one device."""

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


def load_backend(name: str, bundle: Bundle, device: str, threads: int) -> Backend:
    """Return the named backend for a bundle; raises BackendError."""
    if name not in BACKENDS:
        built = any(engine.backend == name for engine in bundle.manifest.engines)
        why = "its engines are in the bundle, but this version cannot run them" if built else "is not known"
        raise BackendError(f"backend {name!r}: {why}; use {' or '.join(BACKENDS)}")
    module, cls = BACKENDS[name].split(":")
    backend: Backend = getattr(importlib.import_module(module), cls)(bundle, device, threads)
    return backend
