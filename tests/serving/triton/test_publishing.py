"""What a server sees at every moment of writing, and what is left when it ends there."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.bundle.store import Bundle, read_manifest
from flowturbo_trt.serving.triton.options import ModelOptions
from flowturbo_trt.serving.triton.staging import RepositoryError
from flowturbo_trt.tests.serving.triton.repositories import check_whole, content, read, siblings, write

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("previews", [False, True])
def test_whole_at_every_moment(
    tiny_bundle: Path, newer: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, previews: bool
) -> None:
    """Before and after whatever changes a name, a server that looks finds models it can load."""
    looks = watch(repository, monkeypatch)
    write(tiny_bundle, repository, previews=previews)
    first = len(looks)
    write(newer, repository, previews=previews, model=ModelOptions(schedules=("H2", "H1P1R1")))
    assert looks[first - 1] == (1,)
    # The newer config is there before its version.
    assert (1,) in looks[first + 1 :]
    assert looks[-1] == (1, 2)


def watch(repository: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Check the repository before and after every change of a name; lists the versions found then."""
    looks: list[tuple[int, ...]] = []

    def look() -> None:
        check_whole(repository)
        folder = repository / "digits"
        looks.append(read(folder).versions if folder.exists() else ())

    def watched(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: Any) -> object:
            look()
            result = function(*arguments)
            look()
            return result

        return call

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    monkeypatch.setattr(shutil, "copyfile", watched(shutil.copyfile))
    return looks


KILLED = """
import os, shutil, sys
from pathlib import Path
from flowturbo_trt.serving.triton.repository import write_repository
left = int(sys.argv[3])
def counted(function):
    def call(*arguments):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return function(*arguments)
    return call
os.rename, os.replace, shutil.copyfile = map(counted, (os.rename, os.replace, shutil.copyfile))
write_repository(Path(sys.argv[1]), Path(sys.argv[2]), "digits", previews=True)
"""


def kills(bundle: Path, repository: Path) -> Iterator[None]:
    """Kill the process that writes after more and more of its work, until it gets done."""
    files = len(read_manifest(bundle).files) + 1
    # Of the copies the first and the last, and then every change of a name.
    for calls in (0, 1, *range(files, files + 20)):
        words = [sys.executable, "-c", KILLED, str(bundle), str(repository), str(calls)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        yield
        if done.returncode == 0:
            return
        assert done.returncode == 9, done.stderr
    raise AssertionError("was never done")


def test_killed_at_every_moment(tiny_bundle: Path, newer: Path, repository: Path) -> None:
    """What was served stays, and the next call does what is missing."""
    first = write(tiny_bundle, repository, previews=True)
    count = 0
    for _ in kills(newer, repository):
        count += 1
        check_whole(repository)
        model = read(repository / "digits")
        assert model.versions[0] == 1
        assert model.settings.bundles["1"] == first.sha256
    assert count >= 5
    assert read(repository / "digits_previews").versions == read(repository / "digits").versions
    assert Bundle.open(model.bundle(model.versions[-1])).manifest.licence == "newer"
    assert siblings(repository) == set()


def test_full_disk_halfway(
    tiny_bundle: Path, newer: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tiny_bundle, repository)
    before = content(repository)
    copies = 0

    def copyfile(source: Path, target: Path) -> None:
        nonlocal copies
        copies += 1
        if copies == 3:
            raise OSError(28, "No space left on device")
        target.write_bytes(source.read_bytes())

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    with pytest.raises(RepositoryError, match="the disk is full; what is served is as it was"):
        write(newer, repository)
    assert content(repository) == before
    assert siblings(repository) == set()
