"""Putting models together beside a repository: places, space, copies, and what is left of a killed run."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from flowturbo_trt.bundle.lock import held
from flowturbo_trt.bundle.manifest import BundleError
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.serving.triton import staging
from flowturbo_trt.serving.triton.staging import (
    RepositoryError,
    check_place,
    check_space,
    copy_bundle,
    staged,
)
from flowturbo_trt.tests.bundles import edit_manifest


def silent(what: str, done: int, total: int) -> None:
    pass


def test_place_behind_a_link(tmp_path: Path) -> None:
    """Beside the link may be another file system."""
    (tmp_path / "disk" / "models").mkdir(parents=True)
    (tmp_path / "models").symlink_to(tmp_path / "disk" / "models")
    assert check_place(tmp_path / "models") == tmp_path / "disk" / "models"


def make_file(path: Path) -> None:
    path.write_text("notes")


def make_bundle(path: Path) -> None:
    path.mkdir()
    (path / "manifest.json").write_text("{}")


@pytest.mark.parametrize(
    ("make", "words"), [(make_file, "is no folder; give that of"), (make_bundle, "is a bundle; give the fo")]
)
def test_place_of_something_else(tmp_path: Path, make: Callable[[Path], None], words: str) -> None:
    make(tmp_path / "models")
    with pytest.raises(RepositoryError, match=words):
        check_place(tmp_path / "models")


def test_mount_point() -> None:
    with pytest.raises(RepositoryError, match=r"/proc: is a mount point, .* give a folder below it"):
        check_place(Path("/proc"))


@pytest.mark.parametrize("which", ["models", "."])
def test_read_only_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    (tmp_path / "models").mkdir()
    closed = (tmp_path / which).resolve()
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != closed)
    with pytest.raises(RepositoryError, match=f"{closed}: is read-only; make it writable"):
        check_place(tmp_path / "models")


def test_place_that_cannot_be_made(tmp_path: Path) -> None:
    make_file(tmp_path / "notes")
    with (
        pytest.raises(RepositoryError, match=r"cannot be written .*; give a folder you may write to"),
        staged(tmp_path / "notes" / "deep" / "models", "digits"),
    ):
        pass


def test_nothing_is_left(tmp_path: Path) -> None:
    with staged(tmp_path / "models", "digits") as folder:
        assert folder.parent == tmp_path
        assert not list(folder.iterdir())
        (folder / "digits").mkdir()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, BundleError])
def test_nothing_is_left_of_a_failure(tmp_path: Path, error: type[BaseException]) -> None:
    def work() -> None:
        with staged(tmp_path / "models", "digits") as folder:
            (folder / "digits").mkdir()
            raise error("between")

    with pytest.raises(error, match="between"):
        work()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".models.digits.writing"
    (left / "digits" / "1").mkdir(parents=True)
    (left / "digits" / "1" / "half").write_text("half")
    (left / "digits" / "1").chmod(0o500)
    other = tmp_path / ".models.faces.writing"
    other.mkdir()
    with staged(tmp_path / "models", "digits") as folder:
        assert not list(folder.iterdir())
    assert list(tmp_path.iterdir()) == [other]


def test_two_at_once(tmp_path: Path) -> None:
    with (
        held(tmp_path / ".models.digits.lock"),
        pytest.raises(RepositoryError, match="another process is writing digits there; try again"),
        staged(tmp_path / "models", "digits"),
    ):
        pass
    with held(tmp_path / ".models.digits.lock"), staged(tmp_path / "models", "faces"):
        pass


def test_full_disk(tmp_path: Path) -> None:
    words = "the disk is full; what is served is as it was, free some space and write again"
    with pytest.raises(RepositoryError, match=words), staged(tmp_path / "models", "digits"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_disk_that_is_too_small(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(tiny_bundle)
    size = sum(record.bytes for record in bundle.manifest.files.values())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=size))
    check_space(bundle, tmp_path / "models")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=size - 1))
    with pytest.raises(RepositoryError, match=r"the copy of the bundle takes .* GB are free; free some"):
        check_space(bundle, tmp_path / "models")


def test_copy(tiny_bundle: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    bundle = Bundle.open(tiny_bundle)
    copy_bundle(bundle, tmp_path / "1" / "bundle", lambda what, done, total: told.append((done, total)))
    copy = Bundle.open(tmp_path / "1" / "bundle")
    copy.check_all()
    assert copy.manifest == bundle.manifest
    files = len(bundle.manifest.files) + 1
    assert told == [(done, files) for done in range(files + 1)]


def test_copy_can_be_read_by_a_server_of_another_user(tiny_copy: Path, tmp_path: Path) -> None:
    for path in tiny_copy.rglob("*"):
        if path.is_file():
            path.chmod(0o400)
    copy_bundle(Bundle.open(tiny_copy), tmp_path / "bundle", silent)
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in (tmp_path / "bundle").rglob("*"))


def test_copy_of_a_bundle_that_is_being_changed(tiny_copy: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_copy)
    edit_manifest(tiny_copy, lambda manifest: manifest.update(licence="another"))
    with pytest.raises(BundleError, match="was changed while it was copied; write again"):
        copy_bundle(bundle, tmp_path / "bundle", silent)


def test_copy_that_goes_wrong(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk may lie: what was written is read again."""

    def copyfile(source: Path, target: Path) -> None:
        content = bytearray(source.read_bytes())
        if source.suffix == ".onnx":
            content[100] ^= 1
        target.write_bytes(content)

    monkeypatch.setattr(staging.shutil, "copyfile", copyfile)
    with pytest.raises(BundleError, match="sha256 differs"):
        copy_bundle(Bundle.open(tiny_bundle), tmp_path / "bundle", silent)
