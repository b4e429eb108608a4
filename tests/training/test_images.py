"""Folders of images: classes and order, labels from a file, and folders that are refused."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.training.images import find_images
from flowturbo_trt.training.source import DataError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def test_classes_are_sorted_folders(tmp_path: Path) -> None:
    """Names, not numbers: 10 comes before 9, and capitals before small letters, as in torchvision."""
    found = find_images(touch(tmp_path, "b/2.png", "9/x.png", "b/1.png", "10/x.jpg", "Z/x.png"))
    assert found.classes == ("10", "9", "Z", "b")
    assert found.files == ("10/x.jpg", "9/x.png", "Z/x.png", "b/1.png", "b/2.png")
    assert found.labels == (0, 1, 2, 3, 3)
    assert len(found) == 5


def test_classes_have_folders_of_their_own(tmp_path: Path) -> None:
    found = find_images(touch(tmp_path, "a/z.png", "a/y/1.png", "a/y/0/2.png", "b/1.png"))
    assert found.files == ("a/y/0/2.png", "a/y/1.png", "a/z.png", "b/1.png")
    assert found.labels == (0, 0, 0, 1)


def test_a_folder_without_classes_is_one(tmp_path: Path) -> None:
    found = find_images(touch(tmp_path / "photos", "2.png", "1.png"))
    assert (found.classes, found.labels, found.files) == (("photos",), (0, 0), ("1.png", "2.png"))


def test_names_that_are_images(tmp_path: Path) -> None:
    names = ["a.JPG", "b.jpeg", "c.Png", "d.webp", "e.bmp", "f.tif", "g.TIFF", "h.ppm", "i.pgm"]
    found = find_images(touch(tmp_path, *names, "readme.txt", "thumbs.db", ".hidden.png", ".git/x.png"))
    assert found.files == tuple(names)
    assert found.ignored == 2


def test_links(tmp_path: Path) -> None:
    """A class may be a link to a folder; one further down, here back to the top, is not followed."""
    root = touch(tmp_path / "images", "a/1.png")
    (root / "b").symlink_to(touch(tmp_path / "elsewhere", "1.png"))
    (root / "a" / "round").symlink_to(root)
    (root / "b" / "2.png").symlink_to(root / "a" / "1.png")
    assert find_images(root).files == ("a/1.png", "b/1.png", "b/2.png")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xfe.png")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).write_bytes(b"x")
    found = find_images(tmp_path)
    assert found.files == (f"a/{name}",)
    assert json.loads(json.dumps(found.files)) == [f"a/{name}"]
    assert len(found.listing_sha256()) == 64


def test_listing_is_of_names_sizes_and_labels(tmp_path: Path) -> None:
    root = touch(tmp_path / "images", "a/1.png", "b/1.png")
    before = find_images(root).listing_sha256()
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    assert find_images(copy).listing_sha256() == before
    changes: dict[str, Any] = {
        "size": lambda: (copy / "a/1.png").write_bytes(b"longer than before"),
        "name": lambda: (copy / "a/1.png").rename(copy / "a/2.png"),
        "more": lambda: touch(copy, "b/2.png"),
        "label": lambda: touch(copy, "aa/1.png"),
    }
    seen = {before}
    for change in changes.values():
        change()
        seen.add(find_images(copy).listing_sha256())
    assert len(seen) == 5


def test_labels_of_a_file(tmp_path: Path) -> None:
    root = touch(tmp_path / "images", "a/1.png", "b/1.png", "0.png")
    file = tmp_path / "labels.json"
    file.write_text(json.dumps({"a/1.png": 7, "b/1.png": 0, "0.png": 3, "gone.png": 1}))
    found = find_images(root, file)
    assert dict(zip(found.files, found.labels, strict=True)) == {"0.png": 3, "a/1.png": 7, "b/1.png": 0}
    assert found.classes == ()
    assert found.listing_sha256() != find_images(touch(tmp_path / "i", "a/1.png", "b/1.png")).listing_sha256()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a/1.png": 1}', r"labels\.json: has no label for b/1\.png, expected an integer"),
        ('{"a/1.png": 1, "b/1.png": -1}', r"has the label -1 for b/1\.png, expected an integer from 0 up"),
        ('{"a/1.png": true, "b/1.png": 1}', r"has the label True for a/1\.png"),
        ('{"a/1.png": "cat", "b/1.png": 1}', r"has the label 'cat' for a/1\.png"),
        ("[1, 2]", r"labels\.json: expected a JSON object of labels by relative path"),
        ("{", r"labels\.json: cannot be read as JSON"),
        (None, r"labels\.json: cannot be read as JSON"),
    ],
)
def test_label_files_that_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    root = touch(tmp_path / "images", "a/1.png", "b/1.png")
    file = tmp_path / "labels.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError, match=message):
        find_images(root, file)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), r"images: holds no images \(\.bmp .*\), and 0 other files"),
        (("a/notes.txt", "b/more.txt"), "images: holds no images .* and 2 other files"),
        (("a/1.png", "2.png"), r"images/2\.png: lies beside the class folders; move it into one of them"),
        (("a/1.png", "b/x.txt", "c/1.png"), "images/b: holds no images, and would be class 1; remove it"),
    ],
)
def test_folders_that_are_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=message):
        find_images(touch(tmp_path / "images", *names))


def test_no_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", touch(tmp_path, "file.png") / "file.png"):
        with pytest.raises(DataError, match=r": no such folder; give a folder of images"):
            find_images(path)
