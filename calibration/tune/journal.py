"""The journal of a search: a line of JSON for everything measured, so that a search that ended goes on.

What a search does depends on its settings and on what it measured alone. One that is started again takes
from the journal what is in it, times included, and so comes to the same result as if it had never ended.
Times that did not become stable are not in it: they are measured anew.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from flowturbo_trt.bundle.lock import held
from flowturbo_trt.calibration.tune.errors import JournalError

JOURNAL_VERSION = 1
LOCK = ".lock"
Record = dict[str, Any]


@contextmanager
def kept(path: Path, settings: Record) -> Iterator["Journal"]:
    """Keep a journal for this search alone; raises JournalError."""
    with ExitStack() as stack:
        try:
            alone = stack.enter_context(held(path.with_name(LOCK)))
        except OSError as error:
            raise _unwritable(path, error) from error
        if not alone:
            raise JournalError(
                f"{path.parent}: another search is at work there; wait for it, or give another --out"
            )
        yield Journal(path, settings)


class Journal:
    """The records of a file by their keys; `settings` must be those it was begun with.

    Raises JournalError for a file that cannot be read or is of another search.
    """

    def __init__(self, path: Path, settings: Record) -> None:
        self._path = path
        self._records: dict[str, Any] = {}
        plain = json.loads(json.dumps({"journal": JOURNAL_VERSION, **settings}))
        if path.exists() and (lines := self._whole_lines()):
            self._check(self._read(lines[0], 1), plain)
            for number, line in enumerate(lines[1:], start=2):
                record = self._read(line, number)
                self._records[_text(record["key"])] = record["value"]
        else:
            self._write(plain, "w")

    def __len__(self) -> int:
        return len(self._records)

    def get(self, key: Iterable[object]) -> Any:
        """Return what was measured, or None."""
        return self._records.get(_text(key))

    def put(self, key: Iterable[object], value: Any) -> None:
        """Write down what was measured; it outlives the process at once."""
        self._write({"key": list(key), "value": value}, "a")
        self._records[_text(key)] = value

    def _whole_lines(self) -> list[str]:
        """Return the file's lines, having cut off the part of one that a sudden end has left."""
        try:
            data = self._path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if len(whole) < len(data):
                with self._path.open("r+b") as file:
                    file.truncate(len(whole))
            # Names may hold what else ends a line of text (U+2028).
            return whole.decode("utf-8").split("\n")[:-1]
        except (OSError, UnicodeDecodeError) as error:
            raise JournalError(f"{self._path}: cannot be read ({error}); give another --out") from error

    def _read(self, line: str, number: int) -> Record:
        try:
            record = json.loads(line)
            if isinstance(record, dict) and (number == 1 or {"key", "value"} <= record.keys()):
                return record
        except ValueError:
            pass
        raise JournalError(
            f"{self._path}: line {number} is no record of a search; delete the file, or give another --out"
        )

    def _check(self, found: Record, expected: Record) -> None:
        for name in (*expected, *found):
            if found.get(name) != expected.get(name):
                raise JournalError(
                    f"{self._path}: is of a search with {name} {_short(found.get(name))}, this one has "
                    f"{_short(expected.get(name))}; give another --out, or the same settings to go on with it"
                )

    def _write(self, record: Record, mode: str) -> None:
        try:
            with self._path.open(mode, encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        except OSError as error:
            raise _unwritable(self._path, error) from error


def _unwritable(path: Path, error: OSError) -> JournalError:
    return JournalError(f"{path}: cannot be written ({error.strerror}); give a folder you may write to")


def _text(key: Iterable[object]) -> str:
    return json.dumps(list(key))


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
