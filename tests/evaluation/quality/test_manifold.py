"""Improved precision and recall: closed cases, and the definition pair by pair."""

import tracemalloc

import numpy as np
import pytest

from flowturbo_trt.evaluation.quality import manifold
from flowturbo_trt.evaluation.quality.gaussian import TooFewSamplesError
from flowturbo_trt.evaluation.quality.manifold import cover


def points(count: int, seed: int, dimension: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)


def inside_by_definition(found: np.ndarray, centres: np.ndarray, k: int) -> list[bool]:
    """Whether each point is no further from a centre than that centre's k-th nearest other centre."""
    radii = []
    for i, c in enumerate(centres):
        others = sorted(float(np.linalg.norm(c - d)) for j, d in enumerate(centres) if j != i)
        radii.append(others[k - 1])
    return [
        any(float(np.linalg.norm(p - c)) <= r for c, r in zip(centres, radii, strict=True)) for p in found
    ]


@pytest.mark.parametrize("block", [7, 40, 2000])
@pytest.mark.parametrize("k", [1, 3])
def test_is_its_definition(monkeypatch: pytest.MonkeyPatch, block: int, k: int) -> None:
    monkeypatch.setattr(manifold, "BLOCK", block)
    reference, samples = points(60, 0).astype(np.float64), points(45, 1).astype(np.float64) * 1.2 + 1
    found = cover(reference.astype(np.float32), samples.astype(np.float32), k)
    assert found.samples.tolist() == inside_by_definition(samples, reference, k)
    assert found.reference.tolist() == inside_by_definition(reference, samples, k)
    assert found.precision == pytest.approx(np.mean(found.samples))
    assert found.recall == pytest.approx(np.mean(found.reference))
    assert 0 < found.precision < 1
    assert 0 < found.recall < 1


def test_identical_sets_cover_each_other() -> None:
    found = cover(points(50, 2), points(50, 2))
    assert (found.precision, found.recall) == (1, 1)


def test_disjoint_sets_do_not_meet() -> None:
    found = cover(points(50, 3), points(50, 4) + 100)
    assert (found.precision, found.recall) == (0, 0)


def test_a_subset_is_precise_and_misses_the_rest() -> None:
    """Two clusters far apart, of which the samples know one."""
    clusters = np.concatenate([points(30, 5), points(10, 6) + 100])
    found = cover(clusters, clusters[:30])
    assert found.precision == 1
    assert found.recall == pytest.approx(30 / 40)


def test_copies_of_few_points() -> None:
    """Radii are 0 then, and equal points lie at exactly that distance: rounding must not part them."""
    few = np.repeat(points(30, 7, 97) * 50, 5, axis=0)
    found = cover(few, few[35:])
    assert found.precision == 1
    assert found.recall == pytest.approx(23 / 30)
    for rows, columns, distances in manifold._blocks(few, few, np.zeros(97)):
        equal = (few[rows, None] == few[None, columns]).all(axis=2)
        assert (distances[equal] == 0).all()
        assert (distances[~equal] > 0).all()


def test_too_few_points() -> None:
    with pytest.raises(TooFewSamplesError, match="3 samples: precision and recall need more than 3"):
        cover(points(10, 8), points(3, 9))
    with pytest.raises(TooFewSamplesError, match="3 reference"):
        cover(points(3, 8), points(10, 9))


def test_memory_is_that_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """All distances of these would take 32 MB."""
    monkeypatch.setattr(manifold, "BLOCK", 100)
    a, b = points(2000, 10, 8), points(2000, 11, 8)
    tracemalloc.start()
    try:
        cover(a, b)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2e6
