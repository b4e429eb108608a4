"""Locks: one process at a time, and none that outlives its holder."""

import errno
import fcntl
import multiprocessing
import os
from pathlib import Path

import pytest

from flowturbo_trt.bundle.lock import held, hold


def test_one_at_a_time(tmp_path: Path) -> None:
    first = hold(tmp_path / "lock")
    assert first is not None
    assert hold(tmp_path / "lock") is None
    os.close(first)
    second = hold(tmp_path / "lock")
    assert second is not None
    os.close(second)


def die_holding(path: Path) -> None:
    hold(path)
    os.kill(os.getpid(), 9)


def test_death_gives_it_back(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=die_holding, args=(tmp_path / "lock",))
    process.start()
    process.join()
    lock = hold(tmp_path / "lock")
    assert lock is not None
    os.close(lock)


def test_file_removed_while_it_is_being_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock on a file that its holder has just removed would keep nobody out."""
    path = tmp_path / "lock"
    flock = fcntl.flock

    def remove_first(descriptor: int, operation: int) -> None:
        monkeypatch.setattr("fcntl.flock", flock)
        path.unlink()
        flock(descriptor, operation)

    monkeypatch.setattr("fcntl.flock", remove_first)
    lock = hold(path)
    assert lock is not None
    assert os.fstat(lock).st_ino == path.stat().st_ino
    assert hold(path) is None
    os.close(lock)


def test_block_gives_it_back(tmp_path: Path) -> None:
    """Whatever ends it; who does not have it leaves the file."""
    path = tmp_path / "lock"

    def be_interrupted() -> None:
        with held(path) as alone:
            assert alone
            with held(path) as another:
                assert not another
            assert path.exists()
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            be_interrupted()
        assert not path.exists()


def test_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work goes on there; any other failure is told."""

    def fail(number: int) -> None:
        def flock(descriptor: int, operation: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("fcntl.flock", flock)

    fail(errno.ENOSYS)
    with held(tmp_path / "lock") as alone:
        assert alone
    fail(errno.EIO)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="Input/output error"), held(tmp_path / "lock"):
        pass
    assert len(os.listdir("/proc/self/fd")) == before
