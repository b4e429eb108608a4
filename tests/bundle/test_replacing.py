"""Writing bundles: whole or not at all, and never over something else."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from flowturbo_trt.bundle.manifest import BundleError
from flowturbo_trt.bundle.store import Bundle, replacing


def write(draft: Path, marker: str) -> None:
    """Write something that passes for a bundle."""
    (draft / "manifest.json").write_text(marker)
    (draft / f"{marker}.bin").write_text(marker)


def fail_halfway(out: Path, error: BaseException) -> None:
    with replacing(out) as draft:
        write(draft, "new")
        raise error


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def whole(marker: str) -> dict[str, str]:
    return {"manifest.json": marker, f"{marker}.bin": marker}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The place of an older bundle."""
    path = tmp_path / "place" / "bundle"
    path.mkdir(parents=True)
    write(path, "old")
    return path


def siblings(out: Path) -> list[str]:
    return [path.name for path in out.parent.iterdir()]


@pytest.mark.parametrize("name", ["bundle", "a/b/bundle"])
def test_new_place(tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    with replacing(out) as draft:
        assert draft.parent == out.parent
        assert not out.exists()
        write(draft, "new")
    assert content(out) == whole("new")
    assert siblings(out) == ["bundle"]


def test_others_may_read_it(tmp_path: Path) -> None:
    """The draft is private while it grows; a finished bundle is for services under other users."""
    with replacing(tmp_path / "bundle") as draft:
        assert draft.stat().st_mode & 0o077 == 0
        write(draft, "new")
    assert (tmp_path / "bundle").stat().st_mode & 0o777 == 0o755


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with replacing(tmp_path / "bundle") as draft:
        write(draft, "new")
    assert content(tmp_path / "bundle") == whole("new")


def test_older_bundle_is_replaced_at_the_end(out: Path) -> None:
    with replacing(out) as draft:
        write(draft, "new")
        assert content(out) == whole("old")
    assert content(out) == whole("new")
    assert siblings(out) == ["bundle"]


def test_link_is_replaced_and_its_target_stays(out: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(out)
    with replacing(link) as draft:
        write(draft, "new")
    assert not link.is_symlink()
    assert content(link) == whole("new")
    assert content(out) == whole("old")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, BundleError])
def test_failure_leaves_the_older_bundle(out: Path, error: type[BaseException]) -> None:
    with pytest.raises(error, match="halfway"):
        fail_halfway(out, error("halfway"))
    assert content(out) == whole("old")
    assert siblings(out) == ["bundle"]


def test_failure_leaves_nothing_new(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        fail_halfway(tmp_path / "bundle", RuntimeError())
    assert list(tmp_path.iterdir()) == []


def test_disk_full(out: Path) -> None:
    with pytest.raises(BundleError, match=rf"{out}: the disk is full; nothing was changed$"):
        fail_halfway(out, OSError(errno.ENOSPC, "No space left on device"))
    assert content(out) == whole("old")
    assert siblings(out) == ["bundle"]


def test_other_errors_of_the_system_pass(out: Path) -> None:
    with pytest.raises(OSError, match="Input/output error"):
        fail_halfway(out, OSError(errno.EIO, "Input/output error"))
    assert content(out) == whole("old")


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_failure_between_the_two_renames(
    out: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """The older bundle has stepped aside and the new one cannot take its place: it steps back."""
    rename, calls = os.rename, []

    def failing(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise error("between")
        rename(source, target)

    monkeypatch.setattr("os.rename", failing)
    with pytest.raises(error, match="between"), replacing(out) as draft:
        write(draft, "new")
    assert content(out) == whole("old")
    assert siblings(out) == ["bundle"]


def test_folder_that_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.jpg").write_text("photo")
    with pytest.raises(BundleError, match="is no bundle; give a new path"), replacing(tmp_path / "holiday"):
        pytest.fail("began")
    assert content(tmp_path / "holiday") == {"photo.jpg": "photo"}


def test_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("notes")
    with pytest.raises(BundleError, match="is no bundle"), replacing(tmp_path / "notes"):
        pytest.fail("began")
    assert (tmp_path / "notes").read_text() == "notes"


def test_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(BundleError, match="is no bundle"), replacing(tmp_path / "link"):
        pytest.fail("began")


def test_parent_that_is_a_file(tmp_path: Path) -> None:
    """A place that even root cannot write to."""
    (tmp_path / "notes").write_text("notes")
    with (
        pytest.raises(BundleError, match=r"cannot be written .*; give a path you may write to"),
        replacing(tmp_path / "notes" / "bundle"),
    ):
        pytest.fail("began")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_parent_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with (
            pytest.raises(BundleError, match=r"cannot be written \(Permission denied\)"),
            replacing(tmp_path / "bundle"),
        ):
            pytest.fail("began")
    finally:
        tmp_path.chmod(0o700)


def test_what_was_written_opens(folder: Path, tmp_path: Path) -> None:
    with replacing(tmp_path / "new") as draft:
        shutil.copytree(folder, draft, dirs_exist_ok=True)
    Bundle.open(tmp_path / "new").check_all()
