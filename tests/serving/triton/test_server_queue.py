"""A short queue on a real server, and a response cache."""

import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from flowturbo_trt.benchmarks.serving_requests import Answers, Row, ask_grpc, columns, inputs, pending, until
from flowturbo_trt.benchmarks.triton_server import Installation, TritonServer, start
from flowturbo_trt.serving.triton.options import ModelOptions, ServerOptions
from flowturbo_trt.serving.triton.repository import write_repository

OPTIONS = ModelOptions(schedules=("H1P1R1", "H25"), threads=1)
ROW = Row(3, 7, 1.5, "H1P1R1")
RUN = [Row(0, 0, 1.5, "H25")] * 8


@pytest.fixture(scope="module")
def server(
    digits_bundle: Path, triton_server: Installation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    repository = tmp_path_factory.mktemp("server") / "repository"
    write_repository(digits_bundle, repository, "digits", OPTIONS, ServerOptions(queue_size=2))
    write_repository(digits_bundle, repository, "cached", OPTIONS, ServerOptions(response_cache=True))
    flags = ["--cache-config=local,size=16777216"]
    with start(repository, flags=flags, installation=triton_server) as server:
        yield server


class Sent:
    """A request that was sent and whose answer is still to come."""

    def __init__(self, client: Any, rows: list[Row]) -> None:
        self._reply: queue.Queue[Any] = queue.Queue()
        tensors = inputs(tritonclient.grpc, columns(rows))
        client.async_infer(
            "digits",
            tensors,
            callback=lambda result, error: self._reply.put(error or result.as_numpy("image")),
        )

    def wait(self) -> Any:
        """Return the images or the error."""
        return self._reply.get(timeout=30)


@pytest.fixture
def runs(server: TritonServer, grpc: Any) -> list[Sent]:
    """One run that keeps the model busy, and one that waits for it."""
    sent = [Sent(grpc, RUN), Sent(grpc, RUN)]
    until(lambda: pending(server) == 1)
    return sent


def test_request_that_waits_too_long_is_rejected(runs: list[Sent], grpc: Any, answers: Answers) -> None:
    with pytest.raises(InferenceServerException, match="timeout expired") as told:
        ask_grpc(grpc, "digits", [ROW], timeout=1000)
    assert told.value.status() == "StatusCode.UNAVAILABLE"
    for sent in runs:
        np.testing.assert_array_equal(sent.wait(), answers(RUN))


def test_request_that_does_not_fit_the_queue_is_rejected(
    server: TritonServer, runs: list[Sent], grpc: Any, answers: Answers
) -> None:
    last = Sent(grpc, [ROW])
    until(lambda: pending(server) == 2)
    with pytest.raises(InferenceServerException, match="maximum queue size") as told:
        ask_grpc(grpc, "digits", [ROW])
    assert told.value.status() == "StatusCode.UNAVAILABLE"
    for sent in runs:
        np.testing.assert_array_equal(sent.wait(), answers(RUN))
    np.testing.assert_array_equal(last.wait(), answers([ROW]))


def test_known_answers_come_from_the_cache(grpc: Any, answers: Answers) -> None:
    def hits() -> int:
        count: int = grpc.get_inference_statistics("cached").model_stats[0].inference_stats.cache_hit.count
        return count

    other = [Row(3, 8, 1.5, "H1P1R1"), Row(3, 7, 1.0, "H1P1R1"), Row(9, 7, 1.5, "H1P1R1")]
    for row in (ROW, *other):
        np.testing.assert_array_equal(ask_grpc(grpc, "cached", [row]), answers([row]))
    assert hits() == 0
    for row in (ROW, *other):
        np.testing.assert_array_equal(ask_grpc(grpc, "cached", [row]), answers([row]))
    assert hits() == 4
