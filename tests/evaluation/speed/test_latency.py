"""Timing in turn: when it stops, what it reports. No real time is looked at."""

import math
from collections.abc import Callable, Sequence
from itertools import cycle

import numpy as np
import pytest

from flowturbo_trt.evaluation.speed.latency import (
    CALLS_AFTER_PAUSE,
    LONG_CALL,
    Clock,
    Stability,
    Timing,
    interleaved_medians,
    measure,
    median_interval,
)


class FakeClock:
    """A clock that only calls and rests move; lists what happened."""

    def __init__(self) -> None:
        self.time = 0.0
        self.happened: list[str] = []
        self.clock = Clock(now=lambda: self.time, rest=self.rest)

    def rest(self, seconds: float) -> None:
        self.time += seconds
        self.happened.append("rest")

    def call(self, name: str, durations: Sequence[float]) -> Callable[[], None]:
        """Make a call that takes the given seconds, over and over."""
        left = cycle(durations)

        def run() -> None:
            self.time += next(left)
            self.happened.append(name)

        return run


@pytest.fixture
def fake() -> FakeClock:
    return FakeClock()


def test_steady_calls_are_measured_as_often_as_asked(fake: FakeClock) -> None:
    calls = {"a": fake.call("a", [0.5]), "b": fake.call("b", [2.0])}
    timings = measure(calls, Stability(at_least=7, seconds=1e9), clock=fake.clock)
    assert timings["a"].samples == (0.5,) * 7
    assert timings["b"].samples == (2.0,) * 7
    assert all(timing.stable for timing in timings.values())
    # A warm-up each, then in turn.
    assert fake.happened == ["a", "b"] * 8


def test_measuring_goes_on_until_every_call_is_stable(fake: FakeClock) -> None:
    """The second call settles only after its first forty runs, which then make up two blocks each way."""
    settling = [*[1.0] * 20, *[2.0] * 20, *[1.5] * 10_000]
    calls = {"a": fake.call("a", [1.0]), "b": fake.call("b", settling)}
    timings = measure(calls, Stability(at_least_seconds=60, seconds=1e9), clock=fake.clock)
    assert timings["b"].stable
    assert timings["b"].median == 1.5
    assert 80 < len(timings["a"].samples) == len(timings["b"].samples) < 160


def test_unstable_is_said_when_time_is_up(fake: FakeClock) -> None:
    """Fast for a while, slow for a while: many samples that are alike tell no more than a few."""
    calls = {"a": fake.call("a", [*[1.0] * 15, *[2.0] * 15])}
    (timing,) = measure(calls, Stability(at_least_seconds=50, seconds=100), clock=fake.clock).values()
    assert not timing.stable
    assert 60 <= len(timing.samples) <= 80
    assert timing.interval == (1.0, 2.0)


def test_a_while_is_measured_at_least(fake: FakeClock) -> None:
    """A machine drifts slower than a short call repeats."""
    stability = Stability(at_least_seconds=3, seconds=1e9)
    (timing,) = measure({"a": fake.call("a", [0.01])}, stability, clock=fake.clock).values()
    assert 299 <= len(timing.samples) <= 301


def test_time_is_kept_even_with_few_samples(fake: FakeClock) -> None:
    (timing,) = measure({"a": fake.call("a", [10.0])}, Stability(seconds=25), clock=fake.clock).values()
    assert timing.samples == (10.0,) * 3
    assert not timing.stable


def test_at_most(fake: FakeClock) -> None:
    stability = Stability(at_least=4, at_most=20, seconds=1e9)
    (timing,) = measure({"a": fake.call("a", [*[1.0] * 5, *[2.0] * 5])}, stability, clock=fake.clock).values()
    assert len(timing.samples) == 20
    assert not timing.stable


def test_libraries_rest_before_their_turn(fake: FakeClock) -> None:
    """After a pause one call goes uncounted: it pays for what the pause let go cold."""
    cold = [0.5, 0.5, *[0.125] * CALLS_AFTER_PAUSE, *[0.5, *[0.125] * CALLS_AFTER_PAUSE] * 9]
    calls = {"a": fake.call("a", cold), "b": fake.call("b", [0.25])}
    timings = measure(calls, Stability(at_least=6, at_most=6, seconds=1e9), pause=0.25, clock=fake.clock)
    assert timings["a"].samples == (0.125,) * 6
    turn = 1 + CALLS_AFTER_PAUSE
    assert fake.happened == ["a", "b", *(["rest", *["a"] * turn, "rest", *["b"] * turn] * 2)]


def test_long_call_needs_no_company(fake: FakeClock) -> None:
    """What the pause let go cold is little of it, and repeating it would take long."""
    calls = {"a": fake.call("a", [LONG_CALL]), "b": fake.call("b", [0.25])}
    timings = measure(calls, Stability(at_least=2, at_most=2, seconds=1e9), pause=0.25, clock=fake.clock)
    assert timings["a"].samples == (LONG_CALL,) * 2
    turn = 1 + CALLS_AFTER_PAUSE
    assert fake.happened == ["a", "b", *(["rest", "a", "rest", *["b"] * turn] * 2)]


def test_median_interval_of_order_statistics() -> None:
    """Ranks from tables of the sign test at 95 %: n = 6, 10, 20, 50, 100."""
    for n, low, high in ((6, 1, 6), (10, 2, 9), (20, 6, 15), (50, 18, 33), (100, 40, 61)):
        values = np.random.default_rng(n).permutation(np.arange(1.0, n + 1))
        assert median_interval(values.tolist()) == (low, high)
    assert median_interval([1.0] * 5) == (-math.inf, math.inf)
    assert median_interval([1.0] * 3000) == (1.0, 1.0)


def test_median_interval_covers_the_median() -> None:
    random = np.random.default_rng(0)
    hits = [
        low <= math.log(2) <= high for low, high in map(median_interval, random.exponential(size=(2000, 25)))
    ]
    assert 0.94 <= np.mean(hits) <= 0.98


def test_quantiles() -> None:
    timing = Timing(tuple(float(value) for value in range(101)), Stability())
    assert (timing.median, timing.quantile(0.9), timing.quantile(0.99)) == (50, 90, 99)


def test_interleaved_medians_counts() -> None:
    called: list[str] = []
    medians = interleaved_medians({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 3)
    assert set(medians) == {"a", "b"}
    assert called == ["a", "b"] * 4
