import pytest

from flowturbo_trt.serving.triton import cancellation
from flowturbo_trt.serving.triton.cancellation import CancelledError, Watch


class Asked:
    """A request that is cancelled once told so, and counts how often it was asked."""

    def __init__(self, *, cancelled: bool = False) -> None:
        self.cancelled = cancelled
        self.times = 0

    def is_cancelled(self) -> bool:
        self.times += 1
        return self.cancelled


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that shows its only item."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_nobody_is_asked_before_the_interval_is_over(clock: list[float]) -> None:
    request = Asked(cancelled=True)
    watch = Watch({0: request})
    watch.poll()
    clock[0] += 0.9 * cancellation.INTERVAL_SECONDS
    watch.poll()
    assert request.times == 0
    clock[0] += 0.2 * cancellation.INTERVAL_SECONDS
    with pytest.raises(CancelledError):
        watch.poll()
    assert watch.cancelled == {0}


def test_one_is_asked_at_a_time_and_all_in_turn(clock: list[float]) -> None:
    requests = {number: Asked() for number in (3, 5, 8)}
    watch = Watch(requests)
    for _ in range(6):
        clock[0] += 1
        watch.poll()
    assert [request.times for request in requests.values()] == [2, 2, 2]
    assert watch.cancelled == set()


def test_run_goes_on_for_the_last_one_who_waits(clock: list[float]) -> None:
    requests = {0: Asked(cancelled=True), 1: Asked(), 2: Asked(cancelled=True)}
    watch = Watch(requests)
    for _ in range(2):
        clock[0] += 1
        watch.poll()
    assert watch.cancelled == {0, 2}
    requests[1].cancelled = True
    clock[0] += 1
    with pytest.raises(CancelledError):
        watch.poll()
    assert watch.cancelled == {0, 1, 2}
    assert requests[0].times == 1
