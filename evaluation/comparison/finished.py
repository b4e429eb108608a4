"""What a comparison has finished, so that the next one goes on from there.

    OUT/results/NAME-KEY.json    the settings and the figures of one schedule
    OUT/results/NAME-KEY.npz     the arrays that the report draws

KEY is a hash of all that decides the figures, versions, machine and this project's code included: a result
made under any other settings has another name and is never taken for this one.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.bundle.store import sha256
from flowturbo_trt.evaluation.comparison.errors import ComparisonError

FOLDER = "results"
# Our packages whose code makes and judges images.
PACKAGES = ("sampling", "runtime", "generation", "evaluation")
ROOT = Path(__file__).resolve().parents[2]
Arrays = dict[str, NDArray[Any]]


class Finished:
    """The finished results of a comparison folder; `say` is told of one that cannot be used."""

    def __init__(self, out: Path, say: Callable[[str], None]) -> None:
        self._folder = out / FOLDER
        self._say = say

    def read(self, name: str, settings: Mapping[str, Any]) -> tuple[dict[str, Any], Arrays] | None:
        """Return the figures and arrays of a result, or None when it is not there in these settings."""
        record_file, arrays_file = self._files(name, settings)
        if not record_file.exists():
            return None
        try:
            record = json.loads(record_file.read_text(encoding="utf-8"))
            if record["settings"] == _plain(settings) and record["arrays_sha256"] == sha256(arrays_file):
                with np.load(arrays_file, allow_pickle=False) as arrays:
                    return record["figures"], dict(arrays)
        except (OSError, ValueError, KeyError, TypeError):
            pass
        self._say(f"{record_file}: damaged; {name} is measured again")
        return None

    def write(
        self, name: str, settings: Mapping[str, Any], figures: Mapping[str, Any], arrays: Arrays
    ) -> None:
        """Keep a result; it counts as finished when its record is there, which is written last."""
        record_file, arrays_file = self._files(name, settings)
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = _draft(arrays_file)
        with draft.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        record = {
            "settings": _plain(settings),
            "figures": dict(figures),
            "arrays_sha256": sha256(draft),
        }
        os.replace(draft, arrays_file)
        write_text(record_file, json.dumps(record, indent=1, ensure_ascii=False) + "\n")

    def _files(self, name: str, settings: Mapping[str, Any]) -> tuple[Path, Path]:
        key = hashlib.sha256(json.dumps(_plain(settings), sort_keys=True).encode()).hexdigest()[:16]
        # A grid of many times makes no good file name; the key tells such schedules apart.
        stem = f"{re.sub(r'[^A-Za-z0-9]+', '_', name)[:40]}-{key}"
        return self._folder / f"{stem}.json", self._folder / f"{stem}.npz"


def code_sha256(root: Path = ROOT) -> str:
    """Return a hash of the code that results come from: a fixed bug must not live on in them."""
    files = sorted(file for package in PACKAGES for file in (root / package).rglob("*.py"))
    found = hashlib.sha256()
    for file in files:
        found.update(f"{file.relative_to(root).as_posix()} {sha256(file)}\n".encode())
    return found.hexdigest()


def check_place(out: Path) -> None:
    """Raise ComparisonError unless a comparison may be written into a folder; makes nothing yet."""
    if out.exists() and not out.is_dir():
        raise ComparisonError(f"{out}: is a file; give a folder to write the report into")
    if out.is_dir() and any(out.iterdir()) and not (out / FOLDER).is_dir():
        raise ComparisonError(
            f"{out}: holds files of another kind; give a new folder, or an earlier report's"
        )
    folder = (out / FOLDER).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ComparisonError(f"{out}: cannot be written; give a folder you may write to")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    draft = _draft(path)
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def _plain(settings: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(settings))
