"""Places to write to, and clients of a test file's server, which its fixture `server` starts."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc
import tritonclient.http

from flowturbo_trt.benchmarks.serving_requests import Answers
from flowturbo_trt.benchmarks.triton_server import TritonServer
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.tests.bundles import changed_copy
from flowturbo_trt.tests.serving.triton import fake_backend_utils

# It exists in a server's processes only. The models import it, and the tests import the models.
sys.modules["triton_python_backend_utils"] = fake_backend_utils


@pytest.fixture(autouse=True)
def no_metrics_yet() -> None:
    fake_backend_utils.MetricFamily.registry.clear()
    fake_backend_utils.Logger.errors.clear()


@pytest.fixture(autouse=True)
def guarded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that a guard would end its process's parent for: here that is no server."""
    models: list[str] = []

    class NoGuard:
        def __init__(self, model: str) -> None:
            self._model = model
            models.append(model)

        def dismiss(self) -> None:
            models.remove(self._model)

    for module in ("model", "previews"):
        monkeypatch.setattr(f"flowturbo_trt.serving.triton.{module}.Guard", NoGuard)
    return models


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def newer(tiny_bundle: Path, tmp_path: Path) -> Path:
    """Another bundle of the same model."""
    (tmp_path / "newer").mkdir()
    return changed_copy(tiny_bundle, tmp_path / "newer", lambda manifest: manifest.update(licence="newer"))


@pytest.fixture(scope="session")
def digits(digits_bundle: Path) -> Pipeline:
    return Pipeline.load(digits_bundle, threads=1)


@pytest.fixture(scope="session")
def answers(digits: Pipeline) -> Answers:
    return Answers(digits)


@pytest.fixture
def grpc(server: TritonServer) -> Iterator[Any]:
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        yield client


@pytest.fixture
def http(server: TritonServer) -> Iterator[Any]:
    with tritonclient.http.InferenceServerClient(server.http) as client:
        yield client
