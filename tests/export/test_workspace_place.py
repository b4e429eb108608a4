"""The place of a workspace: one build at a time, and what a killed one leaves."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.bundle.manifest import BundleError
from flowturbo_trt.export.workspace import open_workspace
from flowturbo_trt.tests.export.test_workspace import make, silent


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "bundle"


def test_two_builds_in_one_place(out: Path) -> None:
    with open_workspace(out, silent) as work:
        make(work)
        with (
            pytest.raises(BundleError, match="another build is at work there; wait for it, or give another"),
            open_workspace(out, silent),
        ):
            pytest.fail("began")
        assert (work.draft / "engines/predictor.plan").is_file()
    with open_workspace(out, silent):
        pass


def die_at_work(out: Path) -> None:
    def die(folder: Path) -> Any:
        (folder / "half").write_text("half")
        os.kill(os.getpid(), 9)

    with open_workspace(out, silent) as work:
        make(work)
        work.piece("decoder", "engines", {"weights": "2"}, die)


def test_killed_build(out: Path) -> None:
    """Its lock is gone with it, what it finished is reused, and what it was at is told."""
    process = multiprocessing.get_context("fork").Process(target=die_at_work, args=(out,))
    process.start()
    process.join()
    assert process.exitcode == -9
    told: list[str] = []
    with open_workspace(out, told.append) as work:
        assert not make(work)[1]
        assert make(work, name="decoder", key={"weights": "2"})[1]
    assert told == [
        "the build before this one ended suddenly while at decoder",
        "predictor: reused, finished by the build before",
    ]


def test_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("notes")
    with (
        pytest.raises(BundleError, match=r"cannot be written .*; give a path you may write to"),
        open_workspace(tmp_path / "notes" / "bundle", silent),
    ):
        pytest.fail("began")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_parent_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with (
            pytest.raises(BundleError, match=r"cannot be written \(Permission denied\)"),
            open_workspace(tmp_path / "bundle", silent),
        ):
            pytest.fail("began")
    finally:
        tmp_path.chmod(0o700)
