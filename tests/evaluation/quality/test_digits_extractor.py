"""The committed extractor of the digits is the committed classifier."""

from pathlib import Path

import numpy as np
import pytest
import torch

from flowturbo_trt.evaluation.quality.extractor import Extractor, ExtractorError, open_extractor
from flowturbo_trt.examples.digits.classifier import load_classifier
from flowturbo_trt.examples.digits.extractor import EXTRACTOR_FILE, export_extractor
from flowturbo_trt.tests.evaluation.quality.extractors import random_images

# Strokes of all levels: what a digit's pixels are.
IMAGES = np.repeat(random_images(12, 0, side=32)[..., :1], 3, axis=3)


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return open_extractor(EXTRACTOR_FILE, threads=1)


def test_features_and_classes_are_the_classifiers(extractor: Extractor) -> None:
    classifier = load_classifier()
    outputs = extractor(IMAGES)
    np.testing.assert_allclose(outputs.features, classifier.features(IMAGES), atol=2e-5)
    pixels = torch.from_numpy(IMAGES[..., 0])[:, None].float() / 127.5 - 1
    assert outputs.probabilities is not None
    np.testing.assert_allclose(outputs.probabilities, classifier(pixels).softmax(1), atol=1e-5)
    early = classifier.body[:14](pixels)[:, :8]
    assert outputs.spatial is not None
    np.testing.assert_allclose(
        outputs.spatial, early.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean((3, 5)).flatten(1), atol=1e-5
    )


def test_takes_digits_only(extractor: Extractor) -> None:
    assert extractor.size == (32, 32)
    assert extractor.dimensions(IMAGES) == {"features": 96, "spatial": 128, "probabilities": 10}
    assert extractor(IMAGES[:1]).features.shape == (1, 96)
    with pytest.raises(ExtractorError, match="takes images of 32×32 only"):
        extractor(IMAGES[:, :28, :28])


def test_export_is_what_is_committed(extractor: Extractor, tmp_path: Path) -> None:
    """And tells nothing of the machine it was made on."""
    export_extractor(tmp_path / "again.onnx")
    again = open_extractor(tmp_path / "again.onnx", threads=1)
    np.testing.assert_allclose(again(IMAGES).features, extractor(IMAGES).features, atol=1e-5)
    content = EXTRACTOR_FILE.read_bytes()
    assert len(content) < 1_000_000
    assert b".py" not in content
