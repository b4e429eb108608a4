"""Rows that calibration runs on, and where their trajectories end."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.endpoints import (
    CalibrationError,
    endpoint_errors,
    find_endpoints,
    make_rows,
)
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.runtime.request import RequestError


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return Bundle.open(tiny_bundle).manifest


def with_classes(manifest: Manifest, minimum: int, maximum: int) -> Manifest:
    (condition,) = manifest.model.conditions
    conditions = (replace(condition, minimum=minimum, maximum=maximum),)
    return replace(manifest, model=replace(manifest.model, conditions=conditions))


def test_all_classes_take_turns(manifest: Manifest) -> None:
    request = make_rows(with_classes(manifest, 2, 5), 10, 7)
    assert request.conditions["label"].tolist() == [2, 3, 4, 5, 2, 3, 4, 5, 2, 3]
    assert request.seeds == tuple(range(7, 17))
    assert request.noise is None
    assert set(request.guidance.tolist()) == {2.0}


def test_fewer_rows_than_classes_spread_over_all(manifest: Manifest) -> None:
    """Not the first ones: neighbours in a data set are alike."""
    labels = make_rows(with_classes(manifest, 0, 999), 64, 0).conditions["label"]
    assert len(set(labels.tolist())) == 64
    assert set(np.diff(labels).tolist()) == {15, 16}
    assert labels[-1] >= 984


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 9, 10])
@pytest.mark.parametrize("scales", [(1.0, 2.0), (1.0, 1.5, 3.0), (1.0, 2.0, 3.0, 4.0)])
def test_every_class_meets_every_scale(manifest: Manifest, classes: int, scales: tuple[float, ...]) -> None:
    """Equally often, whether or not the one number divides the other."""
    request = make_rows(with_classes(manifest, 0, classes - 1), 2 * classes * len(scales), 0, scales)
    pairs = Counter(zip(request.conditions["label"].tolist(), request.guidance.tolist(), strict=True))
    assert set(pairs.values()) == {2}
    assert len(pairs) == classes * len(scales)


@pytest.mark.parametrize("guidance", [[float("nan")], [float("inf")]])
def test_guidance_that_is_no_number(manifest: Manifest, guidance: list[float]) -> None:
    with pytest.raises(RequestError, match="guidance"):
        make_rows(manifest, 2, 0, guidance)


def test_endpoints_follow_the_schedule(tiny_pipeline: Pipeline) -> None:
    """Of a fine one, from the request's noise; a coarser one ends elsewhere."""
    request = make_rows(tiny_pipeline.manifest, 4, 5)
    found = find_endpoints(tiny_pipeline, request, "H20", silent)
    noise = np.empty_like(found.noise)
    request.fill_noise(slice(0, 4), noise)
    np.testing.assert_array_equal(found.noise, noise)
    assert len(found) == 4
    assert (endpoint_errors(tiny_pipeline, found, "H20") == 0).all()
    coarse, fine = (endpoint_errors(tiny_pipeline, found, text).mean() for text in ("H2", "H10"))
    assert 0 < fine < coarse / 4


def test_endpoints_that_are_not_finite(broken_bundle: Bundle) -> None:
    pipeline = Pipeline.load(broken_bundle.path, threads=1)
    request = make_rows(pipeline.manifest, 2, 0)
    with pytest.raises(CalibrationError, match="H4: its latents are not finite; look at the bundle"):
        find_endpoints(pipeline, request, "H4", silent)
