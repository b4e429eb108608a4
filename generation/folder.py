"""The folder of a set of images: of one plan, and for one run at a time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from flowturbo_trt.bundle import lock
from flowturbo_trt.generation.plan import (
    PLAN,
    GenerationError,
    GenerationPlan,
    difference,
    plan_json,
    read_plan,
)
from flowturbo_trt.generation.shards import IMAGES, PARTIAL, SHARDS, write_files

LOCK = ".lock"


class FolderError(GenerationError):
    """A folder that a set of images cannot be made in."""


@contextlib.contextmanager
def held(out: Path) -> Iterator[None]:
    """Keep a folder, made where there is none, for this run alone.

    Raises FolderError when it cannot be written, holds anything but a set of images, or another run is
    at work there. A folder that is made for a run which makes nothing is removed again.
    """
    with contextlib.ExitStack() as stack:
        try:
            if not out.exists():
                stack.callback(_remove_if_empty, out)
            out.mkdir(parents=True, exist_ok=True)
            _check_own(out)
            alone = stack.enter_context(lock.held(out / LOCK))
        except OSError as error:
            reason = "is a file" if out.is_file() else f"cannot be written ({error.strerror})"
            raise FolderError(f"{out}: {reason}; give a folder that you may write to") from error
        if not alone:
            raise FolderError(f"{out}: another run is at work there; wait for it, or give another folder")
        yield


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _check_own(out: Path) -> None:
    names = {path.name for path in out.iterdir()}
    if PLAN not in names and (others := names - {LOCK, PARTIAL}):
        raise FolderError(
            f"{out}: holds {min(others)} and no {PLAN}, so no generated images; give a new folder"
        )


def check_plan(plan: GenerationPlan, out: Path) -> None:
    """Raise FolderError where images of another plan are there."""
    begun = any((out / part).is_dir() and any((out / part).iterdir()) for part in (SHARDS, IMAGES))
    if begun and (differs := difference(read_plan(out), plan)):
        raise FolderError(
            f"{out}: was begun with another plan ({differs}); give what it was begun with, or another folder"
        )


def begin(plan: GenerationPlan, out: Path) -> None:
    """Write the plan down."""
    content = plan_json(plan).encode()
    if not (out / PLAN).exists() or (out / PLAN).read_bytes() != content:
        write_files(out, {PLAN: content})
