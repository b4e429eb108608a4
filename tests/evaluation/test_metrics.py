"""Metrics against closed forms."""

import math

import numpy as np
import pytest

from flowturbo_trt.evaluation.metrics import (
    bootstrap_interval,
    cosine,
    frechet_distance,
    frechet_distance_to,
    gaussian_distance,
    psnr,
    relative_l2,
    row_errors,
    sampling_interval,
    share_interval,
)


def whitened(generator: np.random.Generator, rows: int, features: int) -> np.ndarray:
    """Draw rows whose sample mean is exactly 0 and whose sample covariance is exactly the identity."""
    values = generator.standard_normal((rows, features))
    values -= values.mean(axis=0)
    return np.asarray(values @ np.linalg.inv(np.linalg.cholesky(np.cov(values, rowvar=False)).T))


def test_frechet_distance_of_gaussians() -> None:
    """For covariances AAᵀ and I: ‖μ‖² + tr(AAᵀ) + K − 2 tr((AAᵀ)^½)."""
    generator = np.random.default_rng(0)
    a, b = whitened(generator, 200, 3), whitened(generator, 300, 3)
    scale = np.diag([2.0, 0.5, 1.0])
    expected = 9 + np.sum((np.diag(scale) - 1) ** 2)
    assert frechet_distance(a @ scale + [3, 0, 0], b) == pytest.approx(expected)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_to_a_known_gaussian() -> None:
    """For multiples of one covariance: ‖μ‖² + (√a − √b)² tr Σ; singular ones are no matter."""
    mix = np.random.default_rng(2).standard_normal((4, 3))
    covariance = mix @ mix.T
    expected = 4 * 0.25 + (2 - 3) ** 2 * np.trace(covariance)
    assert gaussian_distance(np.zeros(4), 4 * covariance, np.full(4, 0.5), 9 * covariance) == pytest.approx(
        expected
    )
    features = whitened(np.random.default_rng(3), 100, 3) * 2
    assert frechet_distance_to(np.ones(3), np.eye(3), features) == pytest.approx(3 + 3)
    # One feature is a case that NumPy gives no matrix for.
    assert frechet_distance(features[:, :1], features[:, :1] / 2 + 1) == pytest.approx(1 + 1)


def test_errors() -> None:
    expected = np.array([[3.0, 4.0], [0.0, 5.0]])
    assert relative_l2(expected * 1.1, expected) == pytest.approx(0.1)
    np.testing.assert_allclose(row_errors(expected * 1.1, expected), [0.5, 0.5])


def test_bootstrap_interval_of_a_mean() -> None:
    """About ± 1.96 standard errors, and mirrored: a statistic with a bias is corrected for it."""
    values = np.random.default_rng(1).standard_normal(400)
    low, high = bootstrap_interval(lambda i: float(values[i].mean()), 400)
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)
    low, high = bootstrap_interval(lambda i: len(set(i)) / 400, 400)
    assert 1 < low < high


def test_sampling_interval() -> None:
    """As wide as that of a mean, and where the statistic itself is, bias and all."""
    values = np.random.default_rng(1).standard_normal(400)
    low, high = sampling_interval(lambda i: float(values[i].mean()), 400)
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)
    # Skewed: the values far above stand for a statistic that may lie as far below.
    low, high = sampling_interval(lambda i: float(np.exp(3 * values[i]).mean()), 400)
    middle = float(np.exp(3 * values).mean())
    assert low < middle < high
    assert middle - low > high - middle
    low, high = sampling_interval(lambda i: len(set(i)) / 400, 400)
    assert low < 1 < high < 1.1


def test_share_interval() -> None:
    """Its ends are the shares p that lie just 1.96 of their own standard errors √(p(1 − p)/n) away."""
    for hits, count in ((30, 40), (1, 5), (980, 1000)):
        low, high = share_interval(hits, count)
        assert low < hits / count < high
        for p in (low, high):
            assert abs(hits / count - p) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / count))
    assert share_interval(40, 40)[0] == pytest.approx(0.9124, abs=1e-4)
    assert share_interval(40, 40)[1] == pytest.approx(1)
    assert share_interval(0, 40) == pytest.approx((0, 1 - 0.9124), abs=1e-4)


def test_cosine() -> None:
    a = np.array([1.0, 0.0], np.float32)
    assert cosine(a * 3, a) == 1
    assert cosine(np.array([1.0, 1.0]), a) == pytest.approx(math.sqrt(0.5))
    assert cosine(a * 0, a * 0) == 1
    assert cosine(a * 0, a) == 0
    assert math.isnan(cosine(a * np.nan, a))


def test_psnr() -> None:
    """One level everywhere is 20·log₁₀(255) dB."""
    levels = np.full((4, 4, 3), 7, np.uint8)
    assert psnr(levels + 1, levels) == pytest.approx(48.1308, abs=1e-4)
    assert psnr(levels, levels + 1) == psnr(levels + 1, levels)
    assert psnr(levels, levels) == math.inf
