"""Streaming Gaussians against NumPy, and the Fréchet distance against torchmetrics and closed forms."""

import tracemalloc

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from flowturbo_trt.evaluation.quality.gaussian import Gaussian, StreamingGaussian, TooFewSamplesError


def stream(features: np.ndarray, *sizes: int) -> Gaussian:
    """Fit features in batches of the given sizes, the rest in one."""
    fit = StreamingGaussian(features.shape[1])
    for part in np.split(features, np.cumsum(sizes)):
        if len(part):
            fit.update(part)
    return fit.fitted()


@pytest.mark.parametrize("sizes", [(), (1,), (1, 1, 1), (7, 100, 3), (199,)])
def test_streaming_is_exact(sizes: tuple[int, ...]) -> None:
    features = np.random.default_rng(0).standard_normal((200, 5)).astype(np.float32) @ np.triu(
        np.ones((5, 5))
    )
    fitted = stream(features, *sizes)
    assert fitted.count == 200
    np.testing.assert_allclose(fitted.mean, features.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(fitted.covariance, np.cov(features, rowvar=False), rtol=1e-12, atol=1e-12)


def test_far_from_zero() -> None:
    """Where a sum of squares has no digits left for the variance."""
    noise = np.random.default_rng(1).standard_normal((1000, 3))
    fitted = stream(noise + 1e8, *[100] * 9)
    np.testing.assert_allclose(fitted.covariance, np.cov(noise, rowvar=False), atol=1e-6)


def test_one_sample_has_no_covariance() -> None:
    with pytest.raises(TooFewSamplesError, match="1 sample has no covariance"):
        stream(np.zeros((1, 3)))


def test_memory_does_not_grow_with_samples() -> None:
    """A few matrices (K,K) and the batch: of 50,000 × 2048 that is some 200 MB."""
    matrix = 256 * 256 * 8

    def peak(batches: int) -> int:
        features = np.random.default_rng(2).standard_normal((64, 256)).astype(np.float32)
        tracemalloc.start()
        try:
            fit = StreamingGaussian(256)
            for _ in range(batches):
                fit.update(features)
            fit.fitted()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(200) <= peak(2) + 4096
    assert peak(200) < 6 * matrix


def test_distance_of_commuting_covariances() -> None:
    """With common axes it is ‖μa − μb‖² + Σ (√λa − √λb)²."""
    axes, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((6, 6)))
    a, b = np.array([1.0, 4, 9, 0, 2, 1]), np.array([4.0, 4, 0, 1, 2, 16])
    means = np.arange(6.0), np.ones(6)
    left, right = (Gaussian(m, (axes * v) @ axes.T) for m, v in zip(means, (a, b), strict=True))
    expected = np.sum((means[0] - means[1]) ** 2) + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    assert left.distance(right) == pytest.approx(expected)
    assert right.distance(left) == pytest.approx(expected)
    assert left.distance(left) == pytest.approx(0, abs=1e-7)


class Given(nn.Module):
    """Features instead of images."""

    num_features = 4

    def forward(self, features: Tensor) -> Tensor:
        return features


def test_distance_is_that_of_torchmetrics() -> None:
    generator = np.random.default_rng(4)
    mix = generator.standard_normal((4, 4))
    a, b = generator.standard_normal((300, 4)) @ mix, generator.standard_normal((200, 4)) + 0.5
    metric = FrechetInceptionDistance(feature=Given()).set_dtype(torch.float64)
    metric.update(torch.from_numpy(a), real=True)
    metric.update(torch.from_numpy(b), real=False)
    assert stream(a, 120).distance(stream(b, 50)) == pytest.approx(float(metric.compute()), rel=1e-9)
