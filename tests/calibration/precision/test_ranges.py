"""Ranges of activations, held against what really rounding the values gives."""

import math
from collections import Counter
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from flowturbo_trt.calibration.endpoints import CalibrationError
from flowturbo_trt.calibration.precision.histograms import Histogram
from flowturbo_trt.calibration.precision.ranges import (
    ENTROPY_BINS,
    FEWEST_BINS,
    METHODS,
    PERCENTILE,
    choose_range,
    round_to,
)

Values = NDArray[np.float64]
KINDS = ("int8", "fp8")
COUNT = 30_000
# All numbers of E4M3, by code from 0 up: an even code has an even mantissa.
FP8 = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)


def draw(name: str, count: int = COUNT) -> Values:
    random = np.random.default_rng(2)
    draws: dict[str, Callable[[], Values]] = {
        "uniform": lambda: random.uniform(-1, 1, count),
        "normal": lambda: random.standard_normal(count),
        "laplace": lambda: random.laplace(size=count),
        "heavy": lambda: random.standard_t(3, count),
        "gelu": lambda: np.maximum(3 * random.standard_normal(count), -0.17),
    }
    return draws[name]().astype(np.float32).astype(np.float64)


def histogram_of(values: Values) -> Histogram:
    histogram = Histogram()
    histogram.add(values.astype(np.float32).reshape(-1, 20))
    return histogram


def squared_error(values: Values, r: float, kind: str) -> float:
    """Really round the values; of INT8 by its definition."""
    if kind == "int8":
        return float(np.mean((np.clip(np.round(values * 127 / r), -127, 127) * r / 127 - values) ** 2))
    return float(np.mean((nearest_fp8(values * 448 / r) * r / 448 - values) ** 2))


def nearest_fp8(values: Values) -> Values:
    """Look the nearest number of E4M3 up; between two, the one of even code; beyond all, the last."""
    sizes = np.abs(values)
    upper = np.clip(np.searchsorted(FP8, sizes), 1, len(FP8) - 1)
    lower = upper - 1
    below, above = sizes - FP8[lower], FP8[upper] - sizes
    codes = np.where((below < above) | ((below == above) & (lower % 2 == 0)), lower, upper)
    nearest: Values = np.copysign(FP8[codes], values)
    return nearest


def test_fp8_is_rounded_to_the_nearest_number() -> None:
    """At every number, half way between, next to that, and anywhere in float32."""
    middles = ((FP8[1:] + FP8[:-1]) / 2).astype(np.float32)
    random = np.random.default_rng(0)
    sweep = np.concatenate(
        [
            FP8.astype(np.float32),
            middles,
            np.nextafter(middles, np.float32(1e9)),
            np.nextafter(middles, np.float32(0)),
            np.array([0, 448, 449, 464, 480, 1e6, 2.0**-10, 2.0**-11, 1e-30], dtype=np.float32),
            random.uniform(0, 600, 20_000).astype(np.float32),
            (2 ** random.uniform(-14, 9, 20_000)).astype(np.float32),
        ]
    ).astype(np.float64)
    for values in (sweep, -sweep):
        np.testing.assert_array_equal(round_to(values, 448.0, "fp8"), nearest_fp8(values))
        within = np.abs(values) <= 448
        cast = values[within].astype(np.float32).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
        np.testing.assert_array_equal(round_to(values, 448.0, "fp8")[within], cast)


def test_int8_is_rounded_to_even_and_cut_off() -> None:
    values = np.array([0.4, 0.5, 1.5, 2.5, 126.6, 127.0, 127.4, 300.0])
    expected = np.array([0, 0, 2, 2, 127, 127, 127, 127.0])
    for sign in (1, -1):
        np.testing.assert_array_equal(round_to(sign * values, 127.0, "int8"), sign * expected)
        np.testing.assert_allclose(round_to(sign * values / 8, 127 / 8, "int8"), sign * expected / 8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_range_is_only_a_scale(kind: str) -> None:
    values = draw("normal", 1000)
    np.testing.assert_allclose(round_to(8 * values, 24.0, kind), 8 * round_to(values, 3.0, kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["uniform", "normal", "laplace", "heavy", "gelu"])
def test_least_squared_error(name: str, kind: str) -> None:
    """No range is noticeably better on the values themselves."""
    values = draw(name)
    largest = np.abs(values).max()
    r = choose_range(histogram_of(values), kind, "error")
    shares = np.geomspace(1, 1 / 80, 100)
    best = min(squared_error(values, share * largest, kind) for share in shares)
    assert 0 < r <= largest
    assert squared_error(values, r, kind) <= 1.02 * best


def test_least_squared_error_of_a_normal_distribution() -> None:
    """The known cut-off of a uniform quantiser of 8 bits lies near 3.92 standard deviations."""
    random = np.random.default_rng(3)
    histogram = Histogram()
    for _ in range(5):
        histogram.add((2.5 * random.standard_normal((50_000, 20))).astype(np.float32))
    assert choose_range(histogram, "int8", "error") / 2.5 == pytest.approx(3.92, rel=0.035)
    assert histogram.largest / 2.5 > 4.8


def test_least_squared_error_far_below_the_largest_value() -> None:
    """Of 60 standard deviations, once among a million."""
    values, rare, times = draw("normal"), np.full(20, 60.0), 800
    histogram = histogram_of(rare)
    for _ in range(times):
        histogram.add(values.astype(np.float32).reshape(-1, 20))

    def error(r: float) -> float:
        return times * COUNT * squared_error(values, r, "int8") + 20 * squared_error(rare, r, "int8")

    r = choose_range(histogram, "int8", "error")
    assert r < 60 / 3
    assert error(r) <= 1.01 * min(error(candidate) for candidate in np.linspace(3, 60, 115))


@pytest.mark.parametrize("method", METHODS)
def test_uniform_values_keep_their_range(method: str) -> None:
    values = draw("uniform")
    assert choose_range(histogram_of(values), "int8", method) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("method", ["percentile", "entropy", "error"])
def test_heavy_tails_are_cut(method: str) -> None:
    values = draw("heavy", 200_000)
    largest = np.abs(values).max()
    r = choose_range(histogram_of(values), "int8", method)
    assert r < 0.6 * largest
    assert r > np.quantile(np.abs(values), 0.99)
    assert choose_range(histogram_of(values), "int8", "maximum") == largest


def test_percentile() -> None:
    values = draw("laplace")
    r = choose_range(histogram_of(values), "int8", "percentile")
    assert r == pytest.approx(np.quantile(np.abs(values), PERCENTILE), rel=0.002)
    assert np.mean(np.abs(values) <= r) >= PERCENTILE


def entropy_by_definition(values: Values, kind: str) -> float:
    """KL(P ‖ Q) range by range from the values, in plain Python."""
    limit = 2.0 ** (math.floor(math.log2(np.abs(values).max())) + 1)
    width = limit / ENTROPY_BINS
    bins = np.floor(np.abs(values) / width).astype(int)
    of_bin = Counter(bins.tolist())
    found: dict[float, float] = {}
    for end in sorted(bin_ + 1 for bin_ in of_bin):
        if end < FEWEST_BINS:
            continue
        within = {bin_: count for bin_, count in of_bin.items() if bin_ < end}
        middles = np.array([(bin_ + 0.5) * width for bin_ in within])
        r = end * width
        numbers = np.round(middles * 127 / r) if kind == "int8" else nearest_fp8(middles * 448 / r)
        spread: dict[float, list[int]] = {}
        for bin_, number in zip(within, numbers.tolist(), strict=True):
            spread.setdefault(number, []).append(bin_)
        q: dict[int, float] = {}
        for sharing in spread.values():
            share = sum(within[bin_] for bin_ in sharing) / len(sharing)
            q |= dict.fromkeys(sharing, share / sum(within.values()))
        p = dict(within)
        p[end - 1] += sum(count for bin_, count in of_bin.items() if bin_ >= end)
        total = sum(p.values())
        found[r] = sum(p[b] / total * math.log(p[b] / total / q[b]) for b in within)
    return min(float(np.abs(values).max()), min(found, key=lambda r: found[r]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["normal", "heavy", "gelu"])
def test_least_entropy(name: str, kind: str) -> None:
    values = draw(name, 4000)
    expected = entropy_by_definition(values, kind)
    assert choose_range(histogram_of(values), kind, "entropy") == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_values_of_one_kind(method: str, kind: str) -> None:
    """Constants keep their range, zeros get one, and a rare large value is in reach."""
    constant = np.full(200, -0.3)
    assert choose_range(histogram_of(constant), kind, method) == pytest.approx(0.3, rel=1e-6)
    assert choose_range(histogram_of(np.zeros(200)), kind, method) == 1.0
    r = choose_range(histogram_of(np.append(np.zeros(199), 1e-25)), kind, method)
    assert 0 < r <= np.float32(1e-25)


def test_scale_does_not_matter() -> None:
    values = draw("heavy", 20_000)
    for method in METHODS:
        for kind in KINDS:
            small, large = (
                choose_range(histogram_of(factor * values), kind, method) / factor for factor in (1.0, 1024.0)
            )
            assert small == large


def test_nothing_to_choose_by() -> None:
    with pytest.raises(CalibrationError, match="no values to choose a range by; record at least one row"):
        choose_range(Histogram(), "int8", "error")
    with pytest.raises(CalibrationError, match="kind 'int4' is not known; use int8 or fp8"):
        choose_range(histogram_of(np.ones(20)), "int4", "error")
    with pytest.raises(CalibrationError, match="method 'mse' is not known; use maximum, percentile, entropy"):
        choose_range(histogram_of(np.ones(20)), "int8", "mse")
