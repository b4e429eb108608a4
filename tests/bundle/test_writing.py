"""Putting a bundle in its place: whole or not at all, and never over something else."""

import os
import shutil
from pathlib import Path

import pytest

from flowturbo_trt.bundle import writing
from flowturbo_trt.bundle.manifest import BundleError
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.bundle.writing import check_place, exchange, finish, recover


def write(folder: Path, marker: str) -> Path:
    """Write something that passes for a bundle."""
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(marker)
    (folder / f"{marker}.bin").write_text(marker)
    return folder


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def whole(marker: str) -> dict[str, str]:
    return {"manifest.json": marker, f"{marker}.bin": marker}


def siblings(path: Path) -> set[str]:
    return {sibling.name for sibling in path.parent.iterdir()}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The place of an older bundle."""
    return write(tmp_path / "place" / "bundle", "old")


@pytest.fixture
def draft(tmp_path: Path, out: Path) -> Path:
    return write(out.parent / "draft", "new")


@pytest.fixture(params=["at once", "in turn"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Exchange as this system can, and as one without renameat2 would."""
    if request.param == "in turn":
        monkeypatch.setattr(writing, "_exchange_at_once", lambda a, b: False)
    return str(request.param)


def test_new_place(draft: Path, tmp_path: Path) -> None:
    exchange(draft, tmp_path / "bundle")
    assert content(tmp_path / "bundle") == whole("new")
    assert not draft.exists()


def test_empty_folder(draft: Path, tmp_path: Path, way: str) -> None:
    (tmp_path / "bundle").mkdir()
    exchange(draft, tmp_path / "bundle")
    assert content(tmp_path / "bundle") == whole("new")


def test_older_bundle_is_replaced(draft: Path, out: Path, way: str) -> None:
    exchange(draft, out)
    assert content(out) == whole("new")
    assert siblings(out) == {"bundle"}


def test_this_system_exchanges_at_once(draft: Path, out: Path) -> None:
    """There is no moment without a bundle, whatever kills the process."""
    assert writing._exchange_at_once(draft, out)
    assert content(out) == whole("new")
    assert content(draft) == whole("old")


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_failure_between_the_two_renames(
    draft: Path, out: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """The older bundle has stepped aside and the new one cannot take its place: it steps back."""
    monkeypatch.setattr(writing, "_exchange_at_once", lambda a, b: False)
    rename, calls = os.rename, []

    def failing(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise error("between")
        rename(source, target)

    monkeypatch.setattr("os.rename", failing)
    with pytest.raises(error, match="between"):
        exchange(draft, out)
    assert content(out) == whole("old")


def test_kill_between_the_two_renames(draft: Path, out: Path) -> None:
    """What the next build finds then: the older bundle aside, nothing in its place."""
    os.rename(out, draft.with_name("draft.old"))
    recover(draft, out)
    assert content(out) == whole("old")
    assert siblings(out) == {"bundle", "draft"}


def test_kill_after_the_two_renames(draft: Path, out: Path) -> None:
    write(out.parent / "draft.old", "older")
    recover(draft, out)
    assert content(out) == whole("old")
    assert siblings(out) == {"bundle", "draft"}


def test_finished_draft(golden_bundle: Path, tmp_path: Path) -> None:
    """Exactly the manifest's files, readable by services under other users."""
    bundle = Bundle.open(golden_bundle)
    draft = tmp_path / "draft"
    for name in bundle.manifest.files:
        (draft / name).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.link(golden_bundle / name, draft / name)
    (draft / "onnx" / "of-an-earlier-build.onnx").write_text("")
    (draft / "engines" / "gone").mkdir(parents=True)
    draft.chmod(0o700)
    finish(draft, bundle.manifest)
    assert draft.stat().st_mode & 0o777 == 0o755
    assert not (draft / "engines" / "gone").exists()
    Bundle.open(draft).check_all()


@pytest.mark.parametrize("name", ["bundle", "a/b/bundle"])
def test_place_that_is_free(tmp_path: Path, name: str) -> None:
    assert check_place(tmp_path / name) == tmp_path / name
    assert (tmp_path / name).parent.is_dir()


@pytest.fixture
def bundle(golden_bundle: Path, tmp_path: Path) -> Path:
    """A real one, to be replaced."""
    return Path(shutil.copytree(golden_bundle, tmp_path / "real"))


def test_place_of_a_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle.parent)
    assert check_place(Path("real")) == bundle


@pytest.mark.parametrize("name", ["notes.txt", "onnx/stray.onnx"])
def test_bundle_with_something_beside_it(bundle: Path, name: str) -> None:
    """What no build made is not for a build to delete."""
    (bundle / name).write_text("mine")
    with pytest.raises(
        BundleError, match=f"holds {name}, which is not part of the bundle; move it elsewhere"
    ):
        check_place(bundle)


@pytest.mark.parametrize("text", ['{"name": "site"}', '{"format": "other", "files": {}}', "[]", "{", ""])
def test_other_things_have_manifests_too(tmp_path: Path, text: str) -> None:
    (tmp_path / "webapp").mkdir()
    (tmp_path / "webapp" / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match="is no bundle"):
        check_place(tmp_path / "webapp")


def test_link_to_a_bundle(bundle: Path) -> None:
    """Replacing the link would leave its target, replacing the target what others see through it."""
    (bundle.parent / "current").symlink_to(bundle)
    with pytest.raises(BundleError, match=r"is a link to .*/real; give that folder, or a new path"):
        check_place(bundle.parent / "current")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_bundle(bundle: Path) -> None:
    bundle.chmod(0o500)
    with pytest.raises(BundleError, match="is read-only; make it writable, or give another path"):
        check_place(bundle)


def test_older_bundle_with_read_only_folders_is_removed(draft: Path, out: Path) -> None:
    (out / "onnx").mkdir()
    (out / "onnx" / "x.onnx").write_text("x")
    (out / "onnx").chmod(0o500)
    exchange(draft, out)
    assert content(out) == whole("new")
    assert siblings(out) == {"bundle"}


def test_folder_that_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.jpg").write_text("photo")
    with pytest.raises(BundleError, match="is no bundle; give a new path"):
        check_place(tmp_path / "holiday")


def test_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("notes")
    with pytest.raises(BundleError, match="is no bundle"):
        check_place(tmp_path / "notes")


def test_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(BundleError, match="is a link"):
        check_place(tmp_path / "link")


@pytest.mark.parametrize(("inside", "name"), [(".", "."), ("onnx", "..")])
def test_folder_one_is_in(bundle: Path, monkeypatch: pytest.MonkeyPatch, inside: str, name: str) -> None:
    monkeypatch.chdir(bundle / inside)
    with pytest.raises(BundleError, match="cannot be replaced as a whole; give a new folder below it"):
        check_place(Path(name))


def test_parent_that_is_a_file(tmp_path: Path) -> None:
    """A place that even root cannot write to."""
    (tmp_path / "notes").write_text("notes")
    with pytest.raises(BundleError, match=r"cannot be written .*; give a path you may write to"):
        check_place(tmp_path / "notes" / "bundle")
