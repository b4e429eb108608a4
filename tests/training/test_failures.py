"""The board on which processes tell why they failed, and the watch that ends those who wait for them."""

import os
import threading
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from flowturbo_trt.training import failures
from flowturbo_trt.training.failures import FailureBoard, PeerError, Watch


@pytest.fixture
def boards() -> list[FailureBoard]:
    store = dist.HashStore()
    return [FailureBoard(store, rank) for rank in range(3)]


@pytest.fixture
def watch(boards: list[FailureBoard]) -> Iterator[Watch]:
    """The watch of process 0."""
    watch = Watch(boards[0], 0)
    yield watch
    watch.end()


def test_first_failure_stands(boards: list[FailureBoard]) -> None:
    assert boards[0].read() is None
    first = boards[1].post(OSError("no such\nfile"))
    assert first == boards[2].post(ValueError("later"))
    assert first is not None
    assert (first.rank, first.message, first.interrupted) == (1, "no such file", False)
    assert boards[0].read() == first
    assert boards[1].read() is None


def test_errors_without_words(boards: list[FailureBoard]) -> None:
    posted = boards[1].post(KeyboardInterrupt())
    assert posted is not None
    assert (posted.message, posted.interrupted) == ("KeyboardInterrupt", True)


def test_failure_of_another_explains_a_broken_wait(boards: list[FailureBoard], watch: Watch) -> None:
    boards[2].post(OSError("its disk is gone"))
    with pytest.raises(PeerError, match="process 2: its disk is gone"), watch.waiting():
        raise RuntimeError("Connection closed by peer")


def test_interrupt_of_another_is_one(boards: list[FailureBoard], watch: Watch) -> None:
    boards[2].post(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt), watch.waiting():
        raise RuntimeError("Connection closed by peer")


def test_own_errors_stay_what_they_are(watch: Watch) -> None:
    with pytest.raises(RuntimeError, match="shapes differ") as caught, watch.waiting():
        raise RuntimeError("shapes differ")
    assert caught.type is RuntimeError


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Instead of ending the process, note its status and end the thread."""
    statuses: list[int] = []

    def leave(status: int) -> None:
        statuses.append(status)
        raise SystemExit

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(failures, "INTERVAL", 0.01)
    monkeypatch.setattr(failures, "PATIENCE", 0.05)
    return statuses


# Ending the thread stands for ending the process.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("rank", [0, 1])
def test_wait_that_no_error_ends(
    boards: list[FailureBoard], exits: list[int], capsys: pytest.CaptureFixture[str], rank: int
) -> None:
    """As on a GPU: the thread ends the process; the first one says why."""
    watch = Watch(boards[rank], rank)
    with watch.waiting():
        assert watch.thread.is_alive()
        boards[2].post(OSError("its disk is gone"))
        watch.thread.join(10)
    assert exits == [1]
    assert capsys.readouterr().err == ("" if rank else "error: process 2: its disk is gone\n")


def test_process_that_does_not_wait_is_left_alone(boards: list[FailureBoard], exits: list[int]) -> None:
    """It may be saving what it has."""
    watch = Watch(boards[0], 0)
    boards[2].post(OSError("its disk is gone"))
    threading.Event().wait(0.3)
    assert watch.thread.is_alive()
    watch.end()
    assert not exits


def test_first_process_lingers_until_the_others_know(boards: list[FailureBoard]) -> None:
    """The store may end with it."""
    boards[0].post(OSError("its disk is gone"))
    told: list[int] = []

    def others() -> None:
        for board in boards[1:]:
            board.post(PeerError("process 0"))
            told.append(1)

    timer = threading.Timer(0.2, others)
    timer.start()
    boards[0].linger(3)
    assert told == [1, 1]
    timer.join()
