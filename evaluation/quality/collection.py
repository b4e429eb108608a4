"""One pass over images: what metrics need of them, held in bounded memory."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.evaluation.quality.extractor import Extractor, Features
from flowturbo_trt.evaluation.quality.gaussian import Gaussian, StreamingGaussian
from flowturbo_trt.evaluation.quality.images import ImageSetError, Pixels, Rows

# Told what is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]
# Vectors kept for the metrics that compare single images; of more images a random choice. 50,000 of 2048
# values are 400 MB.
KEPT = 50_000
SEED = 0


def silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Collected:
    """Of `count` images of size (H,W): Gaussians of all, by output, and vectors of the images in `rows`."""

    count: int
    size: tuple[int, int]
    rows: Rows
    gaussians: dict[str, Gaussian]
    vectors: dict[str, Features]


def collect(
    batches: Iterable[Pixels],
    count: int,
    extractor: Extractor,
    keep: Iterable[str],
    what: str,
    progress: Progress = silent,
) -> Collected:
    """Run the extractor over `count` images and keep the outputs named in `keep`, those it has.

    Raises ImageSetError if the batches are not `count` images of one size, ExtractorError, and
    TooFewSamplesError.
    """
    rows = kept_rows(count)
    kept = _Kept(rows, tuple(keep))
    fits: dict[str, StreamingGaussian] = {}
    size: tuple[int, int] | None = None
    done = 0
    for images in batches:
        check_batch(images, size)
        size = (images.shape[1], images.shape[2])
        if done + len(images) > count:
            raise ImageSetError(f"{what}: more than the {count} images announced")
        outputs = extractor(images)
        found = {name: values for name, values in vars(outputs).items() if values is not None}
        for name in ("features", "spatial"):
            if name in found:
                fits.setdefault(name, StreamingGaussian(found[name].shape[1])).update(found[name])
        kept.take(found, done)
        done += len(images)
        progress(what, done, count)
    if size is None or done < count:
        raise ImageSetError(f"{what}: only {done} of the {count} images announced")
    gaussians = {name: fit.fitted() for name, fit in fits.items()}
    return Collected(count, size, rows, gaussians, kept.vectors)


def kept_rows(count: int) -> Rows:
    """Return the indices of the images whose vectors are kept, increasing; the same for every set."""
    if count <= KEPT:
        return np.arange(count)
    return np.sort(np.random.default_rng(SEED).choice(count, KEPT, replace=False))


def check_batch(images: Pixels, size: tuple[int, int] | None) -> None:
    """Raise ImageSetError unless a batch is (B,H,W,3) uint8, and of the size (H,W) if that is given."""
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or not len(images):
        raise ImageSetError(
            f"a batch is {images.dtype} of shape {images.shape}; expected images (B,H,W,3) in uint8"
        )
    if size is not None and images.shape[1:3] != size:
        raise ImageSetError(
            f"images of {images.shape[1]}×{images.shape[2]} among others of {size[0]}×{size[1]}; all images "
            "of a set must have one size"
        )


class _Kept:
    """Vectors of chosen images, by output, in arrays made once."""

    def __init__(self, rows: Rows, names: tuple[str, ...]) -> None:
        self._rows = rows
        self._names = names
        self.vectors: dict[str, Features] = {}

    def take(self, found: dict[str, NDArray[np.float32]], start: int) -> None:
        """Keep what was chosen of a batch that begins with image `start`."""
        for name in self._names:
            if name not in found:
                continue
            values = found[name]
            first, last = np.searchsorted(self._rows, [start, start + len(values)])
            held = self.vectors.setdefault(name, np.empty((len(self._rows), values.shape[1]), np.float32))
            held[first:last] = values[self._rows[first:last] - start]
