"""Judge images by the metrics papers report: FID, sFID, Inception Score, KID, precision and recall."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.evaluation.quality.collection import Collected, Progress, check_batch, collect, silent
from flowturbo_trt.evaluation.quality.extractor import Extractor
from flowturbo_trt.evaluation.quality.extractor import open_extractor as open_extractor
from flowturbo_trt.evaluation.quality.images import ImageSetError, Pixels
from flowturbo_trt.evaluation.quality.manifold import NEIGHBOURS
from flowturbo_trt.evaluation.quality.measures import METRICS as METRICS
from flowturbo_trt.evaluation.quality.measures import Interval, Labels, Measures, is_small
from flowturbo_trt.evaluation.quality.reference import Reference
from flowturbo_trt.evaluation.quality.reference import open_reference as open_reference
from flowturbo_trt.evaluation.quality.scores import SUBSET_SIZE, subset_size
from flowturbo_trt.sampling.errors import FlowTurboError

# All metrics that the reference, the extractor and the labels allow; what is left out is noted.
DEFAULT: tuple[str, ...] = ()
# Below it the bias of FID is larger than the differences people report.
ENOUGH = 10_000
_NEEDS_FEATURES = ("kid", "precision", "recall")
_NEEDS_PROBABILITIES = ("inception_score", "recognised")


class MetricError(FlowTurboError):
    """A metric that is not known, or that cannot be had of these samples, reference and extractor."""


@dataclass(frozen=True)
class Judgement:
    """Metrics by name (METRICS) of `count` samples, with 95 % intervals where they are affordable.

    `reference_count` is how many images the reference's statistics are of, None where it does not tell.
    """

    count: int
    reference_count: int | None
    values: Mapping[str, float]
    intervals: Mapping[str, Interval] = field(default_factory=lambda: MappingProxyType({}))
    notes: tuple[str, ...] = ()


def judge(
    batches: Iterable[Pixels],
    count: int,
    reference: Reference,
    extractor: Extractor,
    metrics: Sequence[str] = DEFAULT,
    labels: NDArray[np.integer] | None = None,
    progress: Progress = silent,
) -> Judgement:
    """Judge `count` images, given in batches (B,H,W,3) uint8, against a reference.

    `labels` (N) are the classes they were made as. A metric that is asked for and cannot be had raises
    MetricError; without any asked for it is left out with a note. Raises ImageSetError, ExtractorError,
    UnfitReferenceError, TooFewSamplesError. Memory does not grow with `count` beyond collection.KEPT images.
    """
    check_metrics(metrics)
    first, stream = _peek(batches)
    dimensions = extractor.dimensions(first)
    reference.check(dimensions)
    known = None if labels is None else _check_labels(labels, count)
    chosen, left_out = choose(metrics, count, dimensions, reference, extractor, known)
    found = collect(stream, count, extractor, _kept(chosen, count, dimensions), "judging", progress)
    measures = Measures(found, reference, known)
    values, intervals = {}, {}
    for done, name in enumerate(chosen):
        progress(f"measuring {METRICS[name].title}", done, len(chosen))
        values[name] = measures.value(name)
        if (interval := measures.interval(name)) is not None:
            intervals[name] = interval
    progress("measured", len(chosen), len(chosen))
    notes = (*reference.notes, *left_out, *warnings_of(found, reference, chosen))
    return Judgement(count, reference.count, values, intervals, notes)


def check_metrics(metrics: Sequence[str]) -> None:
    """Raise MetricError for a name that is not in METRICS."""
    for name in metrics:
        if name not in METRICS:
            raise MetricError(f"unknown metric {name!r}; known are {', '.join(METRICS)}")


def choose(
    metrics: Sequence[str],
    count: int,
    dimensions: Mapping[str, int],
    reference: Reference,
    extractor: Extractor,
    labels: Labels | None,
) -> tuple[list[str], list[str]]:
    """Return the metrics to take, in the order of METRICS, and why others are left out."""
    reasons = {
        name: reason
        for name in METRICS
        if (reason := _obstacle(name, count, dimensions, reference, extractor, labels))
    }
    for name in metrics:
        if name in reasons:
            raise MetricError(f"{name}: {reasons[name]}; leave it out, or give what it needs")
    chosen = [name for name in METRICS if name not in reasons and (not metrics or name in metrics)]
    if labels is None:
        # Nobody expects it of samples without labels.
        del reasons["recognised"]
    return chosen, [] if metrics else _left_out(reasons)


def _left_out(reasons: Mapping[str, str]) -> list[str]:
    """Say what is left out, together where the reason is the same."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return [f"left out: {', '.join(alike)}; {reason}" for reason, alike in names.items()]


def _obstacle(
    name: str,
    count: int,
    dimensions: Mapping[str, int],
    reference: Reference,
    extractor: Extractor,
    labels: Labels | None,
) -> str | None:
    """Say why a metric cannot be had, if it cannot."""
    if name == "sfid" and "spatial" not in dimensions:
        return f"{extractor.path.name} gives no `spatial` features"
    if name == "sfid" and "spatial" not in reference.gaussians:
        return f"{reference.path.name} has no statistics of spatial features (mu_s, sigma_s)"
    if name in _NEEDS_FEATURES and reference.features is None:
        return f"{reference.path.name} holds means and covariances, no features of single images"
    if name in ("precision", "recall") and min(count, reference.kept) <= NEIGHBOURS:
        return f"there are not more than {NEIGHBOURS} samples and references"
    if name in _NEEDS_PROBABILITIES and "probabilities" not in dimensions:
        return f"{extractor.path.name} gives no `probabilities`"
    if name == "recognised":
        return _labels_obstacle(dimensions["probabilities"], extractor, labels)
    return None


def _labels_obstacle(classes: int, extractor: Extractor, labels: Labels | None) -> str | None:
    if labels is None:
        return "the labels of the samples are not known"
    if not extractor.recognises_labels:
        return f"the outputs of {extractor.path.name} are not in the order of labels"
    if labels.max() >= classes or labels.min() < 0:
        odd = labels.max() if labels.max() >= classes else labels.min()
        return f"label {odd} is none of the {classes} classes of {extractor.path.name}"
    return None


def _peek(batches: Iterable[Pixels]) -> tuple[Pixels, Iterator[Pixels]]:
    """Return the first batch, checked, and all of them from the first on."""
    stream = iter(batches)
    first = next(stream, None)
    if first is None:
        raise ImageSetError("there are no images to judge")
    check_batch(first, None)
    return first, chain([first], stream)


def _check_labels(labels: NDArray[np.integer], count: int) -> Labels:
    if labels.shape != (count,):
        raise MetricError(f"labels of shape {labels.shape} for {count} samples; give one for each")
    return labels.astype(np.int64)


def _kept(chosen: Sequence[str], count: int, dimensions: Mapping[str, int]) -> set[str]:
    """Return the outputs of which single vectors are needed."""
    kept = {
        name
        for name, metric in (("features", "fid"), ("spatial", "sfid"))
        if metric in chosen and is_small(count, dimensions[name])
    }
    if any(name in chosen for name in _NEEDS_FEATURES):
        kept.add("features")
    if any(name in chosen for name in _NEEDS_PROBABILITIES):
        kept.add("probabilities")
    return kept


def warnings_of(found: Collected, reference: Reference, chosen: Sequence[str]) -> Iterator[str]:
    """Tell what makes figures less than they seem."""
    for metric, output in (("fid", "features"), ("sfid", "spatial")):
        if metric not in chosen:
            continue
        dimension = found.gaussians[output].dimension
        for side, count in (("samples", found.count), ("references", reference.count)):
            if count is not None and count <= dimension:
                yield (
                    f"{metric} of {count} {side} with {dimension} features each: the covariance is singular "
                    f"and a poor estimate; take at least {dimension + 1}"
                )
    if found.count < ENOUGH and ("fid" in chosen or "sfid" in chosen):
        yield (
            f"a Fréchet distance of fewer than {ENOUGH:,} samples is biased upward; compare this one only "
            f"with others of {found.count} samples"
        )
    features = reference.features
    if "kid" in chosen and features is not None:
        size = subset_size(found.count, len(features))
        if size < SUBSET_SIZE:
            yield f"kid is of subsets of {size}, the usual is {SUBSET_SIZE}"
    if len(found.rows) < found.count:
        yield f"metrics of single images are of {len(found.rows)} of the {found.count} samples"
    if reference.size is not None and reference.size != found.size:
        yield (
            f"the samples are {found.size[0]}×{found.size[1]}, the references {reference.size[0]}×"
            f"{reference.size[1]}; the extractor resizes both, which the metrics see as well"
        )
