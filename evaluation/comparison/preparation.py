"""Everything a comparison needs, found and checked before anything long starts."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flowturbo_trt.bundle.environment import cores
from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import MANIFEST, read_manifest, sha256
from flowturbo_trt.evaluation.comparison.cases import Case, distinct, find_cases, meaning
from flowturbo_trt.evaluation.comparison.errors import ComparisonError
from flowturbo_trt.evaluation.comparison.findings import Setting
from flowturbo_trt.evaluation.comparison.options import ComparisonOptions
from flowturbo_trt.evaluation.quality.extractor import Extractor
from flowturbo_trt.evaluation.quality.judge import check_metrics, choose, open_extractor, open_reference
from flowturbo_trt.evaluation.quality.reference import Reference
from flowturbo_trt.generation.identity import identity
from flowturbo_trt.generation.options import GenerationOptions, make_plan
from flowturbo_trt.generation.plan import GenerationPlan
from flowturbo_trt.runtime.backend import default_device

Progress = Callable[[str, int, int], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Judges:
    """What all images are judged by; `notes` say which metrics cannot be had."""

    extractor: Extractor
    reference: Reference
    metrics: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Preparation:
    """What is compared and by what; `plan` is that of one schedule, for `plan_of` others."""

    bundle: Path
    manifest: Manifest
    plan: GenerationPlan
    cases: tuple[Case, ...]
    truth: Case
    judges: Judges
    setting: Setting

    def plan_of(self, case: Case) -> GenerationPlan:
        return replace(self.plan, schedule=case.name, bundle=identity(self.manifest, case.name))


def prepare(options: ComparisonOptions, say: Say, progress: Progress) -> Preparation:
    """Check what was asked for, open the extractor and compute the reference's features.

    Raises ComparisonError that names all schedules which cannot run, and the errors of bundles,
    requests, extractors and references.
    """
    check_metrics(options.metrics)
    plan = _plan(options)
    manifest = read_manifest(options.bundle)
    batch = _latency_batch(manifest, options)
    texts = [*_texts(options, say), options.truth_schedule]
    *cases, truth = find_cases(manifest, texts, plan.backend, batch, is_unguided=plan.guidance == 1)
    device = options.device or default_device(plan.backend, options.provider)
    judges = _open_judges(options, plan, device, progress)
    setting = Setting(
        bundle=options.bundle.resolve().name,
        bundle_sha256=sha256(options.bundle / MANIFEST),
        backend=plan.backend,
        device=device,
        provider=plan.provider,
        threads=options.threads or cores(),
        precision=cases[0].precision,
        guidance=plan.guidance,
        count=plan.num,
        labels=str(plan.labels),
        seed=plan.seed,
        baseline=_baseline(options.baseline, cases),
        truth=truth.name,
        endpoint_count=min(options.truth_num, plan.num),
        latency_batch=batch,
        **_described(options, judges),
    )
    return Preparation(options.bundle, manifest, plan, tuple(cases), truth, judges, setting)


def _open_judges(options: ComparisonOptions, plan: GenerationPlan, device: str, progress: Progress) -> Judges:
    extractor = open_extractor(options.extractor, device, options.threads)
    # On black images, as there are no others yet: what does not fit should not show after hours.
    dimensions = extractor.dimensions(np.zeros((2, *plan.image, 3), np.uint8))
    reference = open_reference(options.reference, extractor, progress)
    reference.check(dimensions)
    labels = np.array([plan.label_of(index) for index in range(plan.num)])
    metrics, left_out = choose(options.metrics, plan.num, dimensions, reference, extractor, labels)
    return Judges(extractor, reference, tuple(metrics), tuple(left_out))


def _described(options: ComparisonOptions, judges: Judges) -> dict[str, Any]:
    return {
        "extractor": options.extractor.name,
        "extractor_sha256": judges.extractor.sha256,
        "reference": options.reference.resolve().name,
        "reference_sha256": reference_sha256(judges.reference),
        "reference_count": judges.reference.count,
        "metrics": judges.metrics,
    }


def _plan(options: ComparisonOptions) -> GenerationPlan:
    """Return the plan of the bundle's default schedule: what is wrong with it is wrong with all."""
    return make_plan(
        options.bundle,
        GenerationOptions(
            num=options.num,
            guidance=options.guidance,
            seed=options.seed,
            backend=options.backend,
            device=options.device,
            provider=options.provider,
        ),
    )


def _latency_batch(manifest: Manifest, options: ComparisonOptions) -> int:
    built = manifest.batches
    batch = max(built) if options.latency_batch is None else options.latency_batch
    if batch not in built:
        raise ComparisonError(
            f"latency batch {batch}: the bundle was built for {', '.join(map(str, built))}; take one of "
            f"these, or build it with --batch {batch}"
        )
    return batch


def _texts(options: ComparisonOptions, say: Say) -> list[str]:
    """Return the schedules to compare, each once and the baseline among them."""
    texts, repeated = distinct(options.schedules)
    for text in repeated:
        say(f"{text}: named more than once, compared once")
    if meaning(options.baseline) not in map(meaning, texts):
        say(f"{options.baseline}: compared as well, as the baseline")
        texts = [options.baseline, *texts]
    return texts


def _baseline(text: str, cases: Sequence[Case]) -> str:
    return next(case.name for case in cases if meaning(case.name) == meaning(text))


def reference_sha256(reference: Reference) -> str:
    """Return a hash of all that samples are judged against, whatever files it came from."""
    digest = hashlib.sha256()
    for name, gaussian in sorted(reference.gaussians.items()):
        digest.update(name.encode())
        for array in (gaussian.mean, gaussian.covariance):
            digest.update(array.tobytes())
    if reference.features is not None:
        digest.update(reference.features.tobytes())
    return digest.hexdigest()
