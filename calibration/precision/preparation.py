"""What is settled before anything is recorded: every mistake that can be seen by then is told by then."""

from dataclasses import dataclass

import numpy as np

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.endpoints import CalibrationError, make_rows
from flowturbo_trt.calibration.precision.groups import Macs, find_candidates
from flowturbo_trt.calibration.precision.options import PrecisionOptions
from flowturbo_trt.calibration.precision.trials import check_reference
from flowturbo_trt.calibration.recording.call_sites import find_sites
from flowturbo_trt.evaluation.quality.extractor import Extractor
from flowturbo_trt.runtime.programs import choose_variant
from flowturbo_trt.runtime.request import Request
from flowturbo_trt.sampling.noise import MAX_SEED

# Fewer images have no covariance.
LEAST_EXTRACTED = 2


@dataclass(frozen=True)
class Prepared:
    """What is calibrated: schedules by their own text, and candidate layers with their products by graph.

    `judged` are the rows that the gate compares, none of them recorded.
    """

    schedules: tuple[str, ...]
    candidates: Macs
    judged: Request


def prepare(view: Bundle, options: PrecisionOptions, extractor: Extractor | None) -> Prepared:
    """Look at everything that is asked for; `view` has the float32 graphs as engines.

    Raises CalibrationError, ScheduleError, RequestError and ExtractorError.
    """
    manifest = view.manifest
    texts = options.schedules or (manifest.default_schedule,)
    schedules = tuple(dict.fromkeys(str(manifest.schedule(text)) for text in texts))
    judged_rows = options.gate.judged_rows(recognised=extractor is not None)
    _check_seed(options, judged_rows)
    recorded = make_rows(manifest, options.rows, options.seed, options.guidance)
    judged = make_rows(manifest, judged_rows, options.seed + options.rows, options.guidance)
    _check_scales(options, recorded, judged)
    variant = choose_variant(manifest, is_unguided=recorded.is_unguided)
    sites = find_sites(manifest, schedules, variant)
    candidates = find_candidates(view, sites, options.networks, options.layers)
    if options.budget_error is None:
        check_reference(manifest, schedules, options.reference)
    if extractor is not None:
        _try_extractor(extractor, manifest, judged_rows)
    return Prepared(schedules, candidates, judged)


def class_notes(manifest: Manifest, rows: int) -> tuple[str, ...]:
    """Say of which conditions recorded rows see some values only."""
    return tuple(
        f"{rows} of {size} values of {condition.name} were recorded, spread over all; --rows {size} records "
        "each"
        for condition in manifest.model.conditions
        if (size := condition.maximum - condition.minimum + 1) > rows
    )


def _check_seed(options: PrecisionOptions, judged_rows: int) -> None:
    most = MAX_SEED + 1 - options.rows - judged_rows
    if not 0 <= options.seed <= most:
        raise CalibrationError(
            f"seed {options.seed}: {options.rows} recorded and {judged_rows} judged rows count up from it; "
            f"expected 0 to {most}"
        )


def _check_scales(options: PrecisionOptions, recorded: Request, judged: Request) -> None:
    """Raise CalibrationError where rows are too few to have all guidance scales."""
    scales = {float(np.float32(scale)) for scale in options.guidance}
    found = {
        "--rows": set(recorded.guidance.tolist()),
        "--trial-rows": sorted(scales)[: options.trial_rows],
        "--judged-rows": set(judged.guidance.tolist()),
    }
    for option, seen in found.items():
        if missing := scales.difference(seen):
            raise CalibrationError(
                f"guidance {max(missing):g}: too few rows to have it among {len(scales)} scales; raise "
                f"{option}"
            )


def _try_extractor(extractor: Extractor, manifest: Manifest, judged_rows: int) -> None:
    """Run an extractor on blank images, as large as the bundle's."""
    if manifest.model.image is None:
        raise CalibrationError(
            f"{extractor.path}: there are no images to look at, the bundle has no decoder; build it with "
            "--decoder, or leave the extractor out"
        )
    if judged_rows < LEAST_EXTRACTED:
        raise CalibrationError(
            f"{judged_rows} judged rows: a Fréchet distance needs {LEAST_EXTRACTED}; raise --judged-rows, or "
            "leave the extractor out"
        )
    extractor(np.zeros((LEAST_EXTRACTED, *manifest.model.image, 3), dtype=np.uint8))
