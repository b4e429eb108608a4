"""FID of schedules, where an extractor and reference images are given."""

import math
from collections.abc import Callable, Iterator

import numpy as np

from flowturbo_trt.bundle.store import sha256
from flowturbo_trt.calibration.endpoints import Progress, make_rows
from flowturbo_trt.calibration.tune.candidates import Candidate
from flowturbo_trt.calibration.tune.errors import TuneError
from flowturbo_trt.calibration.tune.journal import Journal
from flowturbo_trt.calibration.tune.options import FidOptions
from flowturbo_trt.calibration.tune.preparation import Preparation
from flowturbo_trt.calibration.tune.trials import part_of
from flowturbo_trt.evaluation.comparison.preparation import reference_sha256
from flowturbo_trt.evaluation.quality.collection import collect
from flowturbo_trt.evaluation.quality.images import Pixels
from flowturbo_trt.evaluation.quality.judge import open_extractor, open_reference
from flowturbo_trt.evaluation.quality.measures import Measures

METRIC = "fid"


def open_judge(prepared: Preparation, journal: Journal, progress: Progress) -> Callable[[Candidate], float]:
    """Return what gives a candidate's FID; everything that can be wrong with it is raised here.

    Raises TuneError without a decoder, ExtractorError, ImageSetError, UnfitReferenceError. A FID that is not
    finite raises TuneError when it is asked for.
    """
    options, engines = prepared.options.fid, prepared.engines[prepared.main]
    assert options is not None
    main = engines.pipeline.manifest
    if main.model.image is None:
        raise TuneError("FID is of images, and the bundle has no decoder; build it with --decoder")
    extractor = open_extractor(options.extractor, engines.place.device, prepared.options.threads)
    reference = open_reference(options.reference, extractor, progress)
    reference.check(extractor.dimensions(np.zeros((2, *main.model.image, 3), np.uint8)))
    hashes = sha256(options.extractor), reference_sha256(reference)
    request = make_rows(main, options.num, prepared.options.seed, prepared.options.guidance)

    def batches(candidate: Candidate) -> Iterator[Pixels]:
        pipeline = prepared.pipelines[candidate.engines]
        step = max(pipeline.manifest.batches)
        for start in range(0, options.num, step):
            images = pipeline.generate(
                part_of(request, slice(start, start + step)), candidate.schedule
            ).images
            assert images is not None
            yield images

    def fid(candidate: Candidate) -> float:
        key = (METRIC, *candidate.key, options.num, *hashes)
        value: float | None = journal.get(key)
        if value is None:
            # Without an interval, which takes far longer: what is compared has the same noises.
            found = collect(
                batches(candidate),
                options.num,
                extractor,
                set(),
                f"judging {candidate.schedule}",
                progress,
            )
            value = _finite(Measures(found, reference, None), candidate, options)
            journal.put(key, value)
        return value

    return fid


def _finite(measures: Measures, candidate: Candidate, options: FidOptions) -> float:
    """Return FID; raises TuneError where it is not finite."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            value = measures.value(METRIC)
    except np.linalg.LinAlgError:
        value = math.nan
    if not math.isfinite(value):
        raise TuneError(
            f"{candidate.schedule}: its FID against {options.reference} is {value}; look at the sizes of the "
            f"features of {options.extractor} and of the reference's statistics, or leave FID out"
        )
    return value
