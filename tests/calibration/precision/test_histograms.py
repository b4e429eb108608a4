"""Streaming histograms: exact counts, in any order, in bounded memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from flowturbo_trt.calibration.endpoints import CalibrationError
from flowturbo_trt.calibration.precision import histograms
from flowturbo_trt.calibration.precision.histograms import BINS, Histogram

Array = NDArray[np.float32]
RANDOM = np.random.default_rng(0)


def of(*arrays: Array) -> Histogram:
    histogram = Histogram()
    for values in arrays:
        histogram.add(values)
    return histogram


def counted(values: Array, limit: float) -> NDArray[np.int64]:
    """Count |x| bin by bin: those from i/BINS to below (i + 1)/BINS of the limit."""
    edges = np.arange(BINS + 1) * (limit / BINS)
    return np.diff(np.searchsorted(np.sort(np.abs(values).ravel().astype(np.float64)), edges))


def normal(*shape: int, scale: float = 1.0) -> Array:
    return (scale * RANDOM.standard_normal(shape)).astype(np.float32)


def test_counts_of_one_array() -> None:
    values = normal(7, 11, 13)
    histogram = of(values)
    assert histogram.limit == 4.0 > np.abs(values).max() > 2.0
    np.testing.assert_array_equal(histogram.counts, counted(values, 4.0))
    assert histogram.total == values.size


def test_growing_range_counts_exactly() -> None:
    """As if the last limit had been known from the start."""
    parts = [normal(50, 6, scale=scale) for scale in (1e-3, 1.0, 1e-6, 300.0, 20.0)]
    histogram = of(*parts)
    values = np.concatenate(parts)
    assert histogram.limit == 2.0 ** np.ceil(np.log2(np.abs(values).max()))
    np.testing.assert_array_equal(histogram.counts, counted(values, histogram.limit))


def test_order_and_division_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [normal(30, 5, scale=scale) for scale in (5.0, 0.1, 70.0)]
    expected = of(*parts)
    monkeypatch.setattr(histograms, "CHUNK", 40)
    for found in (of(*reversed(parts)), of(np.concatenate(parts)), of(*np.concatenate(parts)[:, None])):
        assert found.limit == expected.limit
        np.testing.assert_array_equal(found.counts, expected.counts)
        np.testing.assert_array_equal(found.channel_maxima, expected.channel_maxima)


def test_maxima_are_by_channel() -> None:
    """The last axis, over all arrays and rows."""
    a, b = normal(3, 40, 6), normal(2, 10, 6, scale=2.0)
    b[..., 4] = 0.0
    a[..., 4] = 0.0
    expected = np.abs(np.concatenate([a.reshape(-1, 6), b.reshape(-1, 6)])).max(axis=0)
    histogram = of(a, b)
    np.testing.assert_array_equal(histogram.channel_maxima, expected)
    assert expected[4] == 0
    assert histogram.largest == expected.max()


def test_values_are_left_as_they_are() -> None:
    values = normal(9, 4)
    before = values.copy()
    of(values)
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("power", [-149, -126, -101, -100, -20, 0, 13, 127])
def test_any_magnitude(power: int) -> None:
    """A power of two lies on the border of a bin, and belongs to the upper one."""
    value = np.float32(2.0**power)
    histogram = of(np.array([[value, 0.0]], dtype=np.float32))
    assert histogram.limit == max(2.0 ** (power + 1), 2.0**-100)
    expected = {0, int(float(value) * BINS / histogram.limit)}
    assert set(np.flatnonzero(histogram.counts).tolist()) == expected
    assert histogram.total == 2


def test_value_at_the_limit() -> None:
    """Is the first beyond it."""
    histogram = of(np.full((1, 2), 1.5, dtype=np.float32))
    assert histogram.limit == 2.0
    histogram.add(np.full((1, 2), 2.0, dtype=np.float32))
    assert histogram.limit == 4.0
    assert set(np.flatnonzero(histogram.counts).tolist()) == {BINS * 3 // 8, BINS // 2}


def test_zeros_wait_for_values() -> None:
    zeros, values = np.zeros((4, 3), dtype=np.float32), normal(5, 3)
    waiting = of(zeros)
    assert (waiting.limit, waiting.largest, waiting.total) == (0.0, 0.0, 12)
    waiting.add(values)
    np.testing.assert_array_equal(waiting.counts, counted(np.concatenate([zeros, values]), waiting.limit))


def test_far_larger_values_leave_all_others_in_the_first_bin() -> None:
    histogram = of(normal(4, 4, scale=1e-20), np.full((1, 4), 1e20, dtype=np.float32))
    assert histogram.counts[0] == 16
    assert histogram.total == 20


def test_constant() -> None:
    histogram = of(np.full((5, 8), -0.7, dtype=np.float32))
    (place,) = np.flatnonzero(histogram.counts)
    assert histogram.counts[place] == 40
    assert histogram.centres[place] == pytest.approx(0.7, abs=histogram.limit / BINS)
    assert histogram.quantile(0.5) == np.float32(0.7)


def test_quantiles() -> None:
    values = normal(5000, 8)
    histogram = of(values)
    for share in (0.01, 0.5, 0.9, 0.9999):
        exact = np.quantile(np.abs(values), share, method="inverted_cdf")
        assert 0 <= histogram.quantile(share) - exact <= histogram.limit / BINS
    assert histogram.quantile(1.0) == np.abs(values).max()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(bad: float) -> None:
    values = normal(6, 4)
    values[4, 1] = bad
    with pytest.raises(CalibrationError, match="not finite"):
        of(values)


def test_no_values() -> None:
    with pytest.raises(CalibrationError, match="no values to calibrate on; record at least one row"):
        of(np.empty((0, 4), dtype=np.float32))


LARGE = """
import numpy as np
import flowturbo_trt
from flowturbo_trt.calibration.precision.histograms import Histogram

def resident(kind):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(kind)) / 2**20

ROWS, TOKENS, WIDTH, BLOCKS, CALLS = 16, 256, 1152, 28, 2
before = resident("VmRSS")
widths = (WIDTH, WIDTH, WIDTH, 4 * WIDTH)
values = {
    width: np.random.default_rng(0).standard_normal((ROWS, TOKENS, width), dtype=np.float32)
    for width in set(widths)
}
given = sum(array.nbytes for array in values.values()) / 2**30
layers = [(Histogram(), width) for _ in range(BLOCKS) for width in widths]
for call in range(CALLS):
    for histogram, width in layers:
        histogram.add(values[width])
assert all(histogram.total == CALLS * ROWS * TOKENS * width for histogram, width in layers)
print(resident("VmHWM"), resident("VmHWM") - before - given)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of a process")
def test_memory_at_the_size_of_the_largest_model() -> None:
    """Of histograms alone, without the networks: SiT-XL/2 at batch 8, guided, 112 layers, 7 GB of values."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", LARGE], cwd=root, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    peak, of_histograms = map(float, done.stdout.split())
    assert peak < 2.0
    # 112 histograms, and what is computed of a chunk of values.
    assert of_histograms < 0.15
