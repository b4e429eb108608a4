"""Measures of error and of distance between sets of images, with intervals."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def relative_l2(found: Array, expected: Array) -> float:
    """Return ‖found − expected‖ / ‖expected‖ in float64."""
    expected = expected.astype(np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def row_errors(found: Array, expected: Array) -> NDArray[np.float64]:
    """Return ‖found − expected‖ per row (N) of arrays (N, …)."""
    difference = found.astype(np.float64) - expected
    errors: NDArray[np.float64] = np.linalg.norm(difference.reshape(len(difference), -1), axis=1)
    return errors


def cosine(found: Array, expected: Array) -> float:
    """Return the cosine of the angle between two arrays in float64: 1 if both are zero, 0 if one is."""
    a, b = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    if norms == 0:
        return float(not a.any() and not b.any())
    return float(a @ b / norms)


def psnr(found: Array, expected: Array, peak: float = 255.0) -> float:
    """Return the peak signal-to-noise ratio in dB, 10 log₁₀(peak² / mean squared error); ∞ if equal."""
    error = float(np.mean((found.astype(np.float64) - expected) ** 2))
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)


def frechet_distance(a: Array, b: Array) -> float:
    """Return the Fréchet distance between Gaussians fitted to features (N,K) and (M,K)."""
    return frechet_distance_to(a.mean(axis=0, dtype=np.float64), _covariance(a), b)


def frechet_distance_to(mean: Array, covariance: Array, features: Array) -> float:
    """Return the Fréchet distance from a Gaussian (K), (K,K) to one fitted to features (N,K)."""
    fitted = features.mean(axis=0, dtype=np.float64), _covariance(features)
    return gaussian_distance(mean, covariance, *fitted)


def _covariance(features: Array) -> NDArray[np.float64]:
    return np.atleast_2d(np.cov(features, rowvar=False, dtype=np.float64))


def gaussian_distance(mean_a: Array, covariance_a: Array, mean_b: Array, covariance_b: Array) -> float:
    """Return the Fréchet distance between Gaussians of means (K) and covariances (K,K), in float64.

    ‖μa − μb‖² + tr(Σa + Σb − 2(Σa Σb)^½), which FID takes of Inception features (Heusel et al., 2017).
    """
    # (Σa Σb)^½ has the trace of (Σa^½ Σb Σa^½)^½, which is symmetric and so stable to decompose.
    root = _symmetric_root(covariance_a)
    cross = np.linalg.eigvalsh(root @ covariance_b @ root)
    distance = np.sum((mean_a - mean_b) ** 2) + np.trace(covariance_a) + np.trace(covariance_b)
    return float(distance - 2 * np.sqrt(np.clip(cross, 0, None)).sum())


def _symmetric_root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(matrix)
    root: NDArray[np.float64] = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return root


Statistic = Callable[[NDArray[np.int64]], float]


def bootstrap_interval(
    statistic: Statistic, rows: int, *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return a 95 % interval for a statistic of row indices (rows), from resamples with replacement.

    The basic bootstrap: the quantiles are mirrored at the estimate, so that a bias which resampling
    adds (to a Fréchet distance, say) is taken off instead of counted twice.
    """
    values = _resampled(statistic, rows, resamples, seed)
    low, high = np.percentile(values, [2.5, 97.5])
    estimate = statistic(np.arange(rows))
    return float(2 * estimate - high), float(2 * estimate - low)


def sampling_interval(
    statistic: Statistic, rows: int, *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return where a statistic of other rows, as many, would lie 95 % of the time, by resampling these.

    Its bias at that many rows stays in, as in the estimate itself: for a distance that is reported at a
    number of samples and only compared at the same.
    """
    values = _resampled(statistic, rows, resamples, seed)
    low, high = np.percentile(values, [2.5, 97.5]) - values.mean()
    estimate = statistic(np.arange(rows))
    return float(estimate - high), float(estimate - low)


def share_interval(hits: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share, hits of count (Wilson, 1927): within 0 to 1, and never a point."""
    z = 1.959964
    share, weight = hits / count, z**2 / count
    middle = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / count + weight / (4 * count)) / (1 + weight)
    # Rounding must not put a share of 0 or 1 outside of its own interval.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def _resampled(statistic: Statistic, rows: int, resamples: int, seed: int) -> NDArray[np.float64]:
    generator = np.random.default_rng(seed)
    return np.array([statistic(generator.integers(rows, size=rows)) for _ in range(resamples)])
