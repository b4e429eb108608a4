"""Images of every schedule from the same noise, handed on as they are made."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.evaluation.comparison.errors import ComparisonError
from flowturbo_trt.evaluation.comparison.findings import Figure
from flowturbo_trt.evaluation.metrics import bootstrap_interval, row_errors
from flowturbo_trt.generation.plan import GenerationPlan
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.runtime.request import Request, make_request

# With fewer, a bootstrap tells little.
ROWS_FOR_INTERVAL = 20
# A page shows so many images of each schedule, fewer of larger ones: a phone should still load it.
SHOWN_IMAGES = (4, 20)
SHOWN_PIXELS = 2**19

Latents = NDArray[np.float32]
Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Truth:
    """Where fine trajectories of the first noises end: latents (N,C,H,W), and images (n,H,W,3) of fewer."""

    latents: Latents
    images: Images


class SampleStream:
    """The images of a plan, batch by batch as `generate` makes them: (B,H,W,3) uint8; iterate once.

    Kept of them: `errors` (N), the relative endpoint errors ‖x − x*‖ / ‖x*‖ of as many latents as `truth`
    has, and `shown`, as many of the first images. Raises ComparisonError for latents that are not finite.
    """

    def __init__(self, pipeline: Pipeline, plan: GenerationPlan, truth: Truth) -> None:
        self._pipeline, self._plan, self._truth = pipeline, plan, truth
        self._errors: list[NDArray[np.float64]] = []
        self._shown: list[Images] = []

    def __iter__(self) -> Iterator[Images]:
        for rows, latents, images in _generate(self._pipeline, self._plan):
            self._keep(rows, latents, images)
            yield images

    def _keep(self, rows: range, latents: Latents, images: Images) -> None:
        expected = self._truth.latents[rows.start : rows.stop]
        if len(expected):
            norms = row_errors(expected, np.zeros_like(expected))
            self._errors.append(row_errors(latents[: len(expected)], expected) / norms)
        if missing := len(self._truth.images[rows.start : rows.stop]):
            self._shown.append(images[:missing].copy())

    @property
    def errors(self) -> NDArray[np.float64]:
        return np.concatenate(self._errors)

    @property
    def shown(self) -> Images:
        return np.concatenate(self._shown)


def find_truth(
    pipeline: Pipeline, plan: GenerationPlan, shown: int, progress: Callable[[int], object]
) -> Truth:
    """Follow all noises of a plan, and keep the first `shown` images; raises ComparisonError."""
    latents: list[Latents] = []
    images: list[Images] = []
    for rows, ends, pictures in _generate(pipeline, plan):
        latents.append(ends)
        images.append(pictures[: max(0, shown - rows.start)].copy())
        progress(rows.stop)
    return Truth(np.concatenate(latents), np.concatenate(images))


def shown_count(plan: GenerationPlan) -> int:
    """Return how many images a page shows of each schedule."""
    least, most = SHOWN_IMAGES
    return min(most, max(least, SHOWN_PIXELS // (plan.image[0] * plan.image[1])), plan.num)


def endpoint_error(errors: NDArray[np.float64]) -> Figure:
    """Return the mean of relative endpoint errors (N), with its interval where there are enough."""
    mean = float(errors.mean())
    if len(errors) < ROWS_FOR_INTERVAL:
        return Figure(mean)
    return Figure(mean, bootstrap_interval(lambda rows: float(errors[rows].mean()), len(errors)))


def make_rows(pipeline: Pipeline, plan: GenerationPlan, rows: range) -> Request:
    """Return the request for some images of a plan."""
    labels, seeds = [plan.label_of(row) for row in rows], [plan.seed_of(row) for row in rows]
    return make_request(pipeline.manifest.model, {"label": labels}, seeds, plan.guidance, None)


def _generate(pipeline: Pipeline, plan: GenerationPlan) -> Iterator[tuple[range, Latents, Images]]:
    for shard in range(plan.shards):
        for rows in plan.batches(shard):
            made = pipeline.generate(make_rows(pipeline, plan, rows), plan.schedule)
            assert made.images is not None
            finite = np.isfinite(made.latents).all(axis=(1, 2, 3))
            if not finite.all():
                row = rows[int(np.argmin(finite))]
                raise ComparisonError(
                    f"{plan.schedule}: the latent of image {row} (seed {plan.seed_of(row)}) is not finite; "
                    "compare without this schedule, or look at the engines with `flowturbo_trt verify`"
                )
            yield rows, made.latents, made.images
