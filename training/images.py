"""Folders of images: which files, of which classes, in an order that is the same everywhere."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from flowturbo_trt.training.source import DataError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class ImageFolder:
    """Image files by path relative to `root`, with a label each.

    `classes` names the labels; it is empty where a file gave them. `ignored` files are no images by
    their names.
    """

    root: Path
    files: tuple[str, ...] = field(repr=False)
    labels: tuple[int, ...] = field(repr=False)
    classes: tuple[str, ...]
    ignored: int

    def __len__(self) -> int:
        return len(self.files)

    def listing_sha256(self) -> str:
        """Return a hash of paths, sizes and labels: it differs when files came, went or were replaced."""
        digest = hashlib.sha256()
        for file, label in zip(self.files, self.labels, strict=True):
            size = _size(self.root / file)
            digest.update(f"{file}\0{size}\0{label}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


def find_images(root: str | Path, labels: Path | None = None) -> ImageFolder:
    """List the images under a folder, sorted by class and path.

    Every sub-folder is a class, labelled in the order of their sorted names; its own sub-folders are
    part of it. A folder without sub-folders is one class, 0. `labels` is a JSON object that gives every
    image's label by relative path instead. Names that begin with a dot are passed over. Raises DataError.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give a folder of images, with a sub-folder for each class")
    try:
        found = sorted(_walk(root))
    except OSError as error:
        raise DataError(f"{root}: cannot be listed ({error})") from error
    files = [path for path in found if path.suffix.lower() in SUFFIXES]
    ignored = len(found) - len(files)
    if not files:
        raise DataError(f"{root}: holds no images ({' '.join(SUFFIXES)}), and {ignored} other files")
    names = tuple(map(str, files))
    if labels is not None:
        return ImageFolder(root, names, _given_labels(labels, names), (), ignored)
    classes = _classes(root, files)
    index = {name: label for label, name in enumerate(classes)}
    of_file = tuple(index[path.parts[0]] if len(path.parts) > 1 else 0 for path in files)
    return ImageFolder(root, names, of_file, classes or (root.name,), ignored)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        # A link to nowhere is in the list, and left out when it is read.
        return -1


def _walk(root: Path) -> Iterator[PurePosixPath]:
    for entry in os.scandir(root):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            yield PurePosixPath(entry.name)
            continue
        # The class folder itself may be a link; links below it could lead round in a circle.
        for folder, below, files in os.walk(entry.path, onerror=_fail):
            below[:] = [name for name in below if not name.startswith(".")]
            inside = PurePosixPath(Path(folder).relative_to(root).as_posix())
            yield from (inside / name for name in files if not name.startswith("."))


def _fail(error: OSError) -> None:
    raise error


def _classes(root: Path, files: list[PurePosixPath]) -> tuple[str, ...]:
    """Return the names of the class folders; none where the images lie in `root` itself."""
    loose = next((path for path in files if len(path.parts) == 1), None)
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    if not folders:
        return ()
    if loose is not None:
        raise DataError(f"{root / loose}: lies beside the class folders; move it into one of them")
    used = {path.parts[0] for path in files}
    if empty := [name for name in folders if name not in used]:
        # Left out, it would shift the labels of all classes after it.
        number = folders.index(empty[0])
        raise DataError(f"{root / empty[0]}: holds no images, and would be class {number}; remove it")
    return tuple(folders)


def _given_labels(file: Path, names: tuple[str, ...]) -> tuple[int, ...]:
    try:
        given: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as JSON ({error})") from error
    if not isinstance(given, dict):
        raise DataError(f"{file}: expected a JSON object of labels by relative path")
    for name in names:
        if type(given.get(name)) is not int or given[name] < 0:
            found = f"the label {given[name]!r}" if name in given else "no label"
            raise DataError(f"{file}: has {found} for {name}, expected an integer from 0 up")
    return tuple(given[name] for name in names)
