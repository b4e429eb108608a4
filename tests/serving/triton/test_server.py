"""The digits on a real server: right images in any company, batches, mistakes, cancellation, previews."""

import json
import queue
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from flowturbo_trt.benchmarks.serving_requests import (
    Answers,
    Row,
    ask_at_once,
    ask_grpc,
    ask_http,
    columns,
    inputs,
    mixed_requests,
    stream,
    until,
)
from flowturbo_trt.benchmarks.triton_server import Installation, TritonServer, start
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.serving.triton.options import ModelOptions, ServerOptions
from flowturbo_trt.serving.triton.repository import write_repository
from flowturbo_trt.tests.serving.triton import fake_backend_utils

# The last one for runs that are long enough to be cancelled.
SCHEDULES = ("H1P5R3", "H1P1R1", "H60")
CLIENTS = 8
# Writes what `triton_python_backend_utils` has in a server's process: names, and those within its classes.
NAMES = """
import json, pathlib
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        names = {name: dir(getattr(pb_utils, name)) for name in dir(pb_utils)}
        pathlib.Path(args["model_repository"], "names.json").write_text(json.dumps(names))

    def execute(self, requests):
        return []
"""
LABELS = '{model="digits",version="1"}'


@pytest.fixture(scope="module")
def repository(digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("server") / "repository"
    options = ModelOptions(schedules=SCHEDULES, threads=1, cancellation=True)
    write_repository(digits_bundle, repository, "digits", options, ServerOptions(), previews=True)
    (repository / "names" / "1").mkdir(parents=True)
    (repository / "names" / "1" / "model.py").write_text(NAMES)
    config = 'backend: "python" instance_group [ { kind: KIND_CPU } ]'
    tensor = '{ name: "x" data_type: TYPE_INT64 dims: [1] }'
    (repository / "names" / "config.pbtxt").write_text(f"{config} input [{tensor}] output [{tensor}]")
    return repository


@pytest.fixture(scope="module")
def server(repository: Path, triton_server: Installation) -> Iterator[TritonServer]:
    with start(repository, installation=triton_server) as server:
        yield server


def test_fake_of_the_other_tests_has_the_servers_names(server: TritonServer, repository: Path) -> None:
    real = json.loads((repository / "names" / "names.json").read_text())
    for name in ("TritonError", "Tensor", "InferenceRequest", "InferenceResponse", "MetricFamily", "Logger"):
        own = {key for key in vars(getattr(fake_backend_utils, name)) if not key.startswith("_")}
        # What the fake has for its tests alone.
        own -= {"sender", "registry", "errors"}
        assert own <= set(real[name]), name
    assert "TRITONSERVER_RESPONSE_COMPLETE_FINAL" in real


def test_is_ready_and_describes_the_model(server: TritonServer, grpc: Any, http: Any) -> None:
    assert server.is_ready()
    assert http.is_model_ready("digits")
    assert grpc.is_model_ready("digits_previews")
    found = http.get_model_metadata("digits")
    assert {tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in found["inputs"]} == {
        "label": ("INT64", [-1, 1]),
        "seed": ("UINT64", [-1, 1]),
        "guidance": ("FP32", [-1, 1]),
        "schedule": ("BYTES", [-1, 1]),
    }
    assert found["outputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}]


def test_mixed_requests_of_many_clients_get_the_pipelines_images(
    server: TritonServer, grpc: Any, answers: Answers
) -> None:
    requests = mixed_requests(500, SCHEDULES)
    before = grpc.get_inference_statistics("digits").model_stats[0]

    def work(client: int) -> list[np.ndarray[Any, Any]]:
        # Half of them speak HTTP.
        module, ask = (tritonclient.grpc, ask_grpc) if client % 2 else (tritonclient.http, ask_http)
        address = server.grpc if client % 2 else server.http
        with module.InferenceServerClient(address) as connection:
            return [ask(connection, "digits", rows) for rows in requests[client::CLIENTS]]

    with ThreadPoolExecutor(CLIENTS) as pool:
        found = list(pool.map(work, range(CLIENTS)))
    for client, images in enumerate(found):
        for rows, image in zip(requests[client::CLIENTS], images, strict=True):
            np.testing.assert_array_equal(image, answers(rows))

    after = grpc.get_inference_statistics("digits").model_stats[0]
    asked = sum(len(request) for request in requests)
    assert after.inference_count - before.inference_count == asked
    assert after.inference_stats.fail.count == before.inference_stats.fail.count
    # Requests were put together: fewer runs than requests, and batches that no request had.
    assert after.execution_count - before.execution_count < 0.8 * len(requests)
    sizes = {stats.batch_size for stats in after.batch_stats}
    assert sizes & {4, 5, 6, 7}


def test_an_image_is_not_a_leftover(grpc: Any, answers: Answers) -> None:
    a, b = [Row(3, 7)], [Row(9, 0, 4.0, "H1P5R3")]
    for rows in (a, b, a, a * 8, b, a):
        np.testing.assert_array_equal(ask_grpc(grpc, "digits", rows), answers(rows))


GOOD = columns([Row(3, 7, 1.5, "H1P5R3")])
MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "label": ({"label": np.array([[11]], np.int64)}, "label 11 is out of range; the model knows 0 to 9"),
    "negative": ({"label": np.array([[-1]], np.int64)}, "label -1 is out of range"),
    "guidance": ({"guidance": np.array([[np.nan]], np.float32)}, r"guidance is \[nan\], expected"),
    "schedule": (
        {"schedule": np.array([[b"H2"]], object)},
        "schedule 'H2' is not served; use H1P5R3, H1P1R1, H60",
    ),
    "text": ({"schedule": np.array([[b"\xff\xfe"]], object)}, "is not served"),
    "shape": ({"label": np.array([[1, 2]], np.int64)}, r"\[-1,1\]"),
    "rows": ({"label": np.array([[1], [2]], np.int64)}, "batch"),
    "oversize": ({name: np.repeat(array, 9, 0) for name, array in GOOD.items()}, "batch-size must be <= 8"),
}


@pytest.mark.parametrize(("change", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_told(grpc: Any, http: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InferenceServerException, match=message) as told:
        grpc.infer("digits", inputs(tritonclient.grpc, GOOD | change))
    assert told.value.status() == "StatusCode.INVALID_ARGUMENT"
    with pytest.raises(InferenceServerException, match=message):
        http.infer("digits", inputs(tritonclient.http, GOOD | change))


def test_wrong_dtype_and_missing_input_are_told(grpc: Any) -> None:
    wrong = tritonclient.grpc.InferInput("label", [1, 1], "INT32")
    wrong.set_data_from_numpy(np.array([[3]], np.int32))
    seed = inputs(tritonclient.grpc, {"seed": GOOD["seed"]})
    with pytest.raises(InferenceServerException, match="INT32"):
        grpc.infer("digits", [wrong, *seed])
    with pytest.raises(InferenceServerException, match="label"):
        grpc.infer("digits", seed)


def test_mistake_does_not_fail_its_company(server: TritonServer, grpc: Any, answers: Answers) -> None:
    # One run keeps the model busy meanwhile, so that all others are one batch.
    rows = [Row(3, 7, 1.5, "H1P1R1"), Row(11, 7, 1.5, "H1P1R1"), Row(9, 0, 1.0, "H1P1R1")]
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        replies = ask_at_once(client, [[Row(0, 0, 1.5, "H60")], *([row] for row in rows)])
    assert [isinstance(reply, InferenceServerException) for reply in replies] == [False, False, True, False]
    np.testing.assert_array_equal(replies[1], answers(rows[:1]))
    np.testing.assert_array_equal(replies[3], answers(rows[2:]))


def test_own_metrics_count_what_is_done(server: TritonServer, grpc: Any) -> None:
    # What was done before is told within a second.
    _settled(server)
    before = server.metrics()
    ask_grpc(grpc, "digits", [Row(3, 7, 1.5, "H1P5R3")] * 6 + [Row(3, 7, 1.0, "H1P5R3")])
    after = _settled(server)
    grown = {name: after[name] - before.get(name, 0) for name in after if name.startswith("flowturbo_")}
    named = {name: value for name, value in grown.items() if value and "milliseconds" not in name}
    # Six rows in a batch of eight, and one without guidance.
    assert named == {
        f"flowturbo_rows_total{LABELS}": 7,
        f"flowturbo_padded_rows_total{LABELS}": 2,
        **_labelled("flowturbo_evaluations_total", network="predictor", variant="guided", value=7),
        **_labelled("flowturbo_evaluations_total", network="refiner", variant="guided", value=6),
        **_labelled("flowturbo_evaluations_total", network="predictor", variant="unguided", value=7),
        **_labelled("flowturbo_evaluations_total", network="refiner", variant="unguided", value=6),
        **_labelled("flowturbo_stages_total", stage="H", value=2),
        **_labelled("flowturbo_stages_total", stage="P", value=10),
        **_labelled("flowturbo_stages_total", stage="R", value=6),
        **_labelled("flowturbo_stages_total", stage="decode", value=2),
    }
    milliseconds = {name: value for name, value in grown.items() if "milliseconds" in name and value}
    assert len(milliseconds) == 4


def test_run_is_given_up_when_nobody_waits_for_it(server: TritonServer, grpc: Any, answers: Answers) -> None:
    before = _settled(server)
    steps, cancelled = _stage("H"), f"flowturbo_cancelled_requests_total{LABELS}"
    replies: queue.Queue[Any] = queue.Queue()
    rows = [Row(3, seed, 1.5, "H60") for seed in range(8)]
    call = grpc.async_infer(
        "digits",
        inputs(tritonclient.grpc, columns(rows)),
        callback=lambda result, error: replies.put(error),
    )
    until(lambda: server.metrics()[steps] > before[steps])
    call.cancel()
    assert replies.get(timeout=10).status() == "StatusCode.CANCELLED"
    until(lambda: server.metrics()[cancelled] == before[cancelled] + 1)
    after = _settled(server)
    assert 0 < after[steps] - before[steps] < 60
    assert after[f"flowturbo_rows_total{LABELS}"] == before[f"flowturbo_rows_total{LABELS}"]
    np.testing.assert_array_equal(ask_grpc(grpc, "digits", [Row(3, 7)]), answers([Row(3, 7)]))


def test_run_goes_on_while_somebody_waits_for_it(server: TritonServer, answers: Answers) -> None:
    rows = [Row(3, 7, 1.5, "H60"), Row(9, 0, 1.5, "H60")]
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        replies = ask_at_once(client, [[Row(0, 0, 1.5, "H60")], *([row] for row in rows)], cancel=(1,))
    assert replies[1].status() == "StatusCode.CANCELLED"
    np.testing.assert_array_equal(replies[2], answers(rows[1:]))


@pytest.mark.parametrize("rows", [[Row(3, 7)], [Row(9, 0, 1.0), Row(3, 7, 1.0), Row(0, 1, 1.0)]], ids=len)
def test_previews_are_streamed(grpc: Any, digits: Pipeline, answers: Answers, rows: list[Row]) -> None:
    found = stream(grpc, rows)
    expected: list[tuple[int, float, Any]] = []
    digits(
        [row.label for row in rows] + [0] * (8 - len(rows)) if len(rows) > 1 else [rows[0].label],
        seeds=[row.seed for row in rows] + [0] * (8 - len(rows)) if len(rows) > 1 else [rows[0].seed],
        guidance=rows[0].guidance,
        on_step=lambda step: expected.append((step.index + 1, step.s, step.preview()[: len(rows)])),
    )
    assert [int(answer["step"][0, 0]) for answer in found] == list(range(1, 10))
    for answer, (step, t, preview) in zip(found, expected, strict=True):
        assert answer["steps"].tolist() == [[9]] * len(rows)
        assert answer["step"].tolist() == [[step]] * len(rows)
        np.testing.assert_allclose(answer["time"], np.full((len(rows), 1), t), rtol=1e-6)
        np.testing.assert_array_equal(answer["image"], preview)
    np.testing.assert_array_equal(found[-1]["image"], answers(rows))


def test_previews_of_a_mistake_are_an_error_and_the_stream_goes_on(grpc: Any, answers: Answers) -> None:
    with pytest.raises(InferenceServerException, match="label 11 is out of range"):
        stream(grpc, [Row(11, 7)])
    with pytest.raises(InferenceServerException, match="ask for their previews one by one"):
        stream(grpc, [Row(3, 7, 1.0), Row(3, 7, 1.5)])
    np.testing.assert_array_equal(stream(grpc, [Row(3, 7)])[-1]["image"], answers([Row(3, 7)]))


def test_previews_stop_when_the_stream_is_cancelled(server: TritonServer, grpc: Any) -> None:
    before = _settled(server)
    previews = _stage("preview", "digits_previews")
    replies: queue.Queue[Any] = queue.Queue()
    grpc.start_stream(callback=lambda result, error: replies.put(result))
    grpc.async_stream_infer("digits_previews", inputs(tritonclient.grpc, columns([Row(3, 7, 1.5, "H60")])))
    assert replies.get(timeout=30) is not None
    grpc.stop_stream(cancel_requests=True)
    cancelled = 'flowturbo_cancelled_requests_total{model="digits_previews",version="1"}'
    until(lambda: server.metrics()[cancelled] == 1)
    assert 0 < _settled(server)[previews] - before[previews] < 59


def _stage(stage: str, model: str = "digits") -> str:
    return f'flowturbo_stages_total{{model="{model}",stage="{stage}",version="1"}}'


def _labelled(family: str, value: float, **labels: str) -> dict[str, float]:
    text = ",".join(f'{name}="{labels[name]}"' for name in sorted(labels))
    return {f'{family}{{model="digits",{text},version="1"}}': value}


def _settled(server: TritonServer) -> dict[str, float]:
    """Return the metrics once the last second's are among them."""
    time.sleep(1.3)
    return server.metrics()
