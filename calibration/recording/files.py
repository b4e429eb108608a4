"""The files of a recording: shards of tensors, and the description that makes a recording of them.

    calibration.json          format, version, what was recorded of what, and the sha256 of every shard
    rows-00000.safetensors    the tensors of some rows

The description is written last, and removed first: without it a folder is no recording.
"""

import errno
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from flowturbo_trt.bundle.writing import sync
from flowturbo_trt.calibration.endpoints import CalibrationError
from flowturbo_trt.evaluation.comparison.finished import write_text

FORMAT = "flowturbo_trt calibration recording"
VERSION = 1
DESCRIPTION = "calibration.json"
Tensors = Mapping[str, NDArray[Any]]
# What a recording, finished or interrupted, leaves in its folder.
_OWN = re.compile(rf"rows-\d{{5,}}\.safetensors|{re.escape(DESCRIPTION)}|\.{re.escape(DESCRIPTION)}\.\d+")


@dataclass(frozen=True)
class Shard:
    """A file of a recording's folder, and how many rows it has."""

    file: str
    rows: int
    sha256: str


def begin(folder: Path) -> None:
    """Make a folder, or empty that of an earlier recording; raises CalibrationError.

    A folder that holds anything else is left as it is.
    """
    with _reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
        there = sorted(folder.iterdir(), key=lambda path: path.name != DESCRIPTION)
        if others := [path.name for path in there if _OWN.fullmatch(path.name) is None]:
            raise CalibrationError(f"{folder}: holds {others[0]}, which no recording made; give a new folder")
        for path in there:
            path.unlink()


def write_shard(folder: Path, number: int, rows: int, tensors: Tensors) -> Shard:
    """Write the tensors of some rows; raises CalibrationError."""
    # safetensors writes memory as it lies.
    content = save({name: np.ascontiguousarray(array) for name, array in tensors.items()})
    path = folder / f"rows-{number:05}.safetensors"
    with _reported(folder):
        path.write_bytes(content)
    return Shard(path.name, rows, hashlib.sha256(content).hexdigest())


def finish(folder: Path, shards: Sequence[Shard], description: Mapping[str, Any]) -> None:
    """Write the description, whole, when all shards are safely on the disk; raises CalibrationError."""
    document = {"format": FORMAT, "version": VERSION, **description}
    with _reported(folder):
        sync([folder / shard.file for shard in shards])
        write_text(folder / DESCRIPTION, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        sync([folder / DESCRIPTION])


def read_description(folder: Path) -> dict[str, Any]:
    """Read a description of this format and version; raises CalibrationError."""
    path = folder / DESCRIPTION
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = (data.pop("format"), data.pop("version"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CalibrationError(
            f"{folder}: holds no finished recording ({DESCRIPTION} not found); record trajectories"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CalibrationError(f"{path}: cannot be read ({error!r}); record again") from error
    if found != (FORMAT, VERSION):
        raise CalibrationError(
            f"{path}: is {found[0]!r} of version {found[1]}, expected {FORMAT!r} of version {VERSION}; "
            "record again"
        )
    return data


def read_shard(folder: Path, shard: Shard) -> Tensors:
    """Read a shard that is what was written; raises CalibrationError."""
    path = folder / shard.file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read ({error.strerror}); record again") from error
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        raise CalibrationError(f"{path}: is not what was recorded (sha256 differs); record again")
    try:
        tensors: Tensors = load(content)
    except SafetensorError as error:
        raise CalibrationError(f"{path}: holds no tensors ({error}); record again") from error
    return tensors


@contextmanager
def _reported(folder: Path) -> Iterator[None]:
    """Raise a CalibrationError for what writing into a folder fails on."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise CalibrationError(
                f"{folder}: the disk is full; free some space or give another folder, and record again"
            ) from error
        raise CalibrationError(
            f"{folder}: cannot be written ({error.strerror}); give a folder you may write to"
        ) from error
