"""Judging whole sets: every metric through the real path, what is left out and why, what is refused."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flowturbo_trt.evaluation.metrics import frechet_distance
from flowturbo_trt.evaluation.quality import collection
from flowturbo_trt.evaluation.quality import judge as judging
from flowturbo_trt.evaluation.quality.extractor import Extractor
from flowturbo_trt.evaluation.quality.gaussian import TooFewSamplesError
from flowturbo_trt.evaluation.quality.images import ImageSetError
from flowturbo_trt.evaluation.quality.judge import (
    METRICS,
    Judgement,
    MetricError,
    judge,
    open_extractor,
    open_reference,
)
from flowturbo_trt.evaluation.quality.manifold import cover
from flowturbo_trt.evaluation.quality.reference import Reference, UnfitReferenceError
from flowturbo_trt.evaluation.quality.scores import inception_score, kernel_distance
from flowturbo_trt.tests.evaluation.quality.extractors import (
    SHARPNESS,
    features_of,
    random_images,
    spatial_of,
    write_extractor,
)

REAL = random_images(90, 0)
SAMPLES = random_images(70, 1, low=30, high=240)


def probabilities_of(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    values = np.exp(SHARPNESS * (images.astype(np.float64) / 255).mean(axis=(1, 2)))
    return (values / values.sum(axis=1, keepdims=True)).astype(np.float32)


LABELS = probabilities_of(SAMPLES).argmax(axis=1)


@pytest.fixture
def extractor(tmp_path: Path) -> Extractor:
    return open_extractor(write_extractor(tmp_path / "x.onnx"), threads=1)


@pytest.fixture
def reference(tmp_path: Path, extractor: Extractor) -> Reference:
    np.save(tmp_path / "real.npy", REAL)
    return open_reference(tmp_path / "real.npy", extractor)


def batches(images: NDArray[np.uint8], size: int = 16) -> Iterator[NDArray[np.uint8]]:
    return (images[start : start + size] for start in range(0, len(images), size))


def judged(reference: Reference, extractor: Extractor, metrics: Sequence[str] = (), **more: Any) -> Judgement:
    return judge(batches(SAMPLES), len(SAMPLES), reference, extractor, metrics, **more)


def test_every_metric(reference: Reference, extractor: Extractor) -> None:
    """The same figures as of features taken at once."""
    found = judged(reference, extractor, labels=np.append(LABELS[:-7], (LABELS[-7:] + 1) % 3))
    x, y = features_of(SAMPLES), features_of(REAL)
    coverage = cover(y, x)
    expected = {
        "fid": frechet_distance(x, y),
        "sfid": frechet_distance(spatial_of(SAMPLES), spatial_of(REAL)),
        "inception_score": inception_score(probabilities_of(SAMPLES)),
        "kid": kernel_distance(y, x),
        "precision": coverage.precision,
        "recall": coverage.recall,
        "recognised": 0.9,
    }
    assert list(found.values) == list(METRICS) == list(expected)
    assert found.values == pytest.approx(expected, rel=1e-4)
    assert (found.count, found.reference_count) == (70, 90)


def test_intervals_hold_their_figure(reference: Reference, extractor: Extractor) -> None:
    found = judged(reference, extractor, labels=LABELS)
    assert set(found.intervals) == {"fid", "sfid", "precision", "recognised"}
    for name, (low, high) in found.intervals.items():
        assert low <= found.values[name] <= high
    assert 0 <= found.intervals["fid"][0] < found.values["fid"] < found.intervals["fid"][1]


def test_no_interval_where_it_would_take_long(
    monkeypatch: pytest.MonkeyPatch, reference: Reference, extractor: Extractor
) -> None:
    monkeypatch.setattr("flowturbo_trt.evaluation.quality.measures.MOST_FEATURES", 11)
    found = judged(reference, extractor)
    assert set(found.intervals) == {"sfid", "precision"}
    monkeypatch.setattr("flowturbo_trt.evaluation.quality.measures.MOST_SAMPLES", 69)
    assert set(judged(reference, extractor).intervals) == {"precision"}


def test_only_what_was_asked_for(reference: Reference, extractor: Extractor) -> None:
    found = judged(reference, extractor, ["kid", "fid"])
    assert list(found.values) == ["fid", "kid"]


def test_warnings_say_why(reference: Reference, extractor: Extractor) -> None:
    """Few samples: biased, and with no more than there are features a singular covariance."""
    few = judge(batches(SAMPLES[:10]), 10, reference, extractor)
    notes = "\n".join(few.notes)
    assert "fid of 10 samples with 12 features each: the covariance is singular" in notes
    assert "take at least 13" in notes
    assert "fewer than 10,000 samples is biased upward" in notes
    assert "only with others of 10 samples" in notes
    assert "kid is of subsets of 10, the usual is 1000" in notes
    assert "references" not in notes
    assert judged(reference, extractor, ["recall"]).notes == ()


def test_few_references(tmp_path: Path, extractor: Extractor) -> None:
    np.save(tmp_path / "few.npy", REAL[:9])
    notes = judged(open_reference(tmp_path / "few.npy", extractor), extractor, ["fid"]).notes
    assert "fid of 9 references with 12 features each" in notes[0]


def test_enough_samples_are_no_matter(
    monkeypatch: pytest.MonkeyPatch, reference: Reference, extractor: Extractor
) -> None:
    monkeypatch.setattr(judging, "ENOUGH", 70)
    assert judged(reference, extractor, ["fid"]).notes == ()


def test_what_statistics_cannot_give(tmp_path: Path, extractor: Extractor) -> None:
    """By default left out, with the reason; asked for, an error."""
    path = tmp_path / "adm.npz"
    np.savez(path, mu=np.zeros(12), sigma=np.eye(12))
    reference = open_reference(path, extractor)
    found = judged(reference, extractor)
    assert list(found.values) == ["fid", "inception_score"]
    assert found.reference_count is None
    assert "left out: kid, precision, recall; adm.npz holds means and covariances" in "\n".join(found.notes)
    assert "left out: sfid; adm.npz has no statistics of spatial features" in "\n".join(found.notes)
    for metric in ("kid", "precision", "recall", "sfid"):
        with pytest.raises(MetricError, match=f"{metric}: adm.npz h"):
            judged(reference, extractor, ["fid", metric])


def test_what_an_extractor_cannot_give(tmp_path: Path) -> None:
    extractor = open_extractor(write_extractor(tmp_path / "y.onnx", outputs=["features"]), threads=1)
    np.save(tmp_path / "real.npy", REAL)
    reference = open_reference(tmp_path / "real.npy", extractor)
    assert list(judged(reference, extractor).values) == ["fid", "kid", "precision", "recall"]
    with pytest.raises(MetricError, match=r"inception_score: y\.onnx gives no `probabilities`"):
        judged(reference, extractor, ["inception_score"])
    with pytest.raises(MetricError, match=r"sfid: y\.onnx gives no `spatial`"):
        judged(reference, extractor, ["sfid"])
    assert "recognised, inception_score" not in "".join(judged(reference, extractor, labels=LABELS).notes)


def test_recognition_needs_labels_of_the_extractor(reference: Reference, extractor: Extractor) -> None:
    assert "recognised" not in judged(reference, extractor).values
    assert "recognised" not in "".join(judged(reference, extractor).notes)
    with pytest.raises(MetricError, match="recognised: the labels of the samples are not known"):
        judged(reference, extractor, ["recognised"])
    with pytest.raises(MetricError, match="label 3 is none of the 3 classes"):
        judged(reference, extractor, ["recognised"], labels=LABELS + 1)
    with pytest.raises(MetricError, match=r"labels of shape \(69,\) for 70 samples"):
        judged(reference, extractor, labels=LABELS[1:])
    extractor.recognises_labels = False
    found = judged(reference, extractor, labels=LABELS)
    assert "left out: recognised; the outputs of x.onnx are not in the order of labels" in found.notes[0]


def test_unknown_metric(reference: Reference, extractor: Extractor) -> None:
    with pytest.raises(MetricError, match="unknown metric 'fidd'; known are fid, sfid"):
        judged(reference, extractor, ["fidd"])


def test_statistics_of_another_dimension(reference: Reference, extractor: Extractor) -> None:
    """Found on the first batch, not after the last."""
    half = {name: replace(g, mean=g.mean[:5]) for name, g in reference.gaussians.items()}

    def one_batch() -> Iterator[NDArray[np.uint8]]:
        yield SAMPLES[:16]
        raise AssertionError("went on")

    with pytest.raises(UnfitReferenceError, match="of 5 features, the extractor gives 12"):
        judge(one_batch(), 70, replace(reference, gaussians=half), extractor)


def test_other_sizes_are_noted(tmp_path: Path, reference: Reference, extractor: Extractor) -> None:
    """An extractor that takes any size has resized them, as Inception does."""
    other = replace(reference, size=(64, 48))
    assert "the samples are 2×2, the references 64×48" in judged(other, extractor, ["recall"]).notes[0]


def test_memory_is_bounded(
    monkeypatch: pytest.MonkeyPatch, reference: Reference, extractor: Extractor
) -> None:
    """Of more images than KEPT, single vectors are those of a choice; labels follow it."""
    monkeypatch.setattr(collection, "KEPT", 40)
    found = judged(reference, extractor, labels=LABELS)
    rows = collection.kept_rows(70)
    x, y = features_of(SAMPLES[rows]), features_of(REAL)
    assert found.values["kid"] == pytest.approx(kernel_distance(y, x), rel=1e-4)
    assert found.values["recognised"] == 1
    assert found.values["fid"] == pytest.approx(frechet_distance(features_of(SAMPLES), y), rel=1e-4)
    assert "metrics of single images are of 40 of the 70 samples" in found.notes


@pytest.mark.parametrize(
    ("images", "count", "complaint"),
    [
        (SAMPLES, 71, "judging: only 70 of the 71 images announced"),
        (SAMPLES, 69, "judging: more than the 69 images announced"),
        (SAMPLES[:0], 1, "no images to judge"),
        (SAMPLES.astype(np.float32), 70, r"a batch is float32 of shape \(16, 2, 2, 3\)"),
        (SAMPLES[..., :1], 70, r"a batch is uint8 of shape \(16, 2, 2, 1\)"),
    ],
)
def test_images_that_are_not_as_announced(
    reference: Reference, extractor: Extractor, images: Any, count: int, complaint: str
) -> None:
    with pytest.raises(ImageSetError, match=complaint):
        judge(batches(images), count, reference, extractor)


def test_sizes_of_samples_agree(reference: Reference, extractor: Extractor) -> None:
    mixed = [SAMPLES[:16], random_images(16, 2, side=3)]
    with pytest.raises(ImageSetError, match="images of 3×3 among others of 2×2"):
        judge(mixed, 32, reference, extractor)


def test_one_sample(reference: Reference, extractor: Extractor) -> None:
    with pytest.raises(TooFewSamplesError, match="1 sample has no covariance"):
        judge([SAMPLES[:1]], 1, reference, extractor)
