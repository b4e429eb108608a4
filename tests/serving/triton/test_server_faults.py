"""What happens to a real server: its model's process killed, and the server told to end, both under load."""

import os
import queue
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from flowturbo_trt.benchmarks.serving_requests import Answers, Row, ask_grpc, columns, inputs, pending, until
from flowturbo_trt.benchmarks.triton_server import Installation, TritonServer, TritonServerError, start
from flowturbo_trt.serving.triton.options import ModelOptions, ServerOptions
from flowturbo_trt.serving.triton.repository import write_repository

ROW = Row(3, 7, 1.5, "H1P1R1")
RUN = [Row(3, 7, 1.5, "H25")] * 8
CLIENTS = 4


@pytest.fixture(scope="module")
def repository(digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("server") / "repository"
    options = ModelOptions(schedules=("H1P1R1", "H25"), threads=1)
    write_repository(digits_bundle, repository, "digits", options, ServerOptions())
    return repository


@pytest.fixture
def server(repository: Path, triton_server: Installation) -> Iterator[TritonServer]:
    with start(repository, installation=triton_server) as server:
        yield server


def test_server_ends_when_its_model_is_killed(
    repository: Path, triton_server: Installation, answers: Answers
) -> None:
    told: queue.Queue[Any] = queue.Queue()
    # What the server does not get unloaded, a dead model above all, it gives this long.
    with start(repository, flags=["--exit-timeout-secs=2"], installation=triton_server) as server:
        with ThreadPoolExecutor(CLIENTS) as pool:
            clients = [pool.submit(_ask_until_it_fails, server, told) for _ in range(CLIENTS)]
            until(lambda: told.qsize() > 2 * CLIENTS)
            (stub,) = server.stubs()
            os.kill(stub, signal.SIGKILL)
            until(lambda: not server.is_ready())
            errors = [client.result(timeout=30) for client in clients]
        assert {error.status() for error in errors} <= {"StatusCode.INTERNAL", "StatusCode.UNAVAILABLE"}
        assert server.process.wait(30) != 0
        assert "the process of model digits has died" in server.log.read_text()
        assert server.processes() == []
    for _ in range(told.qsize()):
        np.testing.assert_array_equal(told.get(), answers([ROW]))


def test_requests_in_flight_are_answered_before_the_server_ends(
    server: TritonServer, answers: Answers
) -> None:
    replies: queue.Queue[Any] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        for _ in range(3):
            client.async_infer(
                "digits",
                inputs(tritonclient.grpc, columns(RUN)),
                callback=lambda result, error: replies.put(error or result.as_numpy("image")),
            )
        # The third one is under way.
        until(lambda: pending(server) == 2)
        server.process.send_signal(signal.SIGTERM)
        for _ in range(3):
            np.testing.assert_array_equal(replies.get(timeout=30), answers(RUN))
    assert server.process.wait(30) == 0
    assert server.processes() == []


def test_server_that_cannot_start_says_why(
    repository: Path, tmp_path: Path, triton_server: Installation
) -> None:
    other = tmp_path / "repository"
    (other / "digits" / "1").mkdir(parents=True)
    (other / "digits" / "1" / "model.py").write_bytes((repository / "digits" / "1" / "model.py").read_bytes())
    text = (
        (repository / "digits" / "config.pbtxt").read_text().replace("input_data_file", "zero_data: true #")
    )
    (other / "digits" / "config.pbtxt").write_text(text)
    with (
        pytest.raises(TritonServerError, match=r"manifest\.json: No such file"),
        start(other, installation=triton_server),
    ):
        pass


def _ask_until_it_fails(server: TritonServer, told: "queue.Queue[Any]") -> InferenceServerException:
    """Put images into `told`; returns the error that ends this."""
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        while True:
            try:
                told.put(ask_grpc(client, "digits", [ROW], client_timeout=30))
            except InferenceServerException as error:
                return error
