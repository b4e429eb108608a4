"""When one process of several fails: the others learn why, and end."""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from flowturbo_trt.training.config import TrainingError

FAILURE, ENDED = "failure", "ended"
# Seconds between looks at the board, and those a process may go on waiting for one that has failed.
INTERVAL = 0.5
PATIENCE = 10.0


class PeerError(TrainingError):
    """Another process of the run failed or is gone."""


@dataclass(frozen=True)
class Failure:
    """Which process failed first, and why."""

    rank: int
    message: str
    interrupted: bool

    def as_error(self) -> BaseException:
        return KeyboardInterrupt() if self.interrupted else PeerError(f"process {self.rank}: {self.message}")


class FailureBoard:
    """A store that all processes reach; the first failure posted on it stands.

    Process 0 keeps the store where no launcher does, so that it may be gone: what has been read is kept.
    """

    def __init__(self, store: Store, rank: int) -> None:
        self._store = PrefixStore("flowturbo_trt", store)
        self._rank = rank
        self._known: Failure | None = None

    def post(self, error: BaseException) -> Failure | None:
        """Post an error unless another one stands; return the one that stands, or None without a board."""
        message = " ".join(str(error).split()) or type(error).__name__
        mine = Failure(self._rank, message, isinstance(error, KeyboardInterrupt))
        with contextlib.suppress(RuntimeError):
            self._known = _parsed(self._store.compare_set(FAILURE, "", json.dumps(asdict(mine))))
            self._store.add(ENDED, 1)
        return self._known

    def read(self) -> Failure | None:
        """Return the failure of another process, if there is one."""
        try:
            if self._known is None and self._store.check([FAILURE]):
                self._known = _parsed(self._store.get(FAILURE))
        except RuntimeError:
            return Failure(0, "ended without a word", interrupted=False)
        return None if self._known is None or self._known.rank == self._rank else self._known

    def linger(self, size: int) -> None:
        """Keep the store for a moment, until all processes have posted or had time to read."""
        deadline = time.monotonic() + 3 * INTERVAL
        with contextlib.suppress(RuntimeError):
            while self._store.add(ENDED, 0) < size and time.monotonic() < deadline:
                time.sleep(INTERVAL / 10)


def _parsed(posted: bytes) -> Failure:
    return Failure(**json.loads(posted))


class Watch:
    """Ends this process where it waits for a process that has failed, and would wait for ever.

    On a CPU the connection breaks, and waiting ends with an error. A GPU waits where no error and no
    signal reaches: a thread then looks at the board and ends the process.
    """

    def __init__(self, board: FailureBoard, rank: int) -> None:
        self._board = board
        self._rank = rank
        self._waiting_since: float | None = None
        self._ended = threading.Event()
        self.thread = threading.Thread(target=self._look, name="failures", daemon=True)
        self.thread.start()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Mark a block in which processes wait for each other.

        Raises PeerError for an error in it that another process caused, and KeyboardInterrupt where that
        one was interrupted.
        """
        self._waiting_since = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            failure = self._board.read()
            if failure is not None:
                raise failure.as_error() from error
            if isinstance(error, dist.DistError) or "gloo" in str(error):
                raise PeerError("another process of the run is gone; its own output may say why") from error
            raise
        finally:
            self._waiting_since = None

    def end(self) -> None:
        self._ended.set()
        self.thread.join(2 * INTERVAL)

    def _look(self) -> None:
        seen: float | None = None
        while not self._ended.wait(INTERVAL):
            failure, since, now = self._board.read(), self._waiting_since, time.monotonic()
            if failure is None:
                continue
            seen = seen or now
            if since is not None and now - max(since, seen) > PATIENCE:
                if self._rank == 0:
                    print(f"error: process {failure.rank}: {failure.message}", file=sys.stderr, flush=True)
                os._exit(1)
