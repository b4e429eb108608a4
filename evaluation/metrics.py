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
    """Return the Fréchet distance between Gaussians fitted to features (N,K) and (M,K).

    ‖μa − μb‖² + tr(Σa + Σb − 2(Σa Σb)^½), as FID computes it on Inception features (Heusel et al., 2017).
    """
    mean_a, mean_b = a.mean(axis=0, dtype=np.float64), b.mean(axis=0, dtype=np.float64)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # (Σa Σb)^½ has the trace of (Σa^½ Σb Σa^½)^½, which is symmetric and so stable to decompose.
    root = _symmetric_root(cov_a)
    cross = np.linalg.eigvalsh(root @ cov_b @ root)
    distance = np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a) + np.trace(cov_b)
    return float(distance - 2 * np.sqrt(np.clip(cross, 0, None)).sum())


def _symmetric_root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(matrix)
    root: NDArray[np.float64] = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return root


def bootstrap_interval(
    statistic: Callable[[NDArray[np.int64]], float], rows: int, *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return a 95 % interval for a statistic of row indices (rows), from resamples with replacement.

    The basic bootstrap: the quantiles are mirrored at the estimate, so that a bias which resampling
    adds (to a Fréchet distance, say) is taken off instead of counted twice.
    """
    generator = np.random.default_rng(seed)
    values = [statistic(generator.integers(rows, size=rows)) for _ in range(resamples)]
    low, high = np.percentile(values, [2.5, 97.5])
    estimate = statistic(np.arange(rows))
    return float(2 * estimate - high), float(2 * estimate - low)
