"""SmoothQuant's scales: the same product, from operands that 8 bits hold better."""

import numpy as np
import pytest
from numpy.typing import NDArray

from flowturbo_trt.calibration.endpoints import CalibrationError
from flowturbo_trt.calibration.precision.histograms import Histogram
from flowturbo_trt.calibration.precision.ranges import round_to
from flowturbo_trt.calibration.precision.smoothing import smoothing

Array = NDArray[np.float32]
OUTLIERS = [3, 17]


def histogram_of(x: Array) -> Histogram:
    histogram = Histogram()
    histogram.add(x)
    return histogram


def layer() -> tuple[Array, Array]:
    """Activations (n,in) two channels of which are 60 times larger than the others, and weights (in,out)."""
    random = np.random.default_rng(1)
    x = random.standard_normal((400, 32)).astype(np.float32)
    x[:, OUTLIERS] *= 60
    return x, (0.1 * random.standard_normal((32, 24))).astype(np.float32)


def int8_error(x: Array, w: Array) -> float:
    """Return the relative error of x·w with a scale for x, and one for each column of w."""
    exact = x.astype(np.float64) @ w
    columns = [round_to(column, float(np.abs(column).max()), "int8") for column in w.T.astype(np.float64)]
    found = round_to(x.astype(np.float64), float(np.abs(x).max()), "int8") @ np.stack(columns, axis=1)
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.5, 1.0])
def test_scales_are_the_papers(strength: float) -> None:
    x, w = layer()
    found = smoothing(histogram_of(x), w, strength)
    expected = np.abs(x).max(axis=0) ** strength / np.abs(w).max(axis=1) ** (1 - strength)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32


def test_half_evens_out_activations_and_weights() -> None:
    """At a strength of one half, by default, both have the same maximum in every channel."""
    x, w = layer()
    s = smoothing(histogram_of(x), w)
    np.testing.assert_allclose(np.abs(x / s).max(axis=0), np.abs(w * s[:, None]).max(axis=1), rtol=1e-5)


def test_product_stays_and_its_error_falls() -> None:
    x, w = layer()
    s = smoothing(histogram_of(x), w)
    smooth_x, smooth_w = x / s, w * s[:, None]
    np.testing.assert_allclose(smooth_x @ smooth_w, x @ w, rtol=1e-3, atol=1e-3)
    others = [channel for channel in range(32) if channel not in OUTLIERS]
    # Of what the small channels give: the large ones drown it otherwise.
    w[OUTLIERS] *= 0.01
    s = smoothing(histogram_of(x), w)
    assert int8_error(x / s, w * s[:, None]) < 0.25 * int8_error(x, w)
    assert s[OUTLIERS].min() > s[others].max()


def test_zeros_are_given_usable_scales() -> None:
    """A channel that is always zero, and one that no weight reads, disturb neither range."""
    x, w = layer()
    x[:, 5], w[9] = 0.0, 0.0
    s = smoothing(histogram_of(x), w)
    assert np.isfinite(s).all()
    assert s.min() > 0
    # What calibration has not seen in such a channel is not blown up without bound.
    assert s.max() / s.min() < 1e5
    np.testing.assert_allclose((x / s) @ (w * s[:, None]), x @ w, rtol=1e-3, atol=1e-3)
    assert np.abs(x / s).max(axis=0)[9] < np.median(np.abs(x / s).max(axis=0))
    assert np.abs(w * s[:, None]).max(axis=1)[5] < np.median(np.abs(w * s[:, None]).max(axis=1))


def test_nothing_to_smooth() -> None:
    x, w = layer()
    assert (smoothing(histogram_of(0 * x), w) == 1).all()
    assert (smoothing(histogram_of(x), 0 * w) == 1).all()


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_strength_out_of_range(strength: float) -> None:
    x, w = layer()
    with pytest.raises(CalibrationError, match="expected 0 to 1"):
        smoothing(histogram_of(x), w, strength)


def test_other_layers_activations() -> None:
    x, w = layer()
    with pytest.raises(CalibrationError, match="activations have 32 channels, the layer's weights take 24"):
        smoothing(histogram_of(x), w.T)
    with pytest.raises(CalibrationError, match="no values"):
        smoothing(Histogram(), w)
