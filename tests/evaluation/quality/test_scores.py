"""KID and the Inception Score against their definitions, and against what is known of them."""

import numpy as np
import pytest
import torch

from flowturbo_trt.evaluation.quality import scores
from flowturbo_trt.evaluation.quality.scores import inception_score, kernel_distance, subset_size


def kid_by_definition(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimator of MMD² (Gretton et al., 2012, eq. 3), pair by pair."""

    def mean_kernel(a: np.ndarray, b: np.ndarray, *, same: bool) -> float:
        values = [
            (float(p @ q) / len(p) + 1) ** 3
            for i, p in enumerate(a)
            for j, q in enumerate(b)
            if not (same and i == j)
        ]
        return float(np.mean(values))

    return mean_kernel(x, x, same=True) + mean_kernel(y, y, same=True) - 2 * mean_kernel(x, y, same=False)


def test_kid_is_its_definition() -> None:
    """With as many samples as a subset takes, every subset is all of them."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((30, 4)).astype(np.float32)
    y = (generator.standard_normal((30, 4)) * 1.5 + 0.3).astype(np.float32)
    assert kernel_distance(x, y) == pytest.approx(
        kid_by_definition(x.astype(np.float64), y.astype(np.float64)), rel=1e-9
    )


def test_kid_of_constant_sets() -> None:
    """All x = 0 and all y = c·1: 1 + (c² + 1)³ − 2."""
    x, y = np.zeros((9, 5), np.float32), np.full((12, 5), 2, np.float32)
    assert kernel_distance(x, y) == pytest.approx(124)
    assert kernel_distance(y, x) == pytest.approx(124)
    assert kernel_distance(y, y[:5]) == pytest.approx(0, abs=1e-9)


def test_kid_of_subsets_has_no_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two halves of one set lie at 0 within the spread of subsets; other subsets, the same figure again."""
    monkeypatch.setattr(scores, "SUBSET_SIZE", 50)
    values = np.random.default_rng(1).standard_normal((800, 3)).astype(np.float32)
    found = kernel_distance(values[:400], values[400:])
    assert abs(found) < 0.05
    assert found == kernel_distance(values[:400], values[400:])
    assert kernel_distance(values[:400], values[400:] + 1) > 1
    assert subset_size(400, 20) == 20
    assert subset_size(400, 200) == 50


def test_inception_score_of_known_predictions() -> None:
    """Sure and balanced: the number of classes. Unsure, or always the same: 1."""
    balanced = np.eye(7, dtype=np.float32)[np.arange(70) % 7]
    assert inception_score(balanced) == pytest.approx(7)
    assert inception_score(np.full((20, 7), 1 / 7, np.float32)) == pytest.approx(1)
    assert inception_score(balanced[:1].repeat(20, axis=0)) == pytest.approx(1)


def test_inception_score_is_its_definition() -> None:
    p = np.random.default_rng(2).dirichlet([0.3] * 5, size=400).astype(np.float32)
    q = p.astype(np.float64)
    expected = np.exp(np.mean(np.sum(q * (np.log(q + 1e-300) - np.log(q.mean(axis=0))), axis=1)))
    assert inception_score(p) == pytest.approx(expected, rel=1e-5)


def test_inception_score_of_splits_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorted by class, a split would hold one class and score 1."""
    monkeypatch.setattr(scores, "SPLIT_SIZE", 100)
    ordered = np.eye(2, dtype=np.float32)[np.arange(400) // 200]
    assert inception_score(ordered) > 1.9
    # Splits of finite size are a little unbalanced, which only one split of all is not.
    assert inception_score(ordered) < 2


def test_the_callers_random_numbers_stay_theirs() -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    kernel_distance(np.zeros((5, 2), np.float32), np.ones((5, 2), np.float32))
    inception_score(np.full((5, 2), 0.5, np.float32))
    assert torch.equal(torch.rand(1), expected)


def test_no_warnings(recwarn: pytest.WarningsRecorder) -> None:
    kernel_distance(np.zeros((5, 2), np.float32), np.ones((5, 2), np.float32))
    inception_score(np.full((5, 2), 0.5, np.float32))
    assert not recwarn.list
