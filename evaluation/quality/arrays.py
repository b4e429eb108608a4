"""Images in one array file, read from the disk as they are judged: ADM's files hold 10 GB."""

import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.evaluation.quality.images import ImageSetError, Pixels, Rows, check_shape, regroup

# What reading a damaged or foreign file may end in.
DAMAGED = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, RuntimeError)
IMAGES = "arr_0"
# Where ADM's sampler and `generate` put the classes of conditional samples.
_LABELS = ("arr_1", "label")
_BLOCK_BYTES = 4 << 20

Header = tuple[tuple[int, ...], np.dtype[Any]]


class ArrayFile:
    """The images of an .npz (`arr_0`, streamed from the archive) or an .npy (mapped into memory)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._shape, dtype = self._header()
        check_shape(path, self._shape, dtype)
        self.size = (self._shape[1], self._shape[2])
        self.labels = self._read_labels()

    def __len__(self) -> int:
        return self._shape[0]

    def batches(self, size: int, rows: Rows | None = None) -> Iterator[Pixels]:
        blocks = self._streamed() if self.path.suffix == ".npz" else self._mapped()
        for batch in regroup(blocks, size, rows):
            yield np.repeat(batch, 3, axis=3) if self._shape[3] == 1 else batch

    def _header(self) -> Header:
        if self.path.suffix == ".npy":
            with refusing(self.path), self.path.open("rb") as file:
                return _read_header(file, self.path.stat().st_size)
        if IMAGES not in names(self.path):
            raise ImageSetError(
                f"{self.path}: has no {IMAGES}, the images (N,H,W,3); it holds {', '.join(names(self.path))}"
            )
        with _member(self.path) as (file, size):
            return _read_header(file, size)

    def _streamed(self) -> Iterator[Pixels]:
        row = self._shape[1:]
        with _member(self.path) as (file, size):
            _read_header(file, size)
            for part in _parts(self._shape):
                data = file.read(part * math.prod(row))
                yield np.frombuffer(data, np.uint8).reshape(part, *row)

    def _mapped(self) -> Iterator[Pixels]:
        with refusing(self.path):
            images = np.load(self.path, mmap_mode="r", allow_pickle=False)
        start = 0
        for part in _parts(self._shape):
            yield np.array(images[start : start + part])
            start += part

    def _read_labels(self) -> NDArray[np.int64] | None:
        if self.path.suffix == ".npy":
            return None
        for name in _LABELS:
            if name in names(self.path):
                labels = load(self.path, name)
                if labels.shape == self._shape[:1] and labels.dtype.kind in "iu":
                    return labels.astype(np.int64)
        return None


def names(path: Path) -> tuple[str, ...]:
    """Return the names of the arrays in an .npz; raises ImageSetError if it is damaged."""
    with refusing(path), zipfile.ZipFile(path) as archive:
        return tuple(name.removesuffix(".npy") for name in archive.namelist())


def load(path: Path, name: str) -> NDArray[Any]:
    """Read an array of an .npz whole, never unpickling; raises ImageSetError."""
    with refusing(path), np.load(path, allow_pickle=False) as arrays:
        array: NDArray[Any] = arrays[name]
        return array


@contextmanager
def _member(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """Open the images of an .npz as a stream, and tell their bytes."""
    name = f"{IMAGES}.npy"
    with refusing(path), zipfile.ZipFile(path) as archive, archive.open(name) as file:
        yield file, archive.getinfo(name).file_size


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turn what a damaged file raises into ImageSetError."""
    try:
        yield
    except DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageSetError(f"{path}: cannot be read, damaged or no plain array file ({reason})") from error


def _parts(shape: Sequence[int]) -> Iterator[int]:
    """Yield how many images to read at a time, to some megabytes each."""
    at_once = max(1, _BLOCK_BYTES // math.prod(shape[1:]))
    for start in range(0, shape[0], at_once):
        yield min(at_once, shape[0] - start)


def _read_header(file: IO[bytes], size: int) -> Header:
    """Read an array's shape and dtype; raises ValueError for what is not plain and whole."""
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"array format {version} is not that of an image array")
    shape, fortran, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are refused; save the images as one uint8 array")
    if fortran:
        raise ValueError("its images are not one after another; save np.ascontiguousarray of them")
    if file.tell() + math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"truncated: it holds {size} bytes, which is not an array of shape {shape}")
    return shape, dtype
