"""Improved precision and recall: the share of one set that lies within the other's manifold."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.evaluation.quality.gaussian import TooFewSamplesError

# The paper's and ADM's.
NEIGHBOURS = 3
# Distances are computed in blocks of this many rows and columns, 32 MB each, whatever the sets' sizes.
BLOCK = 2000
# Squared distances below this share of the squared lengths are rounding: equal vectors must be at 0.
_ROUNDING = 1e-12

Features = NDArray[np.float32]
Distances = NDArray[np.float64]


@dataclass(frozen=True)
class Coverage:
    """Which samples (N) lie within the reference's manifold, which of the reference (M) in the samples'."""

    samples: NDArray[np.bool_]
    reference: NDArray[np.bool_]

    @property
    def precision(self) -> float:
        return float(self.samples.mean())

    @property
    def recall(self) -> float:
        return float(self.reference.mean())


def cover(reference: Features, samples: Features, neighbours: int = NEIGHBOURS) -> Coverage:
    """Hold samples (N,K) and reference (M,K) against each other's manifolds (Kynkäänniemi et al., 2019).

    A set's manifold is the union of balls around its points, each up to its `neighbours`-th nearest other
    point. Raises TooFewSamplesError for a set with no more points than that.
    """
    for name, points in (("samples", samples), ("reference", reference)):
        if len(points) <= neighbours:
            raise TooFewSamplesError(
                f"{len(points)} {name}: precision and recall need more than {neighbours} of each"
            )
    # Vectors far from zero would lose the digits in which they differ.
    origin = reference.mean(axis=0, dtype=np.float64)
    return Coverage(
        samples=_within(samples, reference, _radii(reference, origin, neighbours), origin),
        reference=_within(reference, samples, _radii(samples, origin, neighbours), origin),
    )


def _radii(points: Features, origin: Distances, neighbours: int) -> Distances:
    """Return the squared distance (N) from each point to its `neighbours`-th nearest other one."""
    nearest = np.full((len(points), neighbours + 1), np.inf)
    for rows, _, distances in _blocks(points, points, origin):
        candidates = np.concatenate([nearest[rows], distances], axis=1)
        # Its distance to itself is among them, the smallest.
        nearest[rows] = np.partition(candidates, neighbours, axis=1)[:, : neighbours + 1]
    radii: Distances = nearest.max(axis=1)
    return radii


def _within(points: Features, centres: Features, radii: Distances, origin: Distances) -> NDArray[np.bool_]:
    """Return which points (N) are in the ball of any centre; `radii` are squared."""
    inside = np.zeros(len(points), dtype=bool)
    for rows, columns, distances in _blocks(points, centres, origin):
        inside[rows] |= (distances <= radii[columns]).any(axis=1)
    return inside


def _blocks(a: Features, b: Features, origin: Distances) -> Iterator[tuple[slice, slice, Distances]]:
    """Yield squared distances between rows of two sets, block by block."""
    for i in range(0, len(a), BLOCK):
        rows = slice(i, min(i + BLOCK, len(a)))
        x = a[rows] - origin
        x_squared = np.einsum("ik,ik->i", x, x)[:, None]
        for j in range(0, len(b), BLOCK):
            columns = slice(j, min(j + BLOCK, len(b)))
            y = b[columns] - origin
            lengths = x_squared + np.einsum("jk,jk->j", y, y)
            distances = lengths - 2 * (x @ y.T)
            distances[distances <= _ROUNDING * lengths] = 0
            yield rows, columns, distances
