"""Samples: the images that `generate` makes, handed on one batch at a time, and how far they are off."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.evaluation.comparison.errors import ComparisonError
from flowturbo_trt.evaluation.comparison.samples import (
    SampleStream,
    Truth,
    endpoint_error,
    find_truth,
    make_rows,
    shown_count,
)
from flowturbo_trt.generation.options import GenerationOptions, make_plan
from flowturbo_trt.generation.plan import GenerationPlan
from flowturbo_trt.generation.run import generate_images
from flowturbo_trt.generation.shards import ShardedImages
from flowturbo_trt.runtime.pipeline import Generated, Pipeline


@pytest.fixture
def plan(tiny_bundle: Path) -> GenerationPlan:
    return make_plan(tiny_bundle, GenerationOptions(num=10, schedule="H1P1R1", seed=5))


def quiet(done: int) -> None:
    pass


def test_images_are_those_of_generate(
    plan: GenerationPlan, tiny_bundle: Path, tiny_pipeline: Pipeline, tmp_path: Path
) -> None:
    """In several shards too, whose last batches are smaller."""
    plan = replace(plan, shard_size=4)
    truth = find_truth(tiny_pipeline, replace(plan, num=5), 2, quiet)
    streamed = np.concatenate(list(SampleStream(tiny_pipeline, plan, truth)))
    generate_images(plan, tiny_bundle, tmp_path / "out")
    generated = np.concatenate(list(ShardedImages.open(tmp_path / "out").batches(4)))
    assert np.array_equal(streamed, generated)


def test_errors_are_relative_to_the_true_endpoints(plan: GenerationPlan, tiny_pipeline: Pipeline) -> None:
    fine = replace(plan, schedule="H30", num=7)
    told: list[int] = []
    truth = find_truth(tiny_pipeline, fine, 4, told.append)
    assert told == [3, 6, 7]
    stream = SampleStream(tiny_pipeline, plan, truth)
    images = np.concatenate(list(stream))
    assert len(images) == 10
    assert np.array_equal(stream.shown, images[:4])
    labels, seeds = [plan.label_of(i) for i in range(7)], [plan.seed_of(i) for i in range(7)]
    made = tiny_pipeline(labels, seeds=seeds, schedule="H30", guidance=plan.guidance)
    assert np.array_equal(truth.images, made[:4])
    ends = np.concatenate(
        [
            tiny_pipeline.generate(make_rows(tiny_pipeline, plan, rows), plan.schedule).latents
            for rows in plan.batches(0)
        ]
    )[:7]
    expected = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(ends, truth.latents, strict=True)]
    assert stream.errors == pytest.approx(expected, rel=1e-5)
    assert min(stream.errors) > 1e-4
    same = SampleStream(tiny_pipeline, fine, truth)
    assert list(map(len, same)) == [3, 3, 1]
    assert same.errors.tolist() == [0] * 7


class Recorded:
    """A pipeline that makes latents of ones, and lists how many rows it was asked for."""

    def __init__(self, plan: GenerationPlan, latent: Callable[[int], float] = lambda row: 1.0) -> None:
        condition = SimpleNamespace(name="label", minimum=plan.classes[0], maximum=plan.classes[1])
        guidance = SimpleNamespace(default=1.0)
        model = SimpleNamespace(conditions=(condition,), guidance=guidance, latent=(1, 2, 2))
        self.manifest = SimpleNamespace(model=model)
        self.asked: list[int] = []
        self._latent = latent

    def generate(self, request: Any, schedule: str) -> Generated:
        start = sum(self.asked)
        self.asked.append(len(request))
        values = [self._latent(start + row) for row in range(len(request))]
        latents = np.broadcast_to(np.array(values, np.float32)[:, None, None, None], (len(values), 1, 2, 2))
        return Generated(latents.copy(), np.zeros((len(values), 2, 2, 3), np.uint8))


def ones(count: int) -> Truth:
    return Truth(np.ones((count, 1, 2, 2), np.float32), np.zeros((1, 2, 2, 3), np.uint8))


def test_a_batch_is_made_when_it_is_asked_for(plan: GenerationPlan) -> None:
    pipeline = Recorded(plan)
    stream = iter(SampleStream(pipeline, plan, ones(2)))  # type: ignore[arg-type]
    assert pipeline.asked == []
    for asked in ([3], [3, 3]):
        next(stream)
        assert pipeline.asked == asked


def test_closed_form_of_the_error(plan: GenerationPlan) -> None:
    """Latents of 1 + row/10 are row/10 away from ones, whatever the size."""
    stream = SampleStream(Recorded(plan, lambda row: 1 + row / 10), plan, ones(8))  # type: ignore[arg-type]
    list(stream)
    assert stream.errors == pytest.approx([row / 10 for row in range(8)], abs=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_latents_that_are_not_finite_name_the_image(plan: GenerationPlan, bad: float) -> None:
    pipeline = Recorded(plan, lambda row: bad if row == 4 else 1.0)
    with pytest.raises(
        ComparisonError, match=rf"H1P1R1: the latent of image 4 \(seed {plan.seed_of(4)}\) is"
    ):
        list(SampleStream(pipeline, plan, ones(1)))  # type: ignore[arg-type]


def test_endpoint_error_and_its_interval() -> None:
    assert endpoint_error(np.array([0.1, 0.3])).value == pytest.approx(0.2)
    assert endpoint_error(np.array([0.1, 0.3])).interval is None
    errors = np.random.default_rng(0).normal(1.0, 0.2, 400)
    found = endpoint_error(errors)
    assert found.value == pytest.approx(errors.mean())
    assert found.interval is not None
    # The central 95 % of a mean: ± 1.96 σ / √N.
    assert found.interval == pytest.approx((found.value - 0.0196, found.value + 0.0196), abs=0.003)


@pytest.mark.parametrize(
    ("image", "num", "count"),
    [((32, 32), 2000, 20), ((256, 256), 2000, 8), ((1024, 1024), 2000, 4), ((8, 8), 3, 3)],
)
def test_fewer_large_images_are_shown(
    plan: GenerationPlan, image: tuple[int, int], num: int, count: int
) -> None:
    assert shown_count(replace(plan, image=image, num=num)) == count
