from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.benchmarks.serving_requests import Row, columns
from flowturbo_trt.bundle.store import sha256
from flowturbo_trt.export.build import build
from flowturbo_trt.export.options import BuildOptions
from flowturbo_trt.runtime.backend import BackendError
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.serving.triton import cancellation
from flowturbo_trt.serving.triton.previews import TritonPythonModel
from flowturbo_trt.tests.serving.triton.fake_backend_utils import InferenceRequest, TritonError
from flowturbo_trt.tests.serving.triton.models import SETTINGS, arguments, counted, error_of, put, tensors


@pytest.fixture
def model(golden_bundle: Path, tmp_path: Path) -> Iterator[TritonPythonModel]:
    """Previews of the golden networks, which lie in the folder of the model that they are previews of."""
    model = TritonPythonModel()
    model.initialize(previews_of(golden_bundle, tmp_path))
    yield model
    model.finalize()


def previews_of(bundle: Path, repository: Path) -> dict[str, str]:
    put(bundle, repository, "golden")
    known = {"1": sha256(bundle / "manifest.json")}
    return arguments(repository, "tiny", replace(SETTINGS, previews_of="golden", bundles=known))


@pytest.mark.parametrize(
    "rows",
    [[Row(2, 7)], [Row(2, 7, 1.0, "H2")], [Row(0, 2**64 - 1, 1.5, "H2"), Row(1, 3, 4.0, "H2")]],
    ids=["defaults", "unguided", "two"],
)
def test_there_is_one_response_per_step(
    model: TritonPythonModel, golden_pipeline: Pipeline, rows: list[Row]
) -> None:
    steps: list[tuple[float, Any]] = []
    schedule = rows[0].schedule or "H1P1R1"
    images = golden_pipeline(
        [row.label for row in rows],
        seeds=[row.seed for row in rows],
        guidance=None if rows[0].guidance is None else [row.guidance or 0 for row in rows],
        schedule=schedule,
        on_step=lambda step: steps.append((step.s, step.preview())),
    )
    request = InferenceRequest(columns(rows))
    model.execute([request])
    count = 3 if schedule == "H1P1R1" else 2
    assert [flags for _, flags in request.sender.sent] == [0] * (count - 1) + [1]
    found = [tensors(response) for response, _ in request.sender.sent]
    for index, (answer, (t, preview)) in enumerate(zip(found, steps, strict=True)):
        np.testing.assert_array_equal(answer["image"], preview)
        np.testing.assert_array_equal(answer["step"], np.full((len(rows), 1), index + 1, np.int32))
        np.testing.assert_array_equal(answer["steps"], np.full((len(rows), 1), count, np.int32))
        np.testing.assert_array_equal(answer["time"], np.full((len(rows), 1), t, np.float32))
    np.testing.assert_array_equal(found[-1]["image"], images)
    assert found[-1]["time"].ravel().tolist() == [1] * len(rows)
    assert {name: array.dtype for name, array in found[0].items()} == {
        "image": np.uint8,
        "step": np.int32,
        "steps": np.int32,
        "time": np.float32,
    }


def test_rows_between_batch_sizes_share_their_responses(tiny_bundle: Path, tmp_path: Path) -> None:
    model = TritonPythonModel()
    model.initialize(previews_of(tiny_bundle, tmp_path))
    request = InferenceRequest(columns([Row(2, 7), Row(1, 8)]))
    model.execute([request])
    model.finalize()
    pipeline = Pipeline.load(tiny_bundle, threads=1)
    found = [tensors(response)["image"] for response, _ in request.sender.sent]
    assert [len(images) for images in found] == [2, 2, 2]
    expected = pipeline([2, 1], seeds=[7, 8], schedule="H1P1R1")
    np.testing.assert_allclose(found[-1].astype(int), expected.astype(int), atol=1)
    assert counted("flowturbo_rows_total") == 2
    assert counted("flowturbo_padded_rows_total") == 1


def test_mistakes_are_told_and_do_not_reach_the_next(model: TritonPythonModel) -> None:
    wrong = InferenceRequest(columns([Row(5000, 7)]))
    apart = InferenceRequest(columns([Row(2, 7, 1.0), Row(2, 7, 1.5)]))
    right = InferenceRequest(columns([Row(2, 7)]))
    model.execute([wrong, apart, right])
    for request, message in ((wrong, "out of range"), (apart, "ask for their previews one by one")):
        ((response, flags),) = request.sender.sent
        assert (error_of(response)[0], flags) == (TritonError.INVALID_ARG, 1)
        assert message in error_of(response)[1]
    assert right.sender.is_over()
    assert len(right.sender.sent) == 3


def test_cancelled_stream_is_given_up(model: TritonPythonModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancellation, "INTERVAL_SECONDS", 0)
    asked = iter([False, True])
    request = InferenceRequest(columns([Row(2, 7)]), lambda: next(asked))
    model.execute([request])
    (_, first), (response, last) = request.sender.sent
    assert (first, last) == (0, 1)
    assert error_of(response)[0] == TritonError.CANCELLED


def test_failed_engine_ends_the_stream(model: TritonPythonModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise BackendError("the engine failed")

    monkeypatch.setattr(Pipeline, "generate", fail)
    request = InferenceRequest(columns([Row(2, 7)]))
    model.execute([request])
    ((response, flags),) = request.sender.sent
    assert (*error_of(response), flags) == (TritonError.INTERNAL, "the engine failed", 1)


def test_loaded_model_is_guarded_until_it_is_unloaded(
    tiny_bundle: Path, tmp_path: Path, guarded: list[str]
) -> None:
    model = TritonPythonModel()
    model.initialize(previews_of(tiny_bundle, tmp_path))
    assert guarded == ["tiny"]
    model.finalize()
    assert guarded == []


def test_bundle_without_a_decoder_has_no_previews(
    tiny_options: BuildOptions, tmp_path: Path, instant_export: list[str]
) -> None:
    bundle = build(replace(tiny_options, decoder=None), tmp_path / "latents").path
    with pytest.raises(BackendError, match="no decoder to preview with"):
        TritonPythonModel().initialize(previews_of(bundle, tmp_path / "repository"))
