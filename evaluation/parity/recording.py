"""The float32 reference: the sampler's formulas called on a bundle's graphs, every call written down.

Nothing here is shared with what is verified but the call of a single network: the formulas are those
of sampling/steps.py, on plain arrays, where a backend runs the bundle's program in buffers of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import Condition, Engine, Graph, Manifest, Model
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend import Backend
from flowturbo_trt.runtime.backend_onnxruntime import NAME, OnnxRuntimeBackend
from flowturbo_trt.runtime.programs import find_program
from flowturbo_trt.runtime.request import Request, make_request
from flowturbo_trt.sampling import reference
from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.sampling.program import Program
from flowturbo_trt.sampling.schedule import Schedule

Array = NDArray[np.float32]
Inputs = Mapping[str, NDArray[Any]]
# Rows take turns at these multiples of the bundle's guidance; None stands for a scale of 1, no guidance.
GUIDANCE_MULTIPLES = (1.0, None, 2.0)


class NoReferenceError(FlowTurboError):
    """A bundle without the float32 graphs that its engines would be held against."""


@dataclass(frozen=True)
class Call:
    """One evaluation of a network: its inputs by name, N rows each, and its output (N,G,C,H,W).

    `index` counts the evaluations of the schedule from 0.
    """

    schedule: str
    variant: str
    index: int
    network: str
    t: float
    inputs: Inputs
    output: Array


@dataclass(frozen=True)
class Recording:
    """The reference trajectory of N rows: calls, the state (N,C,H,W) after every step, images (N,H,W,3)."""

    schedule: str
    program: Program
    variant: str
    request: Request
    calls: tuple[Call, ...]
    states: tuple[Array, ...]
    images: NDArray[np.uint8] | None

    @property
    def latents(self) -> Array:
        return self.states[-1]


def graph_engine(graph: Graph, batches: tuple[int, ...], backend: str) -> Engine:
    """Describe a float32 graph as an engine that needs no compiling."""
    return Engine(
        graph.network,
        graph.variant,
        backend,
        "fp32",
        batches,
        graph.file,
        graph.data,
        (),
        backend,
        graph.inputs,
        graph.outputs,
    )


def open_reference(bundle: Bundle, threads: int) -> Backend:
    """Return the bundle's float32 graphs on ONNX Runtime's CPU; raises NoReferenceError without any."""
    manifest = bundle.manifest
    if not manifest.graphs:
        raise NoReferenceError(
            f"{bundle.path}: holds no float32 graphs to hold its engines against (a stripped bundle); verify "
            "the bundle it was made from"
        )
    engines = tuple(graph_engine(graph, manifest.batches, NAME) for graph in manifest.graphs)
    # A bundle of its own: what it opens is hashed again, whatever has been opened before.
    view = Bundle(bundle.path, replace(manifest, engines=engines))
    return OnnxRuntimeBackend(view, "cpu", threads)


def make_rows(model: Model, rows: int, seed: int, variant: str) -> Request:
    """Make a request that spreads over conditions, seeds from `seed` on, and guidance scales."""
    conditions = {condition.name: _spread(condition, rows) for condition in model.conditions}
    seeds = tuple(range(seed, seed + rows))
    guidance = np.ones(rows, dtype=np.float32)
    if variant == "guided":
        for row in range(rows):
            multiple = GUIDANCE_MULTIPLES[row % len(GUIDANCE_MULTIPLES)]
            guidance[row] = 1 if multiple is None else multiple * model.guidance.default
    return make_request(model, conditions, seeds, guidance, None)


def record(
    backend: Backend, manifest: Manifest, schedule: str, variant: str, rows: int, seed: int
) -> Recording:
    """Run the reference over `rows` rows; `backend` is that of `open_reference`."""
    program = find_program(manifest, schedule, variant)
    request = make_rows(manifest.model, rows, seed, variant)
    noise = np.empty((rows, *manifest.model.latent), dtype=np.float32)
    request.fill_noise(slice(0, rows), noise)
    field = _RecordingField(backend, request, schedule, variant)
    # With an axis for the halves of guidance, as the formulas' sums want it.
    steps = reference.sample(Schedule.parse(schedule), field, noise[:, None])
    states = tuple(x[:, 0].copy() for x, _ in steps)
    decodes = manifest.model.image is not None
    images = backend.evaluate("decoder", None, {"state": states[-1]}) if decodes else None
    return Recording(schedule, program, variant, request, tuple(field.calls), states, images)


def _spread(condition: Condition, rows: int) -> NDArray[np.int64]:
    """Return values over a condition's whole range, repeating once all have been used."""
    values = condition.maximum - condition.minimum + 1
    if rows >= values:
        return condition.minimum + np.arange(rows) % values
    return np.linspace(condition.minimum, condition.maximum, rows).round().astype(np.int64)


class _RecordingField:
    """The graphs as the reference sampler sees them (sampling.steps.Field); keeps every call."""

    def __init__(self, backend: Backend, request: Request, schedule: str, variant: str) -> None:
        self.calls: list[Call] = []
        self._backend = backend
        self._schedule = schedule
        self._variant = variant
        self._fixed: dict[str, NDArray[Any]] = dict(request.conditions)
        if variant == "guided":
            self._fixed["guidance"] = request.guidance

    # States come as (N,1 or G,C,H,W); what counts in them is the conditional half.
    def predict(self, x: Array, t: float) -> Array:
        return self._call("predictor", t, {"state": x[:, 0].copy()})

    def refine(self, x: Array, v: Array, t: float) -> Array:
        return self._call("refiner", t, {"state": x[:, 0].copy(), "velocity": v})

    def _call(self, network: str, t: float, arrays: dict[str, Array]) -> Array:
        rows = len(arrays["state"])
        inputs = {**self._fixed, **arrays, "time": np.full(rows, t, dtype=np.float32)}
        output: Array = self._backend.evaluate(network, self._variant, inputs)
        self.calls.append(Call(self._schedule, self._variant, len(self.calls), network, t, inputs, output))
        return output
