"""Plans: defaults from the bundle, ages in whole fine steps, batches, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.bundle.manifest import BundleError, Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.velocity.plan import DiagnosisOptions, Plan, make_plan
from flowturbo_trt.evaluation.velocity.trajectory import DiagnosisError
from flowturbo_trt.runtime.request import RequestError
from flowturbo_trt.sampling.schedule import ScheduleError


@pytest.fixture(scope="module")
def manifest(golden_bundle: Path) -> Manifest:
    return Bundle.open(golden_bundle).manifest


def plan(manifest: Manifest, **given: Any) -> Plan:
    return make_plan(manifest, "onnxruntime", DiagnosisOptions(**given))


def with_engines(manifest: Manifest, network: str, variant: str) -> Manifest:
    """Return a manifest without one of its engines."""
    engines = tuple(e for e in manifest.engines if (e.network, e.variant) != (network, variant))
    assert len(engines) < len(manifest.engines)
    return replace(manifest, engines=engines)


def test_defaults_are_the_bundles(manifest: Manifest) -> None:
    found = plan(manifest)
    assert (str(found.schedule), found.guidance, found.refines) == ("H1P5R3", 1.5, True)
    assert len(found.request) == 64
    classes = manifest.model.conditions[0].maximum + 1
    assert found.request.conditions["label"].tolist() == [i % classes for i in range(64)]
    assert found.request.seeds == tuple(range(64))


def test_a_default_schedule_without_r_steps_gives_way(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    assert str(plan(manifest).schedule) == "H1P1R1"
    assert str(plan(replace(manifest, default_schedule="H2")).schedule) == "H1P5R3"
    assert str(plan(manifest, schedule="H3").schedule) == "H3"


def test_labels_take_turns_and_seeds_count_up(manifest: Manifest) -> None:
    found = plan(manifest, num=5, labels=(2, 0), seed=7)
    assert found.request.conditions["label"].tolist() == [2, 0, 2, 0, 2]
    assert found.request.seeds == (7, 8, 9, 10, 11)


def test_ages_are_whole_fine_steps_with_those_of_the_schedule(manifest: Manifest) -> None:
    found = plan(manifest, schedule="H1P1R2", steps=20, deltas=(0.001, 0.1, 0.12, 5.0))
    # 0.001 is at least a step, 0.12 rounds to 0.1, 5 is cut; the schedule's own ages are ¼ and ½.
    assert found.lags == (1, 2, 5, 10, 20)
    assert found.deltas == (0.05, 0.1, 0.25, 0.5, 1.0)
    assert found.lag == 5
    assert found.times == tuple(i / 20 for i in range(21))
    assert len(found.calls) == 4


def test_without_r_steps_the_schedules_own_step_counts(manifest: Manifest) -> None:
    found = plan(manifest, schedule="H4", steps=20)
    assert (found.lag, found.calls, [way.name for way in found.endings]) == (5, (), ["as is"])


def test_batches_are_built_ones_padded_by_the_last_row(manifest: Manifest) -> None:
    found = plan(manifest, num=3, labels=(0, 1, 2))
    batches = list(found.batches((2,)))
    assert [used for _, used in batches] == [2, 1]
    assert [request.seeds for request, _ in batches] == [(0, 1), (2, 2)]
    assert [request.conditions["label"].tolist() for request, _ in batches] == [[0, 1], [2, 2]]
    assert [request.guidance.tolist() for request, _ in batches] == [[1.5, 1.5], [1.5, 1.5]]


def test_a_refiner_is_one_of_the_variant_that_is_run(manifest: Manifest) -> None:
    without = with_engines(manifest, "refiner", "guided")
    assert not plan(without).refines
    assert plan(without, guidance=1.0).refines


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"num": 0}, DiagnosisError, "0 images: expected at least 1"),
        ({"labels": (99,)}, RequestError, "label 99 is out of range"),
        ({"seed": -1}, RequestError, "seed -1"),
        ({"guidance": float("nan")}, RequestError, "guidance is nan"),
        ({"schedule": "H1Q2"}, ScheduleError, "unknown step 'Q'"),
        ({"schedule": "R2"}, ScheduleError, "starts with R"),
        ({"schedule": "H1R1@0,0.5,0.9"}, ScheduleError, "generation needs 0 to 1"),
        ({"schedule": "H1R1:guided=0.1..0.5"}, DiagnosisError, "leave :guided= out"),
        ({"steps": 8}, DiagnosisError, "cannot be coarser than H1P5R3"),
    ],
    ids=str,
)
def test_what_is_refused(
    manifest: Manifest, given: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        plan(manifest, **given)


def test_a_backend_without_a_predictor_is_refused(manifest: Manifest) -> None:
    with pytest.raises(BundleError, match="no guided predictor engine for openvino"):
        make_plan(manifest, "openvino", DiagnosisOptions())
    with pytest.raises(BundleError, match="no unguided predictor engine"):
        plan(with_engines(manifest, "predictor", "unguided"), guidance=1.0)


def test_guidance_needs_the_guided_variant(manifest: Manifest) -> None:
    programs = {text: {"unguided": by["unguided"]} for text, by in manifest.programs.items()}
    unguided = replace(manifest, programs=programs)
    assert plan(unguided, guidance=1.0).request.is_unguided
    with pytest.raises(RequestError, match="unguided engines only; use guidance 1"):
        plan(unguided, guidance=1.5)
