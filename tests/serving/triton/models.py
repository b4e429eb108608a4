"""Served models without a server: the arguments a server gives them, and what they answer."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from flowturbo_trt.bundle.store import sha256
from flowturbo_trt.serving.triton.settings import PARAMETER, ModelSettings
from flowturbo_trt.tests.serving.triton.fake_backend_utils import InferenceResponse, MetricFamily

SETTINGS = ModelSettings("onnxruntime", "cpu", ("H1P1R1", "H2"), threads=1)


def put(
    bundle: Path, repository: Path, name: str = "tiny", settings: ModelSettings = SETTINGS
) -> dict[str, str]:
    """Put a bundle into a repository as version 1 of a model; returns the arguments to `initialize`."""
    copy = repository / name / "1" / "bundle"
    shutil.copytree(bundle, copy)
    known = replace(settings, bundles={"1": sha256(copy / "manifest.json")})
    return arguments(repository, name, known)


def arguments(repository: Path, name: str, settings: ModelSettings) -> dict[str, str]:
    """Return what a server tells version 1 of a model."""
    config = {"parameters": {PARAMETER: {"string_value": settings.to_json()}}}
    return {
        "model_config": json.dumps(config),
        "model_instance_kind": "CPU",
        "model_instance_name": f"{name}_0_0",
        "model_instance_device_id": "0",
        "model_repository": str(repository / name),
        "model_version": "1",
        "model_name": name,
    }


def tensors(response: InferenceResponse) -> dict[str, NDArray[Any]]:
    """Return a response's arrays by name; raises AssertionError for an error."""
    error = response.error()
    assert error is None, error.message()
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}


def error_of(response: InferenceResponse) -> tuple[int, str]:
    """Return code and message of a response that is an error."""
    error = response.error()
    assert error is not None
    return error.code(), error.message()


def counted(family: str, **labels: str) -> float:
    """Return what a counter of version 1 of the model "tiny" has reached."""
    key = frozenset(({"model": "tiny", "version": "1"} | labels).items())
    return MetricFamily.registry[family][key]


def all_counted(family: str) -> Mapping[frozenset[tuple[str, str]], float]:
    """Return all counters of a family."""
    return MetricFamily.registry[family]
