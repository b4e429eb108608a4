"""Signals: held while a step or a checkpoint is made, and SIGTERM is one of them."""

import _thread
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.training.interrupts import interrupts_held, terminations_as_interrupts

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Leave the test process as it was."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_held_until_the_end(number: signal.Signals) -> None:
    done: list[str] = []

    def work() -> None:
        with terminations_as_interrupts(), interrupts_held():
            _thread.interrupt_main(number)
            done.append("rest of the block")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with terminations_as_interrupts(), interrupts_held():
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_own_handlers_are_called_once_each() -> None:
    seen: list[int] = []

    def handler(number: int, frame: Any) -> None:
        seen.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)
    with terminations_as_interrupts(), interrupts_held():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            _thread.interrupt_main(number)
        assert not seen
    assert sorted(seen) == [signal.SIGINT, signal.SIGTERM]


def test_ignored_signals_stay_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupts_held():
        _thread.interrupt_main(signal.SIGINT)


def test_a_signal_that_ends_the_process_still_does() -> None:
    program = """
import os, signal
from flowturbo_trt.training.interrupts import interrupts_held
with interrupts_held():
    os.kill(os.getpid(), signal.SIGTERM)
    print("held", flush=True)
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (ended.stdout, ended.returncode) == ("held\n", -signal.SIGTERM)


def test_other_threads_hold_nothing() -> None:
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with terminations_as_interrupts(), interrupts_held():
                pass
        except ValueError as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed
