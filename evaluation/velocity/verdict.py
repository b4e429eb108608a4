"""What a diagnosis means, in plain words."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.evaluation.metrics import bootstrap_interval
from flowturbo_trt.evaluation.velocity.description import AgeSummary, age_summaries, worth
from flowturbo_trt.evaluation.velocity.diagnosis import Diagnosis
from flowturbo_trt.evaluation.velocity.plan import Plan

Values = NDArray[np.float64]
# Resamples of fewer images hardly differ, and an interval of them says nothing.
DECIDING_IMAGES = 8


def verdict(diagnosis: Diagnosis) -> list[str]:
    """Say in a few sentences whether a refiner helps, or could."""
    plan = diagnosis.plan
    ages = age_summaries(plan, diagnosis.lags)
    sentences = [_judge_endpoints(diagnosis)] if plan.calls else []
    if not plan.refines:
        return [*sentences, *_judge_headroom(plan, ages)]
    sentences += [*_judge_ages(ages), *_judge_extrapolation(ages)]
    if diagnosis.unguided is not None:
        sentences.append(_judge_guidance(plan, ages, age_summaries(plan, diagnosis.unguided)))
    return sentences


def ranges(times: Sequence[float], holds: Sequence[bool]) -> str:
    """Name the runs of times at which something holds, e.g. `0.1–0.3, 0.8`; `never` where nowhere."""
    runs: list[list[float]] = []
    before = False
    for t, now in zip(times, holds, strict=True):
        if now and before:
            runs[-1].append(t)
        elif now:
            runs.append([t])
        before = now
    texts = (f"{run[0]:.2g}–{run[-1]:.2g}" if len(run) > 1 else f"{run[0]:.2g}" for run in runs)
    return ", ".join(texts) or "never"


def _judge_endpoints(diagnosis: Diagnosis) -> str:
    schedule, images = diagnosis.plan.schedule, len(diagnosis.plan.request)
    errors = {way.name: row for way, row in zip(diagnosis.plan.endings, diagnosis.endpoints, strict=True)}
    ceiling = _Ratio(errors["left out"], errors["perfect"])
    if "refined" not in errors:
        word = "A refiner can help" if ceiling.low > 1 else "A refiner cannot be seen to help"
        if images < DECIDING_IMAGES:
            word = f"{images} images are too few to say whether a refiner can help"
        reused = _Ratio(errors["left out"], errors["reused"])
        return (
            f"{word} {schedule}: with a perfect one it would end {ceiling} times as close to the truth as "
            f"without its R steps, with velocities reused {reused} times."
        )
    against_none = _Ratio(errors["left out"], errors["refined"])
    against_reuse = _Ratio(errors["reused"], errors["refined"])
    return (
        f"{_judge_refiner(images, against_none, against_reuse)} {schedule}: it ends {against_none} times as "
        f"close to the truth as without its R steps, {against_reuse} times as close as with velocities "
        f"reused; with a perfect refiner it would be {ceiling} times as close as without."
    )


def _judge_refiner(images: int, against_none: "_Ratio", against_reuse: "_Ratio") -> str:
    if images < DECIDING_IMAGES:
        return f"{images} images are too few to say whether the refiner helps"
    if against_none.low > 1:
        return "The refiner helps"
    if against_none.high >= 1:
        return f"{images} images do not decide whether the refiner helps"
    return "The refiner beats reuse, but its steps harm" if against_reuse.low > 1 else "The refiner harms"


def _judge_ages(ages: Sequence[AgeSummary]) -> Iterator[str]:
    """Say at which ages of the velocity the refiner helps, on the whole."""
    helps = [age.delta for age in ages if age.worth > 1]
    harms = [age.delta for age in ages if age.worth < 1]
    if helps:
        best = max(ages, key=lambda age: age.worth)
        yield (
            f"The refiner corrects velocities of age Δ = {_join(helps)} (worth more than 1: its error is "
            f"below reuse's), most at {best.delta:g}: {best.worth:.2f}."
        )
    if harms:
        worst = min(ages, key=lambda age: age.worth)
        yield (
            f"The refiner spoils velocities of age Δ = {_join(harms)}, most at {worst.delta:g}: worth "
            f"{worst.worth:.2f}."
        )


def _judge_extrapolation(ages: Sequence[AgeSummary]) -> Iterator[str]:
    beaten = [age.delta for age in ages if age.refined > age.extrapolated]
    if beaten:
        yield f"At Δ = {_join(beaten)} a line through two earlier velocities, which costs nothing, is nearer."


def _judge_headroom(plan: Plan, ages: Sequence[AgeSummary]) -> Iterator[str]:
    age = ages[plan.lags.index(plan.lag)]
    yield (
        f"At the schedule's step (Δ = {age.delta:g}) a reused velocity is off by {age.reuse:.1%}: that is "
        f"what a refiner can take away. A line through two earlier velocities, which costs nothing, is off "
        f"by {age.extrapolated:.1%}: that is what it has to beat."
    )


def _judge_guidance(plan: Plan, ages: Sequence[AgeSummary], unguided: Sequence[AgeSummary]) -> str:
    """Compare the velocities it is used on with those of the reference's training."""
    at = plan.lags.index(plan.lag)
    with_guidance, without = ages[at], unguided[at]
    return (
        f"At Δ = {with_guidance.delta:g} the refiner helps velocities guided by {plan.guidance:g} "
        f"{_when(plan, with_guidance)} (its error {with_guidance.refined:.1%}, reuse's "
        f"{with_guidance.reuse:.1%}), unguided ones, which the reference trains on, "
        f"{_when(plan, without)} ({without.refined:.1%}, {without.reuse:.1%})."
    )


def _when(plan: Plan, age: AgeSummary) -> str:
    return f"at t = {ranges(plan.times, age.helps)}" if any(age.helps) else "at no time"


def _join(deltas: Sequence[float]) -> str:
    return ", ".join(f"{delta:g}" for delta in deltas)


class _Ratio:
    """The ratio of two medians over the same images, with its central 95 %."""

    def __init__(self, above: Values, below: Values) -> None:
        def ratio(rows: NDArray[np.int64]) -> float:
            return worth(float(np.median(above[rows])), float(np.median(below[rows])))

        self.value = ratio(np.arange(len(above)))
        self.low = self.high = self.value
        if np.isfinite(self.value):
            self.low, self.high = bootstrap_interval(ratio, len(above))

    def __str__(self) -> str:
        return f"{self.value:.2f} (95 %: {self.low:.2f} to {self.high:.2f})"
