"""Latency measured side by side: machines drift, so alternatives take turns within one run."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import numpy as np

from flowturbo_trt.bundle.manifest import Manifest, conditioner_of
from flowturbo_trt.runtime.backend import Backend, Trajectory
from flowturbo_trt.runtime.conditioning import Conditioning, plan_conditioning
from flowturbo_trt.runtime.engine_loop import EngineLoop
from flowturbo_trt.runtime.host_trajectory import HostEngine
from flowturbo_trt.sampling.program import Program

Call = Callable[[], object]
# A pause before another library's turn. Threads of torch's OpenMP spin for up to 0.2 s after a call and
# take 20 to 40 % of the next library's speed, if it starts within that time.
QUIET_SECONDS = 0.25
# After a pause caches and clocks are cold: one call goes uncounted, and then several are timed.
CALLS_AFTER_PAUSE = 3
# A call of this many seconds hardly notices, and is counted alone.
LONG_CALL = 1.0


@dataclass(frozen=True)
class Stability:
    """When a median is known well enough: its 95 % interval lies within ± `precision` of it.

    Measuring goes on until every call's median is, with `at_least` samples each and not before
    `at_least_seconds`: a machine drifts, and samples that follow each other are alike. It stops short
    at `at_most` samples or after `seconds`. What changes from run to run no single run can see.
    """

    precision: float = 0.02
    at_least: int = 11
    at_least_seconds: float = 3.0
    at_most: int = 2000
    seconds: float = 60.0


# Stretches of a measurement whose medians are compared; within one, samples may be alike.
BLOCKS = 12


def block_medians(values: Sequence[float]) -> list[float]:
    """Return the medians of up to BLOCKS stretches of samples in the order they were taken."""
    bounds = np.linspace(0, len(values), min(BLOCKS, len(values)) + 1).astype(int)
    return [statistics.median(values[a:b]) for a, b in pairwise(bounds)]


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of a median from order statistics, whatever the distribution is.

    Fewer than six values have none: it is (−∞, ∞).
    """
    ordered, n = sorted(values), len(values)
    # The median lies below the k-th smallest value with the chance of fewer than k heads in n tosses.
    below, k = 1, 0
    while below * 40 <= 2**n:
        k += 1
        below += math.comb(n, k)
    return (ordered[k - 1], ordered[n - k]) if k else (-math.inf, math.inf)


@dataclass(frozen=True)
class Timing:
    """The seconds that one call took, one sample each time; `stable` as its Stability asked for."""

    samples: tuple[float, ...]
    stability: Stability

    @cached_property
    def median(self) -> float:
        return statistics.median(self.samples)

    def quantile(self, q: float) -> float:
        """Return the q-quantile, 0 … 1, interpolated between samples."""
        return float(np.quantile(self.samples, q))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the median, as its stretches of time spread (block_medians)."""
        return median_interval(block_medians(self.samples))

    @property
    def stable(self) -> bool:
        low, high = self.interval
        spread = max(high - self.median, self.median - low)
        return (
            len(self.samples) >= self.stability.at_least and spread <= self.stability.precision * self.median
        )


@dataclass(frozen=True)
class Clock:
    """What is asked for the time and for a rest; tests have one of their own."""

    now: Callable[[], float] = time.perf_counter
    rest: Callable[[float], None] = time.sleep


def measure(
    calls: Mapping[str, Call],
    stability: Stability | None = None,
    *,
    pause: float = 0.0,
    clock: Clock | None = None,
) -> dict[str, Timing]:
    """Time calls in turn until their medians are stable, after one warm-up each.

    Give a `pause` of QUIET_SECONDS where several libraries take turns.
    """
    stability, clock = stability or Stability(), clock or Clock()
    for call in calls.values():
        call()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    started = clock.now()
    while True:
        for name, call in calls.items():
            samples[name] += _turn(call, pause, clock)
        timings = {name: Timing(tuple(values), stability) for name, values in samples.items()}
        waited = clock.now() - started >= stability.at_least_seconds
        if (
            (waited and all(timing.stable for timing in timings.values()))
            or clock.now() - started >= stability.seconds
            or min(map(len, samples.values())) >= stability.at_most
        ):
            return timings


def _turn(call: Call, pause: float, clock: Clock) -> list[float]:
    if not pause:
        return [_timed(call, clock)]
    clock.rest(pause)
    first = _timed(call, clock)
    return [first] if first >= LONG_CALL else [_timed(call, clock) for _ in range(CALLS_AFTER_PAUSE)]


def _timed(call: Call, clock: Clock) -> float:
    started = clock.now()
    call()
    return clock.now() - started


def interleaved_medians(calls: Mapping[str, Call], repeats: int) -> dict[str, float]:
    """Run the calls in turn `repeats` times after one warm-up each; return median seconds by name."""
    fixed = Stability(at_least=repeats, at_least_seconds=0, at_most=repeats, seconds=math.inf)
    return {name: timing.median for name, timing in measure(calls, fixed).items()}


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
