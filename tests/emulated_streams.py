"""The order of work on the emulated device: what streams and events promise, and no more."""

import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Policy = Literal["lazy", "eager", "random"]
# A program is right only if all of them give its result.
POLICIES: tuple[Policy, ...] = ("lazy", "eager", "random")


@dataclass(eq=False)
class Stream:
    """Work that is done in order."""

    queue: "deque[Work | Mark | Wait]" = field(default_factory=deque)


@dataclass(eq=False)
class Work:
    run: Callable[[], None]


@dataclass(eq=False)
class Mark:
    """A place in a stream; `captured` if it lies in a graph, where nothing outside can wait for it."""

    stream: Stream
    captured: bool = False
    reached: bool = False


@dataclass(eq=False)
class Wait:
    mark: Mark


@dataclass(eq=False)
class Capture:
    """Work of a stream that is written down instead of done; `fault` says why it becomes no graph."""

    stream: Stream
    work: list[Callable[[], None]] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    fault: str | None = None


class Scheduler:
    """Decides when work is done.

    "eager": as soon as it is asked for. "lazy": only when the host waits for it, and only what that
    needs. "random": some time between the two, the streams taking turns by chance.
    """

    def __init__(self, policy: Policy, seed: int) -> None:
        self._policy = policy
        self._random = random.Random(seed)
        self._streams: list[Stream] = []
        self._lock = threading.RLock()

    def submit(self, stream: Stream, item: Work | Mark | Wait) -> None:
        with self._lock:
            stream.queue.append(item)
            if stream not in self._streams:
                self._streams.append(stream)
            while self._policy == "eager" or (self._policy == "random" and self._random.random() < 0.5):
                if not self._step_anywhere():
                    break

    def run_until(self, mark: Mark) -> None:
        """Do work until a mark is reached."""
        with self._lock:
            if self._policy == "lazy":
                self._run_needed(mark)
            while not mark.reached:
                self._step_anywhere()

    def _run_needed(self, mark: Mark) -> None:
        needed = [mark]
        while needed:
            head = None if needed[-1].reached else needed[-1].stream.queue[0]
            if head is None:
                needed.pop()
            elif isinstance(head, Wait) and not head.mark.reached:
                needed.append(head.mark)
            else:
                self._step(needed[-1].stream)

    def _step_anywhere(self) -> bool:
        """Do one piece of work of any stream that has some it may do; returns whether there was one."""
        self._streams = [stream for stream in self._streams if stream.queue]
        able = [stream for stream in self._streams if _may_go_on(stream)]
        if able:
            self._step(self._random.choice(able))
        return bool(able)

    def _step(self, stream: Stream) -> None:
        match stream.queue.popleft():
            case Work(run):
                run()
            case Mark() as mark:
                mark.reached = True


def _may_go_on(stream: Stream) -> bool:
    head = stream.queue[0]
    return not isinstance(head, Wait) or head.mark.reached
