"""Bundles whose conditioning is hoisted, and such whose is not: they must behave the same."""

from pathlib import Path

import pytest

from flowturbo_trt.runtime.pipeline import Pipeline

CONDITIONING = ("hoisted", "fused")


@pytest.fixture(params=CONDITIONING)
def conditioning(request: pytest.FixtureRequest) -> str:
    """Let a test run twice: on bundles of either kind."""
    kind: str = request.param
    return kind


@pytest.fixture
def golden_either(request: pytest.FixtureRequest, conditioning: str) -> Path:
    fused = conditioning == "fused"
    path: Path = request.getfixturevalue("golden_fused_bundle" if fused else "golden_bundle")
    return path


@pytest.fixture
def golden_either_pipeline(request: pytest.FixtureRequest, conditioning: str) -> Pipeline:
    fused = conditioning == "fused"
    pipeline: Pipeline = request.getfixturevalue("golden_fused_pipeline" if fused else "golden_pipeline")
    return pipeline


@pytest.fixture
def tiny_either(request: pytest.FixtureRequest, conditioning: str) -> Path:
    """The tiny networks, as `golden_either`."""
    fused = conditioning == "fused"
    path: Path = request.getfixturevalue("tiny_fused_bundle" if fused else "tiny_bundle")
    return path
