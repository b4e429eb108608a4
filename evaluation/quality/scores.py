"""Metrics that torchmetrics has, on features and probabilities at hand: KID and the Inception Score."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

# The paper's (Bińkowski et al., 2018); fewer samples than that make smaller subsets.
SUBSETS = 100
SUBSET_SIZE = 1000
# ADM's and the original's: the score is the mean over splits of this many.
SPLIT_SIZE = 5000
SEED = 0
# A probability of 0 has no logarithm; this one counts for nothing.
_SMALLEST = 1e-300

Features = NDArray[np.float32]


def subset_size(*counts: int) -> int:
    """Return the size of KID's subsets for sets of these sizes."""
    return min(SUBSET_SIZE, *counts)


def kernel_distance(reference: Features, samples: Features) -> float:
    """Return KID: the mean over random subsets of the unbiased squared MMD with the kernel (x·y/K + 1)³.

    `reference` is (M,K), `samples` (N,K); both have at least two rows.
    """
    size = subset_size(len(reference), len(samples))
    generator = np.random.default_rng(SEED)
    values = []
    with _quiet_and_seeded():
        # One subset at a time: the metric's own subsets need all features in memory once more.
        metric = KernelInceptionDistance(feature=nn.Identity(), subsets=1, subset_size=size)
        for _ in range(SUBSETS):
            metric.reset()
            for features, real in ((reference, True), (samples, False)):
                rows = generator.choice(len(features), size, replace=False)
                metric.update(torch.from_numpy(features[rows].astype(np.float64)), real=real)
            values.append(float(metric.compute()[0]))
    return float(np.mean(values))


def inception_score(probabilities: Features) -> float:
    """Return exp of the mean KL divergence of probabilities (N,C) from their mean (Salimans et al., 2016).

    In random order, so that samples sorted by class are no worse; the mean over splits of about 5,000.
    """
    order = np.random.default_rng(SEED).permutation(len(probabilities))
    splits = np.array_split(order, -(-len(probabilities) // SPLIT_SIZE))
    values = []
    with _quiet_and_seeded():
        # One split at a time: in float64 all of 50,000 × 1008 would take gigabytes.
        metric = InceptionScore(feature=nn.Identity(), splits=1)
        for rows in splits:
            metric.reset()
            # It takes logits, and log p is one that softmax turns into p.
            chosen = torch.from_numpy(probabilities[rows].astype(np.float64))
            metric.update(chosen.clamp(min=_SMALLEST).log())
            values.append(float(metric.compute()[0]))
    return float(np.mean(values))


@contextmanager
def _quiet_and_seeded() -> Iterator[None]:
    """Seed torch's generator for what torchmetrics draws, and leave the caller's as it was."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(SEED)
        # That features are held in memory, and that a single split has no deviation, is known.
        warnings.filterwarnings("ignore", message=".*will save all extracted features in buffer.*")
        warnings.filterwarnings("ignore", message=".*degrees of freedom is <= 0.*")
        yield
