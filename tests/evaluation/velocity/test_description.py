"""What a diagnosis comes to: worth, quartiles, JSON data."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.velocity.description import age_summaries, describe, quartiles, worth, worths
from flowturbo_trt.evaluation.velocity.endpoints import PerfectRefiner
from flowturbo_trt.tests.evaluation.velocity.fields import KnownField
from flowturbo_trt.tests.evaluation.velocity.made_up import STEPS, bending, diagnosis_of, helpful


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return Bundle.open(tiny_bundle).manifest


@pytest.mark.parametrize(
    ("reuse", "refined", "expected"),
    [(0.2, 0.1, 2), (0.1, 0.2, 0.5), (0.1, 0, math.inf), (0, 0.1, 0), (0, 0, 1)],
)
def test_worth(reuse: float, refined: float, expected: float) -> None:
    assert worth(reuse, refined) == expected


def test_worth_is_of_the_medians() -> None:
    reuse = np.array([[0.1, 0.2, 0.9], [0.0, 0.0, 1.0]])
    refined = np.array([[0.0, 0.1, 0.7], [0.0, 0.0, 3.0]])
    assert worths(reuse, refined).tolist() == [2, 1]
    assert np.isnan(worths(np.full((1, 2), np.nan), np.full((1, 2), np.nan))).all()


def test_quartiles_are_over_images() -> None:
    found = quartiles(np.array([[0.0, 1, 2, 3, 4], [5.0, 5, 5, 5, 5]]))
    assert {name: values.tolist() for name, values in found.items()} == {
        "low": [1, 5],
        "median": [2, 5],
        "high": [3, 5],
    }


def test_an_age_is_summed_up_where_all_estimates_can_be_had(manifest: Manifest) -> None:
    """v = 1 + t²: reuse is off by (2sΔ − Δ²)/(1 + s²), a line by 2Δ²/(1 + s²)."""
    diagnosis = diagnosis_of(manifest, helpful(lambda x, t: np.full_like(x, 1 + t * t), 0.5))
    times, plan = np.asarray(diagnosis.plan.times), diagnosis.plan
    for age in age_summaries(plan, diagnosis.lags):
        delta = age.delta
        common = times[times >= 2 * delta - 1e-9]
        s = common if len(common) else times[times >= delta - 1e-9]
        assert age.reuse == pytest.approx(np.median((2 * s * delta - delta**2) / (1 + s**2)), rel=1e-3)
        assert age.worth == pytest.approx(2, rel=1e-3)
        if len(common):
            assert age.extrapolated == pytest.approx(np.median(2 * delta**2 / (1 + s**2)), rel=1e-3)
        else:
            assert math.isnan(age.extrapolated)
        assert list(age.helps) == [t >= delta - 1e-9 for t in times]


def test_the_document_is_plain_and_finite(manifest: Manifest) -> None:
    diagnosis = diagnosis_of(manifest, helpful(bending, 0.5), without_guidance=helpful(bending, 0.8))
    document = describe(diagnosis)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert (document["schedule"], document["images"], document["truth"]) == ("H1P2R2:consistent", 12, "H12")
    for ages, expected in ((document["ages"], 2), (document["ages_unguided"], 5)):
        for age in ages:
            lag = round(age["delta"] * STEPS)
            assert age["worth"][:lag] == age["reuse"]["median"][:lag] == [None] * lag
            assert age["helped"][:lag] == [None] * lag
            assert age["worth"][lag:] == pytest.approx([expected] * (STEPS + 1 - lag), rel=0.01)
            assert age["helped"][lag:] == [1] * (STEPS + 1 - lag)
    calls = document["in_schedule"]
    assert [call["step"] for call in calls] == [3, 3, 4, 4]
    assert calls[1]["worth"] == pytest.approx(
        calls[1]["reuse"]["median"] / calls[1]["refined"]["median"], rel=1e-3
    )
    assert [end["name"] for end in document["endpoints"]] == ["refined", "perfect", "reused", "left out"]
    assert [end["predictor_evaluations"] for end in document["endpoints"]] == [4, 4, 4, 4]
    assert document["curvature"]["mean_straightness"] == pytest.approx(
        diagnosis.curvature.mean_straightness, 1e-5
    )


def test_a_perfect_refiner_has_no_bound(manifest: Manifest) -> None:
    straight = KnownField(lambda x, t: np.full_like(x, t * 4))
    for age in describe(diagnosis_of(manifest, PerfectRefiner(straight)))["ages"]:
        assert set(age["worth"]) == {None}
        assert set(age["refined"]["median"]) == {None, 0}


def test_without_a_refiner_there_is_no_worth(manifest: Manifest) -> None:
    document = describe(diagnosis_of(manifest, KnownField(bending), refines=False))
    assert document["refiner"] is False
    assert document["ages_unguided"] is None
    for found in (*document["ages"], *document["in_schedule"]):
        assert found["refined"] is found["worth"] is found["helped"] is None
        assert found["reuse"] is not None
