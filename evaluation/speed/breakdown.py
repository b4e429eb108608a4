"""Where a trajectory's time goes: the whole beside its engines, each called alone as often."""

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np

from flowturbo_trt.bundle.manifest import Manifest, conditioner_of
from flowturbo_trt.evaluation.speed.latency import (
    Call,
    Stability,
    Timing,
    block_medians,
    measure,
    median_interval,
)
from flowturbo_trt.runtime.backend import Backend, Trajectory
from flowturbo_trt.runtime.conditioning import Conditioning, plan_conditioning
from flowturbo_trt.runtime.engine_loop import EngineLoop
from flowturbo_trt.runtime.host_trajectory import HostEngine
from flowturbo_trt.sampling.program import Program


@runtime_checkable
class EngineBackend(Protocol):
    """A backend whose engines can be called one by one on arrays in host memory."""

    def engine(self, network: str, variant: str | None) -> HostEngine: ...


@runtime_checkable
class LoopBackend(Protocol):
    """A backend on a GPU, whose engines can be called over and over there."""

    def conditionings(self, program: Program, batch: int) -> Mapping[str, Conditioning]: ...

    def loop(self, network: str, variant: str | None, rows: int, count: int) -> EngineLoop: ...


@dataclass(frozen=True)
class Breakdown:
    """A whole trajectory, and each engine called alone as often as the trajectory calls it.

    They are compared round by round: a machine that slows down for a while slows both sides.
    """

    whole: Timing
    engines: Mapping[str, Timing] = field(default_factory=dict)

    @property
    def shares(self) -> dict[str, float]:
        """The part of the whole that each network takes; `rest` may come out slightly below 0."""
        shares = {
            name: statistics.median(
                part / whole for part, whole in zip(timing.samples, self.whole.samples, strict=True)
            )
            for name, timing in self.engines.items()
        }
        return shares | {"rest": 1 - sum(shares.values())}

    @property
    def overhead(self) -> float:
        """What the whole takes longer than its engines, as a fraction of what these take."""
        return statistics.median(self._overheads)

    @property
    def overhead_interval(self) -> tuple[float, float]:
        """The 95 % interval of the overhead."""
        return median_interval(block_medians(self._overheads))

    @property
    def _overheads(self) -> list[float]:
        rounds = zip(*(timing.samples for timing in self.engines.values()), strict=True)
        return [whole / sum(parts) - 1 for whole, parts in zip(self.whole.samples, rounds, strict=True)]


def breakdown(
    backend: Backend,
    manifest: Manifest,
    program: Program,
    batch: int,
    stability: Stability | None = None,
    *,
    decode: bool,
) -> Breakdown | None:
    """Time a trajectory and its engines alone, in turn; None where they cannot be called alone."""
    with ExitStack() as held:
        if isinstance(backend, LoopBackend):
            conditionings = backend.conditionings(program, batch)
            alone: Callable[..., Call] = partial(_loop, backend, held)
        elif isinstance(backend, EngineBackend):
            built_for = manifest.engines[0].backend
            conditionings = plan_conditioning(manifest, program, batch, built_for, pads=False)
            alone = partial(_alone, backend, manifest)
        else:
            return None
        trajectory = backend.bind(program, batch)
        held.callback(trajectory.close)
        _fill(trajectory, manifest)
        calls = {
            stage: alone(*call) for stage, call in _engine_calls(program, batch, conditionings, decode=decode)
        }
        timings = measure({"": partial(_run, trajectory, decode=decode), **calls}, stability)
    return Breakdown(timings.pop(""), timings)


def _engine_calls(
    program: Program, batch: int, conditionings: Mapping[str, Conditioning], *, decode: bool
) -> Iterator[tuple[str, tuple[str, str | None, int, int]]]:
    """Yield what a run calls, by the stage's name: network, variant, rows, how often."""
    evaluations = program.evaluations()
    networks = [network for network, _ in evaluations]
    for (network, variant), count in evaluations.items():
        # Where a network is called in both variants, they are stages apart.
        stage = f"{network} {variant}" if networks.count(network) > 1 else network
        yield stage, (network, variant, batch, count)
    for network, found in conditionings.items():
        name = conditioner_of(network)
        yield name, (name, None, found.rows_per_call, found.calls)
    if decode:
        yield "decoder", ("decoder", None, batch, 1)


def _fill(trajectory: Trajectory, manifest: Manifest) -> None:
    """Write a request into every place of a trajectory: of zeros products may take less time."""
    random = np.random.default_rng(0)
    for _ in range(trajectory.depth):
        inputs = trajectory.inputs
        inputs.noise[...] = random.standard_normal(inputs.noise.shape, dtype=np.float32)
        inputs.guidance[...] = manifest.model.guidance.default
        for condition in manifest.model.conditions:
            inputs.conditions[condition.name][...] = condition.minimum
        _run(trajectory, decode=False)


def _run(trajectory: Trajectory, *, decode: bool) -> None:
    run = trajectory.start(decode=decode)
    # On a GPU it has only been asked for.
    if decode:
        run.images()
    else:
        run.latents()


def _loop(
    backend: LoopBackend, held: ExitStack, network: str, variant: str | None, rows: int, count: int
) -> Call:
    loop = backend.loop(network, variant, rows, count)
    held.callback(loop.close)
    return loop


def _alone(
    backend: EngineBackend, manifest: Manifest, network: str, variant: str | None, rows: int, count: int
) -> Call:
    """Bind an engine to arrays of its own in host memory."""
    described = next(e for e in manifest.engines if (e.network, e.variant) == (network, variant))
    arrays: dict[str, Any] = {
        tensor.name: np.zeros((rows, *map(int, tensor.shape[1:])), tensor.dtype)
        for tensor in (*described.inputs, *described.outputs)
    }
    outputs = {tensor.name: arrays.pop(tensor.name) for tensor in described.outputs}
    return partial(_repeat, backend.engine(network, variant).bind(arrays, outputs), count)


def _repeat(call: Call, count: int) -> None:
    for _ in range(count):
        call()
