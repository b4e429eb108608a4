"""Requests that nobody waits for any more: asked about sparsely, as asking costs."""

import time
from collections import deque
from collections.abc import Mapping
from typing import Protocol

# To ask is a round trip to the server's process (70 µs where it was measured). One question per interval
# costs less than a hundredth of the time, and what is shorter than that is not worth being given up.
INTERVAL_SECONDS = 0.01


class Cancellable(Protocol):
    """A request that knows whether its client has given up."""

    def is_cancelled(self) -> bool: ...


class CancelledError(Exception):
    """All requests of a run have been cancelled."""


class Watch:
    """Watches the requests of one run; `cancelled` are those seen to be, by the number of their asker."""

    def __init__(self, requests: Mapping[int, Cancellable]) -> None:
        self._requests = requests
        self._turns = deque(requests)
        self._next = time.monotonic() + INTERVAL_SECONDS
        self.cancelled: set[int] = set()

    def poll(self) -> None:
        """Ask one request after the other until one is still wanted; raises CancelledError if none is.

        Does nothing before INTERVAL_SECONDS have passed since the last time.
        """
        now = time.monotonic()
        if now < self._next:
            return
        while self._turns and self._requests[self._turns[0]].is_cancelled():
            self.cancelled.add(self._turns.popleft())
        if not self._turns:
            raise CancelledError
        self._turns.rotate(-1)
        self._next = time.monotonic() + INTERVAL_SECONDS
