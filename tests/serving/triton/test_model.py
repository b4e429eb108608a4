import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.benchmarks.serving_requests import Answers, Row, columns
from flowturbo_trt.bundle.manifest import BundleError
from flowturbo_trt.bundle.store import sha256
from flowturbo_trt.export.build import build
from flowturbo_trt.export.options import BuildOptions
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.sampling.schedule import ScheduleError
from flowturbo_trt.serving.triton import cancellation
from flowturbo_trt.serving.triton.model import TritonPythonModel
from flowturbo_trt.serving.triton.settings import SettingsError
from flowturbo_trt.tests.bundles import latents
from flowturbo_trt.tests.serving.triton.fake_backend_utils import InferenceRequest, Logger, TritonError
from flowturbo_trt.tests.serving.triton.models import SETTINGS, arguments, counted, error_of, put, tensors


@pytest.fixture(scope="module")
def repository(golden_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden networks, guided and not, at batches 1 and 2."""
    repository = tmp_path_factory.mktemp("repository")
    put(golden_bundle, repository)
    return repository


@pytest.fixture
def load(repository: Path, golden_bundle: Path) -> Iterator[Callable[..., TritonPythonModel]]:
    """Load the model with some settings."""
    loaded: list[TritonPythonModel] = []
    bundles = {"1": sha256(golden_bundle / "manifest.json")}

    def load(**settings: Any) -> TritonPythonModel:
        model = TritonPythonModel()
        model.initialize(arguments(repository, "tiny", replace(SETTINGS, bundles=bundles, **settings)))
        loaded.append(model)
        return model

    yield load
    for model in loaded:
        model.finalize()


@pytest.fixture(scope="module")
def golden_answers(golden_pipeline: Pipeline) -> Answers:
    return Answers(golden_pipeline)


REQUESTS = [
    [Row(2, 7, 1.5, "H2"), Row(0, 1, 1.0, "H1P1R1"), Row(1, 2, 4.0, "H2")],
    [Row(2, 7)],
    [Row(2, 7, 1.0, "H1P1R1")] * 2,
    [Row(1, 2**64 - 1, 3.0, "H1P1R1")],
]


@pytest.mark.parametrize("cancellation", [True, False])
def test_every_image_is_the_pipelines_own(
    load: Callable[..., TritonPythonModel], golden_answers: Answers, cancellation: bool
) -> None:
    model = load(cancellation=cancellation)
    responses = model.execute([InferenceRequest(columns(rows)) for rows in REQUESTS])
    for rows, response in zip(REQUESTS, responses, strict=True):
        expected = golden_answers([replace(row, schedule=row.schedule or "H1P1R1") for row in rows])
        np.testing.assert_array_equal(tensors(response)["image"], expected)


def test_mistake_is_told_to_its_own_request_alone(
    load: Callable[..., TritonPythonModel], golden_answers: Answers
) -> None:
    model = load()
    wrong = columns([Row(2, 7, np.nan)])
    requests = [columns([Row(2, 7, 1.5)]), wrong, columns([Row(5000, 7)]), columns([Row(0, 1, 1.5)])]
    responses = model.execute([InferenceRequest(request) for request in requests])
    assert error_of(responses[1]) == (
        TritonError.INVALID_ARG,
        "guidance is [nan], expected a number, or one for each of 1 images",
    )
    assert error_of(responses[2])[0] == TritonError.INVALID_ARG
    np.testing.assert_array_equal(tensors(responses[0])["image"], golden_answers([Row(2, 7, 1.5, "H1P1R1")]))
    np.testing.assert_array_equal(tensors(responses[3])["image"], golden_answers([Row(0, 1, 1.5, "H1P1R1")]))
    model._metrics.flush()
    assert counted("flowturbo_failed_requests_total", reason="invalid") == 2


def test_failed_engine_is_told_to_those_it_ran_for_and_the_model_goes_on(
    load: Callable[..., TritonPythonModel], golden_answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load()
    generate = Pipeline.generate

    def fail(pipeline: Pipeline, request: Any, schedule: str, **options: Any) -> Any:
        if schedule == "H2":
            raise RuntimeError("out of\nmemory")
        return generate(pipeline, request, schedule, **options)

    monkeypatch.setattr(Pipeline, "generate", fail)
    requests = [InferenceRequest(columns(rows)) for rows in ([Row(2, 7, 1.5, "H2")], [Row(2, 7)])]
    failed, answered = model.execute(requests)
    assert error_of(failed) == (TritonError.INTERNAL, "RuntimeError: out of memory")
    assert Logger.errors == ["flowturbo_trt: RuntimeError: out of memory"]
    image = golden_answers([Row(2, 7, None, "H1P1R1")])
    np.testing.assert_array_equal(tensors(answered)["image"], image)
    monkeypatch.undo()
    (answered,) = model.execute([requests[0]])
    np.testing.assert_array_equal(tensors(answered)["image"], golden_answers([Row(2, 7, 1.5, "H2")]))
    model._metrics.flush()
    assert counted("flowturbo_failed_requests_total", reason="internal") == 1


def test_run_that_all_have_cancelled_is_given_up_between_steps(
    load: Callable[..., TritonPythonModel], golden_answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancellation, "INTERVAL_SECONDS", 0)
    model = load()
    # The first of its three steps is done by then.
    asked = iter([False, True])
    gone = InferenceRequest(columns([Row(2, 7, 1.5)]), lambda: next(asked))
    other = InferenceRequest(columns([Row(2, 7, 1.0)]))
    cancelled, answered = model.execute([gone, other])
    assert error_of(cancelled) == (TritonError.CANCELLED, "the request was cancelled")
    np.testing.assert_array_equal(tensors(answered)["image"], golden_answers([Row(2, 7, 1.0, "H1P1R1")]))
    model._metrics.flush()
    assert counted("flowturbo_cancelled_requests_total") == 1
    assert counted("flowturbo_rows_total") == 1
    assert {kind: counted("flowturbo_stages_total", stage=kind) for kind in "HPR"} == {"H": 2, "P": 2, "R": 1}


def test_run_goes_on_for_those_who_wait(
    load: Callable[..., TritonPythonModel], golden_answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancellation, "INTERVAL_SECONDS", 0)
    model = load()
    gone = InferenceRequest(columns([Row(2, 7, 1.5)]), lambda: True)
    cancelled, answered = model.execute([gone, InferenceRequest(columns([Row(0, 1, 1.5)]))])
    assert error_of(cancelled)[0] == TritonError.CANCELLED
    np.testing.assert_array_equal(tensors(answered)["image"], golden_answers([Row(0, 1, 1.5, "H1P1R1")]))


def test_without_cancellation_no_step_is_watched(
    load: Callable[..., TritonPythonModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    generate = Pipeline.generate

    def note(pipeline: Pipeline, request: Any, schedule: str, **options: Any) -> Any:
        calls.append((len(request), options["on_step"]))
        return generate(pipeline, request, schedule, **options)

    monkeypatch.setattr(Pipeline, "generate", note)
    model = load(cancellation=False)
    model.execute([InferenceRequest(columns([Row(0, seed) for seed in range(5)]), lambda: True)])
    # One call for all batches, so that they can overlap.
    assert calls == [(5, None)]
    model._metrics.flush()
    assert counted("flowturbo_stages_total", stage="trajectory") == 1
    # Of its three batches, each with as many evaluations.
    labels = {"network": "predictor", "variant": "guided"}
    assert counted("flowturbo_evaluations_total", **labels) == 9


def test_metrics_count_rows_padding_evaluations_and_stages(load: Callable[..., TritonPythonModel]) -> None:
    model = load()
    # Batches of 2, 2 and 1, and then one of 1: nothing is padded at these sizes.
    model.execute([InferenceRequest(columns([Row(0, seed, 1.5) for seed in range(5)] + [Row(0, 0, 1.0)]))])
    model._metrics.flush()
    assert counted("flowturbo_rows_total") == 6
    assert counted("flowturbo_padded_rows_total") == 0
    # H1P1R1 evaluates the predictor three times, and the refiner twice.
    for variant, batches in {"guided": 3, "unguided": 1}.items():
        for network, count in {"predictor": 3, "refiner": 2}.items():
            labels = {"network": network, "variant": variant}
            assert counted("flowturbo_evaluations_total", **labels) == count * batches
    for stage in ("H", "P", "R", "decode"):
        assert counted("flowturbo_stages_total", stage=stage) == 4
        assert counted("flowturbo_stage_milliseconds_total", stage=stage) > 0


def test_bundle_without_a_decoder_gives_latents(
    tiny_options: BuildOptions, tmp_path: Path, instant_export: list[str]
) -> None:
    bundle = build(replace(tiny_options, decoder=None), tmp_path / "latents").path
    model = TritonPythonModel()
    model.initialize(put(bundle, tmp_path / "repository"))
    (response,) = model.execute([InferenceRequest(columns([Row(2, 7), Row(1, 8)]))])
    model.finalize()
    found = tensors(response)["latent"]
    pipeline = Pipeline.load(bundle, threads=1)
    np.testing.assert_array_equal(found, latents(pipeline, [2, 1], "H1P1R1", seeds=[7, 8]))
    assert found.dtype == np.float32


def test_padding_is_counted(tiny_options: BuildOptions, tmp_path: Path, instant_export: list[str]) -> None:
    bundle = build(replace(tiny_options, batches=(4,)), tmp_path / "bundle").path
    model = TritonPythonModel()
    model.initialize(put(bundle, tmp_path))
    # Batches of 4, the second with three rows that nobody asked for.
    model.execute([InferenceRequest(columns([Row(0, seed) for seed in range(5)]))])
    model.finalize()
    assert counted("flowturbo_rows_total") == 5
    assert counted("flowturbo_padded_rows_total") == 3


def test_loaded_model_is_guarded_until_it_is_unloaded(
    tiny_bundle: Path, tmp_path: Path, guarded: list[str]
) -> None:
    args = put(tiny_bundle, tmp_path)
    model = TritonPythonModel()
    # One that does not load is no reason to end the server.
    with pytest.raises(SettingsError):
        model.initialize(args | {"model_config": "{}"})
    assert guarded == []
    model.initialize(args)
    assert guarded == ["tiny"]
    model.finalize()
    assert guarded == []


def test_altered_manifest_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    args = put(tiny_bundle, tmp_path)
    manifest = tmp_path / "tiny" / "1" / "bundle" / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(
        BundleError, match=r"its manifest has sha256 .*…, the config expects .*… for version 1"
    ):
        TritonPythonModel().initialize(args)


def test_version_that_the_config_does_not_know_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    args = put(tiny_bundle, tmp_path)
    (tmp_path / "tiny" / "1").rename(tmp_path / "tiny" / "2")
    with pytest.raises(BundleError, match="the config expects none"):
        TritonPythonModel().initialize(args | {"model_version": "2"})
    with pytest.raises(BundleError, match="No such file or directory; write this version again"):
        TritonPythonModel().initialize(args)


def test_schedule_that_cannot_run_is_told_when_loading(tiny_bundle: Path, tmp_path: Path) -> None:
    args = put(tiny_bundle, tmp_path, settings=replace(SETTINGS, schedules=("H1P1R1", "nonsense")))
    with pytest.raises(ScheduleError, match="nonsense"):
        TritonPythonModel().initialize(args)


def test_config_without_settings_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    args = put(tiny_bundle, tmp_path)
    with pytest.raises(SettingsError, match="the config of tiny has no parameter flowturbo_trt"):
        TritonPythonModel().initialize(args | {"model_config": "{}"})


def test_instance_runs_on_the_gpu_that_the_server_says(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS, device="cuda", provider="cuda", threads=3)
    args = put(tiny_bundle, tmp_path, settings=settings) | {"model_instance_device_id": "2"}
    asked: dict[str, Any] = {}
    loaded = Pipeline.load(tiny_bundle, threads=1)

    def load(path: Path, **options: Any) -> Pipeline:
        asked.update(options)
        return loaded

    monkeypatch.setattr(Pipeline, "load", load)
    model = TritonPythonModel()
    model.initialize(args)
    model.finalize()
    assert asked == {"backend": "onnxruntime", "device": "cuda:2", "threads": 3, "provider": "cuda"}


PROBE = """
import json, sys, types
from flowturbo_trt.tests.serving.triton import fake_backend_utils
sys.modules["triton_python_backend_utils"] = fake_backend_utils
from flowturbo_trt.serving.triton import model, previews
print(json.dumps([name for name in sys.argv[1:] if name in sys.modules]))
"""


def test_models_need_nothing_but_the_runtime() -> None:
    heavy = ["torch", "onnx", "diffusers", "safetensors", "tritonclient", "google.protobuf"]
    result = subprocess.run([sys.executable, "-c", PROBE, *heavy], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == []
