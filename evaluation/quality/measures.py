"""The metrics by name, and how each is taken of what one pass over the samples left."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.evaluation.metrics import frechet_distance_to, sampling_interval, share_interval
from flowturbo_trt.evaluation.quality.collection import Collected
from flowturbo_trt.evaluation.quality.extractor import Features
from flowturbo_trt.evaluation.quality.manifold import Coverage, cover
from flowturbo_trt.evaluation.quality.reference import Reference
from flowturbo_trt.evaluation.quality.scores import inception_score, kernel_distance

Interval = tuple[float, float]
Labels = NDArray[np.int64]

# A Fréchet distance is bootstrapped up to this many samples of so many features: a minute's work at most.
MOST_SAMPLES = 5000
MOST_FEATURES = 256
RESAMPLES = 200


@dataclass(frozen=True)
class Metric:
    """A metric's short name for tables, what it is, and whether lower or higher is better."""

    title: str
    description: str
    better: Literal["lower", "higher"]


METRICS = {
    "fid": Metric("FID", "Fréchet distance between Gaussians fitted to the features", "lower"),
    "sfid": Metric("sFID", "the same of spatial features, which are not averaged over the image", "lower"),
    "inception_score": Metric(
        "IS", "how sure the extractor is of each sample's class, and how various the classes are", "higher"
    ),
    "kid": Metric("KID", "squared distance of features under a cubic kernel, without bias", "lower"),
    "precision": Metric("precision", "share of samples within the reference's manifold, k = 3", "higher"),
    "recall": Metric("recall", "share of the reference within the samples' manifold, k = 3", "higher"),
    "recognised": Metric("recognised", "share of samples whose most probable class is their label", "higher"),
}


class Measures:
    """Takes metrics of collected samples against a reference that has what they need."""

    def __init__(self, found: Collected, reference: Reference, labels: Labels | None) -> None:
        self._found = found
        self._reference = reference
        self._labels = labels

    def value(self, name: str) -> float:
        """Return a metric by its name in METRICS."""
        take: dict[str, Callable[[], float]] = {
            "fid": lambda: self._distance("features"),
            "sfid": lambda: self._distance("spatial"),
            "inception_score": lambda: inception_score(self._found.vectors["probabilities"]),
            "kid": lambda: kernel_distance(self._reference_features, self._found.vectors["features"]),
            "precision": lambda: self._coverage.precision,
            "recall": lambda: self._coverage.recall,
            "recognised": lambda: float(self._recognised.mean()),
        }
        return take[name]()

    def interval(self, name: str) -> Interval | None:
        """Return the central 95 % over other samples, None where that is unknown or too much work.

        That of a Fréchet distance is where distances of as many other samples would lie, bias and all;
        close to 0 it is about twice as wide as it need be, for resampling adds to a distance.
        """
        take: dict[str, Callable[[], Interval | None]] = {
            "fid": lambda: self._distance_interval("features"),
            "sfid": lambda: self._distance_interval("spatial"),
            "precision": lambda: _share_interval(self._coverage.samples),
            "recognised": lambda: _share_interval(self._recognised),
        }
        return take[name]() if name in take else None

    @property
    def _reference_features(self) -> Features:
        assert self._reference.features is not None
        return self._reference.features

    @cached_property
    def _coverage(self) -> Coverage:
        return cover(self._reference_features, self._found.vectors["features"])

    @cached_property
    def _recognised(self) -> NDArray[np.bool_]:
        assert self._labels is not None
        found: NDArray[np.bool_] = (
            self._found.vectors["probabilities"].argmax(axis=1) == self._labels[self._found.rows]
        )
        return found

    def _distance(self, output: str) -> float:
        return self._found.gaussians[output].distance(self._reference.gaussians[output])

    def _distance_interval(self, output: str) -> Interval | None:
        if not is_small(self._found.count, self._found.gaussians[output].dimension):
            return None
        reference = self._reference.gaussians[output]
        vectors = self._found.vectors[output]

        def distance(rows: NDArray[np.int64]) -> float:
            return frechet_distance_to(reference.mean, reference.covariance, vectors[rows])

        low, high = sampling_interval(distance, len(vectors), resamples=RESAMPLES)
        return max(0.0, low), high


def is_small(count: int, dimension: int) -> bool:
    """Whether a Fréchet distance of this size is bootstrapped."""
    return count <= MOST_SAMPLES and dimension <= MOST_FEATURES


def _share_interval(hits: NDArray[np.bool_]) -> Interval:
    return share_interval(int(hits.sum()), len(hits))
