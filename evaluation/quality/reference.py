"""What samples are judged against: images, published statistics, or what `evaluate` computed before."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.evaluation.quality import arrays
from flowturbo_trt.evaluation.quality.collection import Progress, collect, silent
from flowturbo_trt.evaluation.quality.extractor import Extractor, Features
from flowturbo_trt.evaluation.quality.gaussian import Gaussian
from flowturbo_trt.evaluation.quality.images import ImageSet, open_images
from flowturbo_trt.sampling.errors import FlowTurboError

BATCH = 64
# The Gaussian of → its mean and covariance, as ADM's reference files name them.
MOMENTS = {"features": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
FEATURES = "features"
# What `save_statistics` writes beside them; the sha256 of the extractor tells its files from published ones.
VERSION = 1
_VERSION, _EXTRACTOR, _COUNT, _SIZE = "flowturbo_statistics", "extractor", "count", "size"
# Published covariances are symmetric up to their precision.
_ASYMMETRY = 1e-4


class UnfitReferenceError(FlowTurboError):
    """A reference that cannot be used, or not with this extractor."""


@dataclass(frozen=True)
class Reference:
    """Gaussians of features and spatial features, and features (M,K) of images, as far as they are known.

    `count` is how many images the Gaussians are of and `size` their (H,W), None where a file of
    statistics does not tell.
    """

    path: Path
    gaussians: Mapping[str, Gaussian]
    features: Features | None = None
    count: int | None = None
    size: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()

    @property
    def kept(self) -> int:
        """How many images there are features of."""
        return 0 if self.features is None else len(self.features)

    def check(self, dimensions: Mapping[str, int]) -> None:
        """Raise UnfitReferenceError unless it is of vectors of the lengths that an extractor gives."""
        for name, gaussian in self.gaussians.items():
            if name in dimensions and gaussian.dimension != dimensions[name]:
                raise UnfitReferenceError(
                    f"{self.path}: its statistics are of {gaussian.dimension} {name}, the extractor gives "
                    f"{dimensions[name]}; use the extractor they were made with"
                )


def open_reference(
    path: Path, extractor: Extractor, progress: Progress = silent, *, batch: int = BATCH
) -> Reference:
    """Read a reference, running the extractor over its images if it has any.

    An .npz may be ADM's: `mu`, `sigma` (and `mu_s`, `sigma_s`) of a data set, with or without images `arr_0`
    of which the features are then taken. Raises UnfitReferenceError, ImageSetError, ExtractorError.
    """
    if path.suffix != ".npz" or not path.is_file():
        return _of_images(open_images(path), extractor, progress, batch)
    there = arrays.names(path)
    if _VERSION in there:
        return _saved(path, extractor)
    published = {name: _moments(path, name) for name, (mean, _) in MOMENTS.items() if mean in there}
    if not published:
        return _of_images(open_images(path), extractor, progress, batch)
    note = "the published statistics name no extractor; they must be of this one"
    if arrays.IMAGES not in there:
        return Reference(path, published, notes=(note,))
    images = _of_images(open_images(path), extractor, progress, batch)
    reference = Reference(
        path,
        {**images.gaussians, **published},
        images.features,
        size=images.size,
        notes=(
            f"{note}; kid, precision and recall are against the {images.count} images beside them",
            *images.notes,
        ),
    )
    reference.check({name: gaussian.dimension for name, gaussian in images.gaussians.items()})
    return reference


def save_statistics(reference: Reference, extractor: Extractor, path: Path) -> None:
    """Write a reference as an .npz that `open_reference` reads at once, for the same extractor only.

    Its moments have ADM's names, so that other tools read them as well.
    """
    content: dict[str, NDArray[Any]] = {
        _VERSION: np.array(VERSION),
        _EXTRACTOR: np.array(extractor.sha256),
    }
    for name, gaussian in reference.gaussians.items():
        content |= zip(MOMENTS[name], (gaussian.mean, gaussian.covariance), strict=True)
    if reference.features is not None:
        content[FEATURES] = reference.features
    if reference.count is not None:
        content[_COUNT] = np.array(reference.count)
    if reference.size is not None:
        content[_SIZE] = np.array(reference.size)
    # Not under its name before it is whole.
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            np.savez(file, allow_pickle=False, **content)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _of_images(images: ImageSet, extractor: Extractor, progress: Progress, batch: int) -> Reference:
    found = collect(
        images.batches(batch), len(images), extractor, (FEATURES,), f"reading {images.path.name}", progress
    )
    notes: tuple[str, ...] = ()
    if len(found.rows) < found.count:
        notes = (f"kid, precision and recall are against {len(found.rows)} of the {found.count} images",)
    return Reference(images.path, found.gaussians, found.vectors[FEATURES], found.count, found.size, notes)


def _saved(path: Path, extractor: Extractor) -> Reference:
    there = arrays.names(path)
    version, made_by = arrays.load(path, _VERSION), arrays.load(path, _EXTRACTOR)
    if version.shape != () or version != VERSION:
        raise UnfitReferenceError(
            f"{path}: is of version {version}, expected {VERSION}; make it anew with --save-statistics"
        )
    if str(made_by) != extractor.sha256:
        raise UnfitReferenceError(
            f"{path}: was made with another extractor ({str(made_by)[:12]}…) than {extractor.path} "
            f"({extractor.sha256[:12]}…); make it anew with --save-statistics"
        )
    count = int(arrays.load(path, _COUNT)) if _COUNT in there else None
    gaussians = {name: _moments(path, name, count) for name, (mean, _) in MOMENTS.items() if mean in there}
    features = arrays.load(path, FEATURES) if FEATURES in there else None
    if FEATURES not in gaussians or (features is not None and not _fits(features, gaussians[FEATURES])):
        raise UnfitReferenceError(f"{path}: is incomplete; make it anew with --save-statistics")
    size = tuple(int(side) for side in arrays.load(path, _SIZE)) if _SIZE in there else None
    return Reference(path, gaussians, features, count, (size[0], size[1]) if size else None)


def _fits(features: NDArray[Any], gaussian: Gaussian) -> bool:
    return features.dtype == np.float32 and features.shape[1:] == gaussian.mean.shape


def _moments(path: Path, name: str, count: int | None = None) -> Gaussian:
    """Read a Gaussian of a file; raises UnfitReferenceError for what is none."""
    of_mean, of_covariance = MOMENTS[name]
    if of_covariance not in arrays.names(path):
        raise UnfitReferenceError(f"{path}: has {of_mean} and no {of_covariance}; expected both")
    mean, covariance = arrays.load(path, of_mean), arrays.load(path, of_covariance)
    if (
        mean.ndim != 1
        or covariance.shape != (len(mean), len(mean))
        or {mean.dtype.kind, covariance.dtype.kind} != {"f"}
    ):
        raise UnfitReferenceError(
            f"{path}: {of_mean} is {mean.dtype} {mean.shape}, {of_covariance} {covariance.dtype} "
            f"{covariance.shape}; expected floats (K) and (K,K)"
        )
    if not np.isfinite(mean).all() or not np.isfinite(covariance).all():
        raise UnfitReferenceError(f"{path}: {of_mean} or {of_covariance} holds NaN or infinite values")
    spread = np.diagonal(covariance)
    if spread.min() < 0 or np.abs(covariance - covariance.T).max() > _ASYMMETRY * spread.max():
        raise UnfitReferenceError(f"{path}: {of_covariance} is no covariance: not symmetric, or negative")
    return Gaussian(mean.astype(np.float64), covariance.astype(np.float64), count)
