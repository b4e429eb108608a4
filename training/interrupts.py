"""Ctrl-C and SIGTERM: they end a run between two steps, not within one."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Put interrupts off until the block has ended, so that they tear neither a step nor a checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        # Python delivers signals to the main thread only.
        yield
        return
    held: list[int] = []
    previous = {number: signal.signal(number, lambda n, frame: held.append(n)) for number in SIGNALS}
    try:
        yield
    finally:
        for changed, handler in previous.items():
            signal.signal(changed, handler)
    for number in dict.fromkeys(held):
        handler = previous[signal.Signals(number)]
        if callable(handler):
            # Called, not raised anew: the system would run the handler on whatever stack is set aside for
            # signals, and a fault handler's (pytest enables one) is a few kilobytes, too few for some CPUs.
            handler(number, None)
        else:
            signal.raise_signal(number)


@contextmanager
def terminations_as_interrupts() -> Iterator[None]:
    """Have SIGTERM, with which schedulers and launchers end a process, raise KeyboardInterrupt.

    A handler that the process has set itself stays.
    """
    own = threading.current_thread() is threading.main_thread()
    if not own or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
