"""A diagnosis of real bundles: its trajectories are the pipeline's, and rows are kept apart."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.metrics import row_errors
from flowturbo_trt.evaluation.velocity.diagnosis import Diagnosis, diagnose
from flowturbo_trt.evaluation.velocity.networks import EngineField
from flowturbo_trt.evaluation.velocity.plan import DiagnosisOptions, make_plan
from flowturbo_trt.evaluation.velocity.trajectory import follow
from flowturbo_trt.runtime.backend import load_backend
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.runtime.request import make_request
from flowturbo_trt.sampling import reference
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.tests.bundles import latents
from flowturbo_trt.tests.evaluation.velocity.fields import nothing

NAME = "onnxruntime"


def run(
    path: Path, *, without_refiner: bool = False, batches: tuple[int, ...] = (), **given: Any
) -> Diagnosis:
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    if batches:
        manifest = replace(manifest, batches=batches)
    if without_refiner:
        manifest = replace(manifest, engines=tuple(e for e in manifest.engines if e.network != "refiner"))
    plan = make_plan(
        manifest, NAME, DiagnosisOptions(**({"num": 3, "steps": 6, "schedule": "H1P1R2"} | given))
    )
    return diagnose(manifest, NAME, load_backend(NAME, bundle, None, 1), plan)


@pytest.mark.parametrize("fixture", ["golden_bundle", "tiny_fused_bundle"])
@pytest.mark.parametrize(("guidance", "variant"), [(1.5, "guided"), (1.0, "unguided")])
def test_the_field_is_what_pipelines_run(
    request: pytest.FixtureRequest, fixture: str, guidance: float, variant: str
) -> None:
    """Fine trajectories end where the pipeline's Heun does, and so does a schedule with a refiner."""
    path = request.getfixturevalue(fixture)
    pipeline = Pipeline.load(path, threads=1)
    manifest = pipeline.manifest
    asked = make_request(manifest.model, {"label": [2, 0]}, None, guidance, None)
    noise = np.empty((2, *manifest.model.latent), dtype=np.float32)
    asked.fill_noise(slice(0, 2), noise)
    variant = variant if variant in manifest.programs[manifest.default_schedule] else "guided"
    backend = load_backend(NAME, Bundle.open(path), None, 1)
    field = EngineField(backend, manifest, NAME, variant, asked)
    truth = follow(field, noise, 4, nothing)
    expected = latents(pipeline, [2, 0], "H4", guidance=guidance)
    np.testing.assert_allclose(truth.states[-1], expected, rtol=1e-4, atol=1e-4)
    *_, (x, _) = reference.sample(Schedule.parse("H1P1R2"), field, noise[:, None])
    expected = latents(pipeline, [2, 0], "H1P1R2", guidance=guidance)
    np.testing.assert_allclose(x[:, 0], expected, rtol=1e-4, atol=1e-4)


def test_endpoints_are_those_of_the_pipeline(golden_bundle: Path, golden_pipeline: Pipeline) -> None:
    found = run(golden_bundle)
    truth = latents(golden_pipeline, [0, 1, 2], "H6", guidance=1.5)
    size = row_errors(truth, np.zeros_like(truth))
    for way, errors in zip(found.plan.endings, found.endpoints, strict=True):
        if way.name in ("refined", "left out"):
            ended = latents(golden_pipeline, [0, 1, 2], str(way.schedule), guidance=1.5)
            np.testing.assert_allclose(errors, row_errors(ended, truth) / size, rtol=1e-3)
    assert [way.name for way in found.plan.endings] == ["refined", "perfect", "reused", "left out"]


def test_guidance_is_told_from_none(golden_bundle: Path) -> None:
    """Beside the guided trajectories there are those without guidance, the same as at guidance 1."""
    guided, unguided = run(golden_bundle, guidance=6.0), run(golden_bundle, guidance=1.0)
    assert unguided.unguided is None
    assert guided.unguided is not None
    np.testing.assert_allclose(guided.unguided.reuse, unguided.lags.reuse, rtol=1e-4)
    assert guided.unguided.refined is not None
    assert unguided.lags.refined is not None
    np.testing.assert_allclose(guided.unguided.refined, unguided.lags.refined, rtol=1e-4)
    assert not np.allclose(guided.lags.reuse[1:], unguided.lags.reuse[1:], rtol=0.01, equal_nan=True)


def test_images_do_not_depend_on_their_batch(tiny_bundle: Path) -> None:
    """Five images in batches of 3 (one row of them padding) are the same as alone."""
    together = run(tiny_bundle, num=5, schedule="H1P1R1", batches=(3,))
    alone = run(tiny_bundle, num=1, seed=4, labels=(1,), schedule="H1P1R1")
    assert together.endpoints.shape == (4, 5)
    assert together.curvature.velocity.shape == (6, 5)
    assert together.lags.reuse.shape[-1] == together.in_schedule.reuse.shape[-1] == 5
    np.testing.assert_allclose(together.endpoints[:, 4:], alone.endpoints, rtol=1e-3)
    np.testing.assert_allclose(together.curvature.velocity[:, 4:], alone.curvature.velocity, rtol=1e-3)


def test_without_a_refiner_the_rest_is_the_same(tiny_bundle: Path) -> None:
    with_one, without = run(tiny_bundle), run(tiny_bundle, without_refiner=True)
    assert without.lags.refined is None
    assert without.unguided is not None
    assert without.unguided.refined is None
    np.testing.assert_array_equal(without.lags.reuse, with_one.lags.reuse)
    np.testing.assert_array_equal(without.endpoints, with_one.endpoints[1:])
    np.testing.assert_array_equal(without.in_schedule.refined, without.in_schedule.reuse)


def test_progress_reaches_its_total(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    plan = make_plan(bundle.manifest, NAME, DiagnosisOptions(num=4, steps=6, schedule="H1P1R1"))
    seen: list[tuple[int, int]] = []
    diagnose(
        bundle.manifest,
        NAME,
        load_backend(NAME, bundle, None, 1),
        plan,
        lambda what, done, total: seen.append((done, total)),
    )
    total = seen[-1][1]
    assert seen == [(done, total) for done in range(1, total + 1)]
