"""References: images, published statistics, saved ones, and what does not fit the extractor."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.evaluation.quality import collection
from flowturbo_trt.evaluation.quality.extractor import Extractor, open_extractor
from flowturbo_trt.evaluation.quality.images import ImageSetError
from flowturbo_trt.evaluation.quality.reference import (
    Reference,
    UnfitReferenceError,
    open_reference,
    save_statistics,
)
from flowturbo_trt.tests.evaluation.quality.extractors import (
    features_of,
    random_images,
    spatial_of,
    write_extractor,
)

IMAGES = random_images(60, 0)


@pytest.fixture
def extractor(tmp_path: Path) -> Extractor:
    return open_extractor(write_extractor(tmp_path / "x.onnx"), threads=1)


@pytest.fixture
def saved(tmp_path: Path, extractor: Extractor) -> Path:
    """Statistics of IMAGES, as `--save-statistics` writes them."""
    np.savez(tmp_path / "real.npz", IMAGES)
    reference = open_reference(tmp_path / "real.npz", extractor, batch=7)
    save_statistics(reference, extractor, tmp_path / "saved.npz")
    return tmp_path / "saved.npz"


def assert_of_images(reference: Reference) -> None:
    for name, expected in (("features", features_of(IMAGES)), ("spatial", spatial_of(IMAGES))):
        gaussian = reference.gaussians[name]
        np.testing.assert_allclose(gaussian.mean, expected.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(gaussian.covariance, np.cov(expected, rowvar=False), atol=1e-6)
    assert reference.features is not None
    np.testing.assert_allclose(reference.features, features_of(IMAGES), rtol=1e-6)
    assert reference.count == 60
    assert reference.size == (2, 2)


def test_images(tmp_path: Path, extractor: Extractor) -> None:
    np.save(tmp_path / "real.npy", IMAGES)
    told: list[tuple[str, int, int]] = []
    reference = open_reference(tmp_path / "real.npy", extractor, lambda *what: told.append(what), batch=25)
    assert_of_images(reference)
    assert told == [("reading real.npy", done, 60) for done in (25, 50, 60)]


def test_saved_statistics_are_the_reference(saved: Path, extractor: Extractor) -> None:
    assert_of_images(open_reference(saved, extractor))
    assert [file.name for file in saved.parent.glob(".*")] == []


def test_saved_statistics_of_another_extractor(saved: Path, tmp_path: Path) -> None:
    other = open_extractor(write_extractor(tmp_path / "y.onnx", scale=100), threads=1)
    with pytest.raises(UnfitReferenceError, match=r"saved\.npz: was made with another extractor"):
        open_reference(saved, other)


def altered(path: Path, **changes: Any) -> Path:
    """Write a copy of an .npz with some arrays other than they were; None leaves one out."""
    with np.load(path, allow_pickle=False) as arrays:
        content = {**arrays, **changes}
    copy = path.with_name("altered.npz")
    np.savez(copy, **{name: value for name, value in content.items() if value is not None})
    return copy


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"flowturbo_statistics": np.array(9)}, "is of version 9, expected 1"),
        ({"mu": None}, "is incomplete"),
        ({"features": np.zeros((60, 5), np.float32)}, "is incomplete"),
        ({"sigma": None}, "has mu and no sigma"),
        ({"sigma": np.eye(5)}, r"mu is float64 \(12,\), sigma float64 \(5, 5\)"),
        ({"mu": np.full(12, np.nan)}, "mu or sigma holds NaN"),
        ({"sigma": -np.eye(12)}, "sigma is no covariance"),
        ({"sigma": np.eye(12) + np.eye(12, k=1)}, "sigma is no covariance"),
    ],
)
def test_statistics_that_make_no_sense(
    saved: Path, extractor: Extractor, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UnfitReferenceError, match=rf"altered\.npz: .*{complaint}"):
        open_reference(altered(saved, **changes), extractor)


def test_objects_are_never_unpickled(saved: Path, extractor: Extractor) -> None:
    with pytest.raises(ImageSetError, match=r"altered\.npz: cannot be read.*allow_pickle"):
        open_reference(altered(saved, mu=np.array([{}], dtype=object)), extractor)


def test_published_statistics(tmp_path: Path, extractor: Extractor) -> None:
    """Means and covariances alone: ADM's names, nothing that tells how many images or which extractor."""
    path = tmp_path / "adm.npz"
    np.savez(path, mu=np.zeros(12), sigma=np.eye(12), mu_s=np.ones(6), sigma_s=np.eye(6) * 4)
    reference = open_reference(path, extractor)
    assert reference.features is None
    assert reference.count is None
    assert reference.size is None
    assert reference.gaussians["spatial"].mean.tolist() == [1] * 6
    assert "must be of this one" in reference.notes[0]


def test_published_statistics_with_images(tmp_path: Path, extractor: Extractor) -> None:
    """ADM's ImageNet files: moments of the whole data set, images for precision and recall."""
    path = tmp_path / "adm.npz"
    np.savez(path, arr_0=IMAGES, mu=np.zeros(12), sigma=np.eye(12))
    reference = open_reference(path, extractor)
    assert reference.gaussians["features"].mean.tolist() == [0] * 12
    np.testing.assert_allclose(
        reference.gaussians["spatial"].mean, spatial_of(IMAGES).mean(axis=0), rtol=1e-5
    )
    assert reference.features is not None
    np.testing.assert_allclose(reference.features, features_of(IMAGES), rtol=1e-6)
    assert reference.count is None
    assert "against the 60 images beside them" in reference.notes[0]


def test_published_statistics_of_another_dimension(tmp_path: Path, extractor: Extractor) -> None:
    path = tmp_path / "adm.npz"
    np.savez(path, arr_0=IMAGES, mu=np.zeros(7), sigma=np.eye(7))
    with pytest.raises(UnfitReferenceError, match="of 7 features, the extractor gives 12"):
        open_reference(path, extractor)
    np.savez(path, mu=np.zeros(12), sigma=np.eye(12), mu_s=np.zeros(7), sigma_s=np.eye(7))
    with pytest.raises(UnfitReferenceError, match="of 7 spatial, the extractor gives 6"):
        open_reference(path, extractor).check({"features": 12, "spatial": 6})


def test_features_of_many_images_are_a_choice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, extractor: Extractor
) -> None:
    """The Gaussians are of all images."""
    monkeypatch.setattr(collection, "KEPT", 20)
    np.save(tmp_path / "real.npy", IMAGES)
    reference = open_reference(tmp_path / "real.npy", extractor, batch=7)
    np.testing.assert_allclose(
        reference.gaussians["features"].mean, features_of(IMAGES).mean(axis=0), rtol=1e-5
    )
    assert reference.features is not None
    rows = collection.kept_rows(60)
    assert len(set(rows.tolist())) == 20
    np.testing.assert_allclose(reference.features, features_of(IMAGES[rows]), rtol=1e-6)
    assert reference.notes == ("kid, precision and recall are against 20 of the 60 images",)


def test_nothing_is_left_of_a_file_that_cannot_be_written(
    saved: Path, extractor: Extractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()
    reference = open_reference(saved, extractor)

    def fail(*given: object, **named: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        save_statistics(reference, extractor, saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.glob(".*")) == []
