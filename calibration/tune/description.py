"""What a search has found, as JSON and as a table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from flowturbo_trt.calibration.tune.front import Budget
from flowturbo_trt.calibration.tune.preparation import Preparation
from flowturbo_trt.calibration.tune.results import Interval, Result, Tuned
from flowturbo_trt.evaluation.report import machine

NETWORKS = ("predictor", "refiner")
# Of the settings, what is told with the engines or in another way.
TOLD = ("engines", "backends", "devices", "providers", "machine")
AGAIN = "quieten the machine or give more --max-seconds, and the same command times them again"


def describe(prepared: Preparation, tuned: Tuned, budget: Budget) -> dict[str, Any]:
    """Return everything found; the winner, and what comes nearest to a budget that nothing meets."""
    winner, options = choose(tuned, budget), prepared.options
    return {
        "machine": machine(),
        "engines": {
            name: {
                "bundle": str(engines.path),
                **asdict(engines.place),
                "precision": engines.precision,
                "ms_per_evaluation": {k: 1000 * v for k, v in tuned.models[name].evaluations.items()},
                "ms_overhead": 1000 * tuned.models[name].overhead,
                "is_stable": tuned.models[name].stable,
            }
            for name, engines in prepared.engines.items()
        },
        **{name: value for name, value in prepared.settings().items() if name not in TOLD},
        "reference_engines": prepared.truest,
        "tried": len(tuned.tried),
        "latency_model_error": tuned.model_error,
        "latency_drift": tuned.drift,
        "baseline": _result(tuned.baseline, tuned),
        "own": [_result(result, tuned) for result in tuned.own],
        "front": [_result(result, tuned) for result in tuned.front],
        "dominating": [result.name for result in tuned.dominating],
        "fid_images": None if options.fid is None else options.fid.num,
        "budget": asdict(budget),
        "winner": None if winner is None else _result(winner, tuned),
        "nearest": [_result(result, tuned) for result in nearest(tuned, budget)],
    }


def choose(tuned: Tuned, budget: Budget) -> Result | None:
    """Return what a budget takes from the front; None where there is no budget, or nothing meets it."""
    return budget.choose(tuned.front, _values) if budget.is_set else None


def nearest(tuned: Tuned, budget: Budget) -> list[Result]:
    """Return what comes nearest to a budget that nothing meets, else nothing."""
    if not budget.is_set or choose(tuned, budget) is not None:
        return []
    return budget.nearest(tuned.front, _values)


def lines(prepared: Preparation, tuned: Tuned, budget: Budget) -> list[str]:
    """Lay the front out for people, and say what follows from it."""
    several, judged = len(prepared.engines) > 1, tuned.baseline.fid is not None
    rows = [_head(several=several, judged=judged)]
    rows += [
        (str(number), *_cells(result, several=several, judged=judged))
        for number, result in enumerate(tuned.front, start=1)
    ]
    if tuned.baseline not in tuned.front:
        rows.append(("", *_cells(tuned.baseline, several=several, judged=judged)))
    return [
        f"times with {prepared.batch} rows a call; errors are relative, against "
        f"{prepared.options.reference}, means of {prepared.options.held_out} held-out noises",
        "",
        *_table(rows),
        "",
        *_verdict(prepared, tuned, budget),
    ]


def _verdict(prepared: Preparation, tuned: Tuned, budget: Budget) -> list[str]:
    baseline = tuned.baseline
    text = [
        f"{len(tuned.tried)} candidates were tried. What was expected of their times is within "
        f"{tuned.model_error:.0%} of what was measured, where all took {tuned.drift:.2f} times as long."
    ]
    text += _of_times(tuned)
    if tuned.dominating:
        best = tuned.dominating[0]
        ratio, (low, high) = best.error_ratio(baseline)
        numbers = ", ".join(str(tuned.front.index(result) + 1) for result in tuned.dominating)
        text.append(
            f"{numbers}: not slower than {baseline.name}, the bundle's default, and more exact. {best.name} "
            f"has {ratio:.2f} of its error (95 %: {low:.2f} to {high:.2f}) in {best.latency.ms:.3g} ms "
            f"instead of {baseline.latency.ms:.3g}."
        )
    else:
        text.append(f"Nothing was found that is not slower than {baseline.name} and more exact.")
    if budget.is_set:
        text.append(_of_budget(prepared, tuned, budget))
    return text


def _of_times(tuned: Tuned) -> list[str]:
    """Say which times are not known well."""
    engines = [name for name, model in tuned.models.items() if not model.stable]
    schedules = [result.name for result in (*tuned.own, *tuned.found) if not result.latency.stable]
    parts = [f"the engines of {', '.join(engines)} (what is expected is by these)"] if engines else []
    parts += [f"{len(schedules)} schedules"] if schedules else []
    return [f"Not known well are the times of {' and of '.join(parts)}: {AGAIN}."] if parts else []


def _of_budget(prepared: Preparation, tuned: Tuned, budget: Budget) -> str:
    winner = choose(tuned, budget)
    if winner is None:
        near = "; ".join(map(told, nearest(tuned, budget)))
        return f"Nothing meets {budget}. Nearest: {near}."
    on = f" on {winner.candidate.engines}" if len(prepared.engines) > 1 else ""
    return f"For {budget}: {told(winner)}{on}."


def told(result: Result) -> str:
    """Return a result in a few words."""
    return f"{result.name} ({result.latency.ms:.3g} ms, error {result.error:.3g})"


def _result(result: Result, tuned: Tuned) -> dict[str, Any]:
    ratio, interval = result.error_ratio(tuned.baseline)
    return {
        "schedule": result.name,
        "engines": result.candidate.engines,
        "evaluations": dict(result.evaluations),
        "ms_per_image": result.latency.ms,
        "ms_interval": _plain(result.latency.interval),
        "is_stable": result.latency.stable,
        "expected_ms": result.expected_ms,
        "error": result.error,
        "error_interval": _plain(result.error_interval),
        "error_of_baseline": ratio,
        "error_of_baseline_interval": _plain(interval),
        "fid": result.fid,
    }


def _plain(interval: Interval) -> list[float | None]:
    return [end if math.isfinite(end) else None for end in interval]


def _head(*, several: bool, judged: bool) -> tuple[str, ...]:
    optional = [name for name, shown in (("FID", judged), ("engines", several)) if shown]
    return ("", "ms/image", "expected", "error", "95 %", *NETWORKS, *optional, "schedule")


def _cells(result: Result, *, several: bool, judged: bool) -> tuple[str, ...]:
    low, high = result.error_interval
    counts: Mapping[str, int] = result.evaluations
    return (
        f"{result.latency.ms:.3g}",
        f"{result.expected_ms:.3g}",
        f"{result.error:.4f}",
        f"{low:.4f}–{high:.4f}",
        *(str(counts.get(network, 0)) for network in NETWORKS),
        *([f"{result.fid:.3f}"] if judged and result.fid is not None else []),
        *([result.candidate.engines] if several else []),
        result.name,
    )


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lay rows out in columns, the last of which is as long as it is."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([*(cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False)), row[-1]])
        for row in rows
    ]


def _values(result: Result) -> tuple[float, float]:
    return result.values
