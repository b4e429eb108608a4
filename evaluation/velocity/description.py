"""A diagnosis in figures: quartiles over images, as JSON data."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.evaluation.velocity.diagnosis import Diagnosis
from flowturbo_trt.evaluation.velocity.plan import Plan
from flowturbo_trt.evaluation.velocity.worth import LagErrors

Values = NDArray[np.float64]
QUARTILES = {"low": 0.25, "median": 0.5, "high": 0.75}


def quartiles(values: Values) -> dict[str, Values]:
    """Return the quartiles (…) over images of values (…,N), NaN where they are not finite."""
    # Between two infinite values (changes of a velocity from zero) there is nothing to interpolate.
    with np.errstate(invalid="ignore"):
        levels = np.quantile(values, list(QUARTILES.values()), axis=-1)
    return dict(zip(QUARTILES, levels, strict=True))


def worth(reuse: float, refined: float) -> float:
    """Return what a refiner is worth, reuse / refined: above 1 it helps, below it harms; ∞ without error."""
    if refined == 0:
        return 1.0 if reuse == 0 else float("inf")
    return reuse / refined


def worths(reuse: Values, refined: Values) -> Values:
    """Return the worth (…) of median errors over images, of errors (…,N)."""
    pairs = zip(np.median(reuse, axis=-1).flat, np.median(refined, axis=-1).flat, strict=True)
    return np.array([worth(*pair) for pair in pairs]).reshape(reuse.shape[:-1])


@dataclass(frozen=True)
class AgeSummary:
    """Errors of velocities of one age: medians over images and the times at which all can be had.

    `extrapolated` is NaN where no two velocities are old enough, `refined` and `worth` without a refiner;
    `helps` (T) tells at which times the refiner's median error is below reuse's.
    """

    delta: float
    reuse: float
    extrapolated: float
    refined: float
    worth: float
    helps: tuple[bool, ...]


def age_summaries(plan: Plan, errors: LagErrors) -> list[AgeSummary]:
    """Sum up each age of a plan."""
    refined = np.full_like(errors.reuse, np.nan) if errors.refined is None else errors.refined
    helps = np.median(refined, axis=-1) < np.median(errors.reuse, axis=-1)
    summaries = []
    for column, delta in enumerate(plan.deltas):
        defined = ~np.isnan(errors.extrapolated[:, column, 0])
        rows = defined if defined.any() else ~np.isnan(errors.reuse[:, column, 0])
        medians = [
            float(np.median(values[rows, column])) for values in (errors.reuse, errors.extrapolated, refined)
        ]
        reuse, extrapolated, by_refiner = medians
        summaries.append(
            AgeSummary(
                delta,
                reuse,
                extrapolated,
                by_refiner,
                worth(reuse, by_refiner),
                tuple(helps[:, column].tolist()),
            )
        )
    return summaries


def describe(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return all figures: numbers of six digits, null for what is not defined or has no bound."""
    plan, measured = diagnosis.plan, diagnosis.in_schedule
    in_schedule = [
        asdict(call) | _errors({"reuse": reuse, "refined": refined if plan.refines else None})
        for call, reuse, refined in zip(plan.calls, measured.reuse, measured.refined, strict=True)
    ]
    document = {
        "schedule": str(plan.schedule),
        "guidance": plan.guidance,
        "images": len(plan.request),
        "seeds": [plan.request.seeds[0], plan.request.seeds[-1]],
        "truth": f"H{plan.steps}",
        "refiner": plan.refines,
        "times": plan.times,
        "curvature": _curvature(diagnosis),
        "ages": _ages(plan, diagnosis.lags),
        "ages_unguided": diagnosis.unguided and _ages(plan, diagnosis.unguided),
        "in_schedule": in_schedule,
        "endpoints": _endpoints(diagnosis),
    }
    plain: dict[str, Any] = _plain(document)
    return plain


def _curvature(diagnosis: Diagnosis) -> dict[str, Any]:
    found = diagnosis.curvature
    names = ("velocity", "noise", "data")
    return {
        "relative_change": {name: quartiles(getattr(found, name)) for name in names},
        "cosine": quartiles(found.cosine),
        "straightness": quartiles(found.straightness),
        "mean_straightness": found.mean_straightness,
    }


def _ages(plan: Plan, errors: LagErrors) -> list[dict[str, Any]]:
    """Return the errors for each age of the velocity, over the times of the trajectory."""
    return [
        {"delta": delta}
        | _errors(
            {name: None if values is None else values[:, column] for name, values in vars(errors).items()}
        )
        for column, delta in enumerate(plan.deltas)
    ]


def _errors(errors: dict[str, Values | None]) -> dict[str, Any]:
    """Return quartiles of errors (…,N) by name, the refiner's worth, and the share of images it helped."""
    described: dict[str, Any] = {
        name: None if values is None else quartiles(values) for name, values in errors.items()
    }
    reuse, refined = errors["reuse"], errors["refined"]
    if reuse is None or refined is None:
        return described | {"worth": None, "helped": None}
    helped = np.where(np.isnan(refined), np.nan, refined < reuse).mean(axis=-1)
    return described | {"worth": worths(reuse, refined), "helped": helped}


def _endpoints(diagnosis: Diagnosis) -> list[dict[str, Any]]:
    return [
        {
            "name": way.name,
            "schedule": str(way.schedule),
            "predictor_evaluations": way.schedule.evaluations()["predictor"],
            "error": quartiles(errors),
        }
        for way, errors in zip(diagnosis.plan.endings, diagnosis.endpoints, strict=True)
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value
