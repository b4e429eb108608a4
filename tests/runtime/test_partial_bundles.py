"""Bundles that lack an engine: what is there works, what is not is named with its remedy."""

from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.bundle.manifest import BundleError
from flowturbo_trt.runtime.backend import BackendError
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.runtime.request import RequestError, make_request
from flowturbo_trt.sampling.schedule import ScheduleError
from flowturbo_trt.tests.bundles import changed_copy, latents


def without(data: dict[str, Any], network: str) -> None:
    data["engines"] = [engine for engine in data["engines"] if engine["network"] != network]


def test_no_guided_variant(golden_bundle: Path, tmp_path: Path) -> None:
    def drop(data: dict[str, Any]) -> None:
        for programs in data["programs"].values():
            del programs["guided"]

    pipeline = Pipeline.load(changed_copy(golden_bundle, tmp_path, drop), threads=1)
    assert latents(pipeline, [1], guidance=1).shape == (1, 4, 8, 8)
    # Without guidance a guidance interval means nothing.
    assert latents(pipeline, [1], "H1P1R1:guided=0.1..0.5", guidance=1).shape == (1, 4, 8, 8)
    with pytest.raises(RequestError, match="unguided engines only; use guidance 1, or build it with --v"):
        latents(pipeline, [1])


@pytest.mark.parametrize("guidance", [1, 1.5])
def test_no_unguided_variant(tiny_pipeline: Pipeline, guidance: float) -> None:
    """A guidance interval needs both variants, unless it holds all times; said before anything runs."""
    with pytest.raises(
        ScheduleError, match=r"^H2:guided=0.1..1: needs unguided engines; build the bundle with "
    ):
        latents(tiny_pipeline, [1], "H2:guided=0.1..1", guidance=guidance)
    everywhere = latents(tiny_pipeline, [1], "H2:guided=0..1", guidance=guidance)
    assert (everywhere == latents(tiny_pipeline, [1], "H2", guidance=guidance)).all()


def test_no_refiner(tiny_bundle: Path, tmp_path: Path) -> None:
    def drop(data: dict[str, Any]) -> None:
        without(data, "refiner")
        data["default_schedule"] = "H2"

    pipeline = Pipeline.load(changed_copy(tiny_bundle, tmp_path, drop), threads=1)
    assert pipeline([1]).shape == (1, 8, 8, 3)
    with pytest.raises(BundleError, match=r"no guided refiner engine for onnxruntime \(it has: decoder, p"):
        pipeline([1], schedule="H1P1R1")
    # And the pipeline goes on.
    assert pipeline([1]).shape == (1, 8, 8, 3)


def test_no_decoder(tiny_bundle: Path, tmp_path: Path) -> None:
    def drop(data: dict[str, Any]) -> None:
        without(data, "decoder")
        data["model"]["image"] = None

    pipeline = Pipeline.load(changed_copy(tiny_bundle, tmp_path, drop), threads=1)
    assert latents(pipeline, [1, 2]).shape == (2, 2, 4, 4)
    with pytest.raises(RequestError, match="has no decoder; ask for latents, or build it with --decoder"):
        pipeline([1])
    request = make_request(pipeline.manifest.model, {"label": [1]}, None, None, None)
    with pytest.raises(BackendError, match="no decoder to preview with"):
        pipeline.generate(request, decode=False, on_step=lambda step: step.preview())


@pytest.mark.parametrize(
    "network", ["predictor", "refiner", "predictor_conditioner", "refiner_conditioner", "decoder"]
)
def test_what_the_default_needs_is_missed_at_once(tiny_bundle: Path, tmp_path: Path, network: str) -> None:
    damaged = changed_copy(tiny_bundle, tmp_path, lambda data: without(data, network))
    with pytest.raises(BundleError, match=rf"the bundle has no .*{network} engine for onnxruntime"):
        Pipeline.load(damaged, threads=1)
