"""Gaussians fitted to features that stream by: FID and sFID are a distance between two of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.evaluation.metrics import gaussian_distance
from flowturbo_trt.sampling.errors import FlowTurboError

Matrix = NDArray[np.float64]


class TooFewSamplesError(FlowTurboError):
    """Fewer samples than a measure can be taken of."""


@dataclass(frozen=True)
class Gaussian:
    """Mean (K) and covariance (K,K) in float64, of `count` samples where that is known."""

    mean: Matrix
    covariance: Matrix
    count: int | None = None

    @property
    def dimension(self) -> int:
        return len(self.mean)

    def distance(self, other: "Gaussian") -> float:
        """Return the Fréchet distance to another Gaussian of the same dimension."""
        return gaussian_distance(self.mean, self.covariance, other.mean, other.covariance)


class StreamingGaussian:
    """Fits a Gaussian to features batch by batch, in memory of a few (K,K) matrices.

    A batch is centred at its own mean, and two sets of centred sums are merged exactly (Chan et al., 1983):
    features far from zero lose no digits, as they do in a sum of squares.
    """

    def __init__(self, dimension: int) -> None:
        self._count = 0
        self._mean: Matrix = np.zeros(dimension)
        self._scatter: Matrix = np.zeros((dimension, dimension))

    def update(self, features: NDArray[np.floating]) -> None:
        """Take a batch (B,K)."""
        values = features.astype(np.float64)
        mean = values.mean(axis=0)
        values -= mean
        count = self._count + len(values)
        step = mean - self._mean
        self._scatter += values.T @ values
        # An empty set has a mean of no meaning, and weight 0 here.
        self._scatter += np.outer(step * (self._count * len(values) / count), step)
        self._mean += step * (len(values) / count)
        self._count = count

    def fitted(self) -> Gaussian:
        """Return the Gaussian, its covariance divided by N − 1; raises TooFewSamplesError below two."""
        if self._count < 2:
            raise TooFewSamplesError(
                f"{self._count} sample has no covariance; give at least 2, and thousands for FID"
            )
        return Gaussian(self._mean.copy(), self._scatter / (self._count - 1), self._count)
