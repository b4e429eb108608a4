"""The log beside the bundle: what a build did, how long it took and how much memory it held."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TextIO

# Seconds between signs of life within a piece of work.
HEARTBEAT = 10.0


class BuildLog:
    """Appends to a file that is made at the first word; `running` holds what is under way.

    `running` outlives a killed process, so that the next build can say where the one before ended.
    """

    def __init__(self, path: Path, running: Path, say: Callable[[str], None]) -> None:
        self._path = path
        self._running = running
        self._say = say
        self._file: TextIO | None = None
        self._guard = threading.Lock()

    def __enter__(self) -> "BuildLog":
        if self._running.exists():
            self.say(f"the build before this one ended suddenly while at {self._running.read_text()}")
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._file is not None:
            if error is not None:
                self.write(f"failed: {type(error).__name__}: {error}")
            self._file.close()
        self._running.unlink(missing_ok=True)

    def say(self, text: str) -> None:
        """Write a line and tell it to whoever builds."""
        self.write(text)
        self._say(text)

    def write(self, text: str) -> None:
        """Write a line with the time of day and the memory held."""
        # A log that cannot be written, on a full disk say, is no reason to stop.
        with self._guard, contextlib.suppress(OSError):
            if self._file is None:
                self._file = self._path.open("a", encoding="utf-8")
                self._file.write("\n")
            now = datetime.now().isoformat(sep=" ", timespec="seconds")
            self._file.write(f"{now}  {_resident()}  {text}\n")
            self._file.flush()

    @contextlib.contextmanager
    def working(self, name: str) -> Iterator[None]:
        """Write signs of life while the block runs, and how long it took."""
        started, done = time.monotonic(), threading.Event()

        def beat() -> None:
            while not done.wait(HEARTBEAT):
                seconds = time.monotonic() - started
                self.write(f"{name}: at it for {seconds:.0f} s")
                with contextlib.suppress(OSError):
                    self._running.write_text(f"{name} ({seconds:.0f} s in, {_resident()})")

        self._running.write_text(name)
        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
            self.write(f"{name}: took {time.monotonic() - started:.1f} s")
        finally:
            done.set()
            thread.join()


def _resident() -> str:
    """Return the resident memory of this process, now and at its highest, where the system tells."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return "memory unknown"
    fields = dict(line.split(":", 1) for line in lines)
    now, highest = (int(fields[name].split()[0]) / 2**20 for name in ("VmRSS", "VmHWM"))
    return f"{now:.2f} GiB resident, {highest:.2f} at most"
