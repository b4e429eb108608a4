"""The float32 reference: the sampler's formulas called on a bundle's graphs, every call written down.

Nothing here is shared with what is verified but the call of a single network: the formulas are those
of sampling/steps.py, on plain arrays, where a backend runs the bundle's program in buffers of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import Condition, Engine, Graph, Manifest, Model, conditioner_of
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend import Backend
from flowturbo_trt.runtime.backend_onnxruntime import NAME, OnnxRuntimeBackend
from flowturbo_trt.runtime.conditioning import null_values
from flowturbo_trt.runtime.programs import find_program
from flowturbo_trt.runtime.request import Request, make_request
from flowturbo_trt.sampling import reference
from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.sampling.program import Program
from flowturbo_trt.sampling.reference import ScheduledField

Array = NDArray[np.float32]
Inputs = Mapping[str, NDArray[Any]]
# Rows take turns at these multiples of the bundle's guidance; None stands for a scale of 1, no guidance.
GUIDANCE_MULTIPLES = (1.0, None, 2.0)


class NoReferenceError(FlowTurboError):
    """A bundle without the float32 graphs that its engines would be held against."""


@dataclass(frozen=True)
class Call:
    """One evaluation of a network: its inputs by name, N rows each, and its output (N,G,C,H,W).

    `variant` is the trajectory's, `network_variant` the network's own; `index` counts the evaluations
    of the schedule from 0. A conditioner's output is (N,1,M), its index that of the evaluation it is for.
    """

    schedule: str
    variant: str
    index: int
    network: str
    network_variant: str | None
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

    def calls_of(self, network: str, variant: str | None) -> tuple[Call, ...]:
        """Return the calls of one network variant, in order."""
        return tuple(c for c in self.calls if (c.network, c.network_variant) == (network, variant))


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
    return OnnxRuntimeBackend(view, threads)


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
    parsed = manifest.schedule(schedule)
    recorder = _Recorder(backend, manifest, request, schedule, variant)
    variants = manifest.programs[manifest.default_schedule]
    fields = {network_variant: _RecordingField(recorder, network_variant) for network_variant in variants}
    field = ScheduledField(parsed, fields) if variant == "guided" else fields[variant]
    # With an axis for the halves of guidance, as the formulas' sums want it.
    steps = reference.sample(parsed, field, noise[:, None])
    states = tuple(x[:, 0].copy() for x, _ in steps)
    decodes = manifest.model.image is not None
    images = backend.evaluate("decoder", None, {"state": states[-1]}) if decodes else None
    return Recording(schedule, program, variant, request, tuple(recorder.calls), states, images)


def _spread(condition: Condition, rows: int) -> NDArray[np.int64]:
    """Return values over a condition's whole range, repeating once all have been used."""
    values = condition.maximum - condition.minimum + 1
    if rows >= values:
        return condition.minimum + np.arange(rows) % values
    return np.linspace(condition.minimum, condition.maximum, rows).round().astype(np.int64)


class _RecordingField:
    """The graphs of one variant as the reference sampler sees them (sampling.steps.Field)."""

    def __init__(self, recorder: "_Recorder", variant: str) -> None:
        self._recorder = recorder
        self._variant = variant

    # States come as (N,1 or G,C,H,W); what counts in them is the conditional half.
    def predict(self, x: Array, t: float) -> Array:
        return self._recorder.call("predictor", self._variant, t, {"state": x[:, 0].copy()})

    def refine(self, x: Array, v: Array, t: float) -> Array:
        return self._recorder.call("refiner", self._variant, t, {"state": x[:, 0].copy(), "velocity": v})


class _Recorder:
    """Calls the graphs for one request and keeps every call."""

    def __init__(
        self, backend: Backend, manifest: Manifest, request: Request, schedule: str, variant: str
    ) -> None:
        self.calls: list[Call] = []
        self._backend = backend
        self._conditions = manifest.model.conditions
        self._hoisted = {(graph.network, graph.variant) for graph in manifest.graphs if graph.is_hoisted}
        self._request = request
        self._where = (schedule, variant)
        self._evaluations = 0

    def call(self, network: str, variant: str, t: float, arrays: Inputs) -> Array:
        """Evaluate a network, with its conditioner where that is a network of its own."""
        guided = variant == "guided"
        time = np.full(len(self._request), t, dtype=np.float32)
        inputs: dict[str, NDArray[Any]] = dict(arrays)
        if guided:
            inputs["guidance"] = self._request.guidance
        if (network, variant) in self._hoisted:
            conditions = {"modulation": self._request.conditions}
            if guided:
                null = null_values(self._conditions)
                conditions["null_modulation"] = {n: np.full(len(time), value) for n, value in null.items()}
            for name, values in conditions.items():
                modulation = self._evaluate(conditioner_of(network), None, t, {"time": time, **values})
                inputs[name] = modulation[:, 0]
        else:
            inputs |= {"time": time, **self._request.conditions}
        output = self._evaluate(network, variant, t, inputs)
        self._evaluations += 1
        return output

    def _evaluate(self, network: str, variant: str | None, t: float, inputs: Inputs) -> Array:
        output: Array = self._backend.evaluate(network, variant, inputs)
        if variant is None:
            output = output[:, None]
        self.calls.append(Call(*self._where, self._evaluations, network, variant, t, inputs, output))
        return output
