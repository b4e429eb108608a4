"""Compare schedules of one bundle: cost, latency, quality and distance from the true trajectory."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from flowturbo_trt.bundle.environment import versions
from flowturbo_trt.evaluation.comparison.cases import Case, count_operations
from flowturbo_trt.evaluation.comparison.findings import Comparison, Figure, Row, Shown
from flowturbo_trt.evaluation.comparison.finished import Finished, code_sha256
from flowturbo_trt.evaluation.comparison.preparation import Preparation, Progress, Say
from flowturbo_trt.evaluation.comparison.samples import (
    Images,
    SampleStream,
    Truth,
    endpoint_error,
    find_truth,
    make_rows,
    shown_count,
)
from flowturbo_trt.evaluation.comparison.timing import acceleration, ms_per_image, time_schedules
from flowturbo_trt.evaluation.quality.judge import judge
from flowturbo_trt.evaluation.report import machine
from flowturbo_trt.evaluation.speed.latency import Stability, Timing
from flowturbo_trt.runtime.pipeline import Pipeline


@dataclass(frozen=True)
class Judged:
    """What a schedule's images are worth, and the first of them (n,H,W,3)."""

    figures: Mapping[str, Figure]
    notes: tuple[str, ...]
    shown: Images


def compare(
    prepared: Preparation, finished: Finished, stability: Stability, say: Say, progress: Progress
) -> Comparison:
    """Generate, judge and time every schedule; what `finished` holds in these settings is taken from it.

    Latency is measured anew each time, because it means something only beside the others' of the same run.
    Raises ComparisonError, and what pipelines, extractors and metrics raise.
    """
    setting = prepared.setting
    with Pipeline.load(
        prepared.bundle,
        backend=setting.backend,
        device=setting.device,
        threads=setting.threads,
        provider=setting.provider,
    ) as pipeline:
        makes = _Making(prepared, finished, pipeline, progress)
        truth = makes.truth()
        judged = {case.name: makes.judged(case, truth) for case in prepared.cases}
        say(f"timing {len(judged)} schedules in turn, for {stability.seconds:g} s at most …")
        request = make_rows(pipeline, prepared.plan, range(setting.latency_batch))
        timings = time_schedules(pipeline, request, list(judged), stability)
    return _put_together(prepared, truth, judged, timings)


@dataclass(frozen=True)
class _Making:
    """Makes results, or takes them from an earlier run that made them in the same settings."""

    prepared: Preparation
    finished: Finished
    pipeline: Pipeline
    progress: Progress

    def truth(self) -> Truth:
        """Follow the first noises along the fine schedule."""
        prepared = self.prepared
        plan = replace(prepared.plan_of(prepared.truth), num=prepared.setting.endpoint_count)
        shown, name = _shown(prepared), f"truth {plan.schedule}"
        key = _key(plan=asdict(plan), shown=shown)
        if (found := self.finished.read(name, key)) is not None:
            return Truth(found[1]["latents"], found[1]["images"])
        place = f"the fine trajectory, {plan.schedule}"
        truth = find_truth(self.pipeline, plan, shown, lambda done: self.progress(place, done, plan.num))
        self.finished.write(name, key, {}, {"latents": truth.latents, "images": truth.images})
        return truth

    def judged(self, case: Case, truth: Truth) -> Judged:
        """Generate and judge a schedule's images."""
        key = self._key(case)
        if (found := self.finished.read(case.name, key)) is not None:
            record, arrays = found
            figures = {name: Figure.read(data) for name, data in record["figures"].items()}
            return Judged(figures, tuple(record["notes"]), arrays["shown"])
        made = self._judge(case, truth)
        described = {name: figure.describe() for name, figure in made.figures.items()}
        record = {"figures": described, "notes": list(made.notes)}
        self.finished.write(case.name, key, record, {"shown": made.shown})
        return made

    def _key(self, case: Case) -> dict[str, Any]:
        setting = self.prepared.setting
        return _key(
            plan=asdict(self.prepared.plan_of(case)),
            shown=_shown(self.prepared),
            extractor=setting.extractor_sha256,
            reference=setting.reference_sha256,
            metrics=setting.metrics,
            truth=setting.truth,
            endpoint_count=setting.endpoint_count,
        )

    def _judge(self, case: Case, truth: Truth) -> Judged:
        prepared, plan = self.prepared, self.prepared.plan_of(case)
        place = f"{case.name} ({prepared.cases.index(case) + 1} of {len(prepared.cases)})"
        stream = SampleStream(self.pipeline, plan, truth)
        found = judge(
            stream,
            plan.num,
            prepared.judges.reference,
            prepared.judges.extractor,
            prepared.setting.metrics,
            np.array([plan.label_of(index) for index in range(plan.num)]),
            lambda what, done, total: self.progress(f"{place}: {what}", done, total),
        )
        figures = {
            name: Figure.bounded(value, found.intervals.get(name)) for name, value in found.values.items()
        }
        return Judged(figures | {"endpoint_error": endpoint_error(stream.errors)}, found.notes, stream.shown)


def _key(**settings: Any) -> dict[str, Any]:
    """Return all that decides a result: on another machine or of other code it may be another."""
    return {**settings, "versions": versions(), "machine": machine(), "code": code_sha256()}


def _shown(prepared: Preparation) -> int:
    """Return how many images are shown: at most those that were followed along the fine trajectory."""
    return min(shown_count(prepared.plan), prepared.setting.endpoint_count)


def _put_together(
    prepared: Preparation, truth: Truth, judged: Mapping[str, Judged], timings: Mapping[str, Timing]
) -> Comparison:
    setting, plan = prepared.setting, prepared.plan
    operations = count_operations(prepared.manifest, prepared.cases, setting.backend, setting.latency_batch)
    baseline = timings[setting.baseline]
    rows = []
    for case in prepared.cases:
        timing, found = timings[case.name], judged[case.name]
        figures = {
            "ms_per_image": ms_per_image(timing, setting.latency_batch),
            "acceleration": acceleration(timing, baseline),
            **found.figures,
        }
        if case.name in operations.gflop:
            figures["gflop"] = Figure(operations.gflop[case.name])
        rows.append(Row(case.name, case.evaluations, figures, (*found.notes, *_steadiness(timing))))
    first = range(_shown(prepared))
    return Comparison(
        setting=setting,
        rows=tuple(rows),
        shown=Shown(
            tuple(plan.label_of(index) for index in first),
            tuple(plan.seed_of(index) for index in first),
            {name: found.shown for name, found in judged.items()},
            truth.images,
        ),
        decoder_gflop=operations.decoder_gflop,
        notes=(*prepared.judges.notes, *operations.notes),
        machine=machine(),
        versions=versions(),
        measured_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )


def _steadiness(timing: Timing) -> tuple[str, ...]:
    if timing.stable:
        return ()
    return (
        f"the latency is not known to {timing.stability.precision:.0%} after {len(timing.samples)} runs; "
        "give it more time, or quieten the machine",
    )
