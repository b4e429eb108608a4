"""What TensorRT says: most of its failures are a message and None."""

from collections import deque
from types import ModuleType
from typing import Any


def collector(trt: ModuleType) -> Any:
    """Return a logger for TensorRT that prints nothing and keeps the latest errors.

    Has to live as long as anything that was made with it. `last()` is the latest error on one line,
    `clear()` forgets those so far.
    """

    class Collector(trt.ILogger):  # type: ignore[name-defined, misc]  # the base comes from an argument
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=32)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(" ".join(message.split()))

        def last(self) -> str:
            return self.errors[-1] if self.errors else "it gave no reason"

        def clear(self) -> None:
            self.errors.clear()

    return Collector()
