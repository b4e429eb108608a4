"""Opening bundles: one test for each cause of rejection, all found before a file is used."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.bundle.manifest import BundleError
from flowturbo_trt.bundle.store import Bundle, sha256

GRAPH = "onnx/predictor.guided.onnx"
CONTENT = b"a stand-in for a graph\n"
HASH = "c19ef750bf78b644531ae2eeb510eaf251b446ba60b79dc79464550ca8d77e30"


def rejected(folder: Path, *words: str) -> None:
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(folder), *words):
        assert word in message


def rename_listed(folder: Path, name: str) -> None:
    """Let the manifest know the graph under another path."""
    text = (folder / "manifest.json").read_text(encoding="utf-8")
    (folder / "manifest.json").write_text(text.replace(json.dumps(GRAPH), json.dumps(name)), encoding="utf-8")


@pytest.mark.parametrize("as_type", [str, Path])
def test_opens(folder: Path, as_type: Callable[[Path], Any]) -> None:
    bundle = Bundle.open(as_type(folder))
    assert bundle.path == folder
    assert bundle.file(GRAPH).read_bytes() == CONTENT
    bundle.check_all()


def test_opens_by_relative_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    Bundle.open(".").check_all()
    monkeypatch.chdir(folder.parent)
    Bundle.open("bundle").check_all()


def test_opens_where_it_was_moved(folder: Path, tmp_path: Path) -> None:
    moved = shutil.move(folder, tmp_path / "elsewhere")
    Bundle.open(moved).check_all()


def test_unlisted_file_among_the_graphs(folder: Path) -> None:
    """A graph could name it as its weights, which no hash would cover."""
    (folder / "onnx" / "weights.bin").write_bytes(b"0")
    with pytest.raises(BundleError, match=r"weights\.bin: is not part of the bundle"):
        Bundle.open(folder)


def test_unlisted_files_do_no_harm(folder: Path) -> None:
    (folder / "README.txt").write_text("notes")
    Bundle.open(folder).check_all()


@pytest.mark.parametrize(
    "make", [lambda path: None, Path.mkdir, Path.touch], ids=["nothing", "empty", "file"]
)
def test_no_bundle(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "bundle")
    rejected(tmp_path / "bundle", "no bundle here", "manifest.json", "flowturbo_trt build")


def test_manifest_that_is_no_text(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b"\xff\xfe\x00{")
    rejected(folder, "cannot be read")


def test_manifest_errors_name_the_bundle(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")
    rejected(folder, "not that of a flowturbo_trt bundle")


@pytest.mark.parametrize(
    "name",
    [
        "/etc/hostname",
        "../manifest.json",
        "onnx/../../bundle/onnx/predictor.guided.onnx",
        "onnx/..",
        "..\\manifest.json",
        "onnx\\predictor.guided.onnx",
        "C:predictor.onnx",
        "file://predictor.onnx",
    ],
)
def test_path_that_leaves_the_bundle(folder: Path, name: str) -> None:
    rename_listed(folder, name)
    rejected(folder, repr(name), "leaves the bundle")


def test_missing_file(folder: Path) -> None:
    (folder / GRAPH).unlink()
    rejected(folder, GRAPH, "is missing", "rebuild")


def test_folder_instead_of_a_file(folder: Path) -> None:
    (folder / GRAPH).unlink()
    (folder / GRAPH).mkdir()
    rejected(folder, GRAPH, "is missing")


@pytest.mark.parametrize("content", [CONTENT[:-1], b"", CONTENT + b"x"])
def test_file_of_another_size(folder: Path, content: bytes) -> None:
    (folder / GRAPH).write_bytes(content)
    rejected(folder, GRAPH, f"has {len(content)} bytes, expected 23")


def test_file_that_is_a_link(folder: Path, tmp_path: Path) -> None:
    (folder / GRAPH).rename(tmp_path / "graph")
    (folder / GRAPH).symlink_to(tmp_path / "graph")
    rejected(folder, GRAPH, "is a link")


def test_folder_that_is_a_link(folder: Path, tmp_path: Path) -> None:
    (folder / "onnx").rename(tmp_path / "onnx")
    (folder / "onnx").symlink_to(tmp_path / "onnx")
    rejected(folder, "onnx", "is a link")


def test_link_within_the_bundle(folder: Path) -> None:
    (folder / GRAPH).rename(folder / "graph")
    (folder / GRAPH).symlink_to(folder / "graph")
    rejected(folder, GRAPH, "is a link")


def test_manifest_that_is_a_link(folder: Path, tmp_path: Path) -> None:
    (folder / "manifest.json").rename(tmp_path / "manifest.json")
    (folder / "manifest.json").symlink_to(tmp_path / "manifest.json")
    rejected(folder, "manifest.json", "is a link")


def test_link_to_a_bundle_opens(folder: Path, tmp_path: Path) -> None:
    """What is inside a bundle may not be a link; where it lies is the user's affair."""
    (tmp_path / "current").symlink_to(folder)
    Bundle.open(tmp_path / "current").check_all()


@pytest.mark.parametrize("check", [lambda bundle: bundle.file(GRAPH), Bundle.check_all])
def test_altered_file_of_equal_size(folder: Path, check: Callable[[Bundle], object]) -> None:
    (folder / GRAPH).write_bytes(b"b" + CONTENT[1:])
    bundle = Bundle.open(folder)
    for _ in range(2):
        with pytest.raises(BundleError, match=rf"{GRAPH}: .*sha256 differs.*rebuild"):
            check(bundle)


def test_hash_is_checked_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []

    def counted(path: Path) -> str:
        hashed.append(path)
        return sha256(path)

    monkeypatch.setattr("flowturbo_trt.bundle.store.sha256", counted)
    bundle = Bundle.open(folder)
    assert hashed == []
    for _ in range(3):
        bundle.file(GRAPH)
    bundle.check_all()
    assert hashed == [folder / GRAPH]


def test_no_file_is_read_before_all_are_checked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first file is whole, the second is not: neither is opened."""
    data = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    data["files"]["onnx/second.onnx"] = {"bytes": 1, "sha256": HASH}
    (folder / "manifest.json").write_text(json.dumps(data))
    monkeypatch.setattr(
        "flowturbo_trt.bundle.store.sha256", lambda path: pytest.fail(f"{path} was read too early")
    )
    rejected(folder, "second.onnx", "is missing")
