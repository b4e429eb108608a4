"""Sets of images to judge: folders of pictures, arrays in one file, what `generate` wrote."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flowturbo_trt.sampling.errors import FlowTurboError

Pixels = NDArray[np.uint8]
Rows = NDArray[np.int64]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
ARRAYS = (".npz", ".npy")
# Eight bits a channel and nothing that has to be laid over a background.
_MODES = ("1", "L", "P", "RGB")
_OPAQUE = 255


class ImageSetError(FlowTurboError):
    """A set of images that cannot be read, is empty, or holds images of several sizes."""


class ImageSet(Protocol):
    """Images in a fixed order; `size` is (H,W), `labels` are the classes (N) where the set knows them."""

    @property
    def path(self) -> Path: ...
    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def labels(self) -> NDArray[np.int64] | None: ...
    def __len__(self) -> int: ...
    def batches(self, size: int, rows: Rows | None = None) -> Iterator[Pixels]:
        """Yield images (B,H,W,3) uint8 in order: all, or those of increasing `rows`; raises ImageSetError."""


def open_images(path: Path) -> ImageSet:
    """Open a folder of pictures, a folder that `generate` wrote, or an array file; raises ImageSetError.

    A picture is PNG, JPEG or another of SUFFIXES, at any depth. An array file is an .npz with `arr_0`, as
    ADM's samples are (Dhariwal and Nichol, 2021), or an .npy: (N,H,W,3) uint8.
    """
    if path.is_dir():
        from flowturbo_trt.evaluation.quality.generated import GeneratedImages, is_generated

        return GeneratedImages(path) if is_generated(path) else PictureFolder(path)
    if not path.exists():
        raise ImageSetError(f"{path}: no such file or folder; give a folder of images, an .npz or an .npy")
    if path.suffix not in ARRAYS:
        raise ImageSetError(
            f"{path}: is a single file; give the folder it is in, or an .npz or .npy of all images"
        )
    from flowturbo_trt.evaluation.quality.arrays import ArrayFile

    return ArrayFile(path)


class PictureFolder:
    """The pictures below a folder, in the order of their names."""

    labels = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = sorted(
            file
            for file in path.rglob("*")
            # Hidden files beside pictures are a file manager's notes about them.
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
        )
        if not self._files:
            raise ImageSetError(f"{path}: holds no images; expected files ending in {', '.join(SUFFIXES)}")
        height, width, _ = read_picture(self._files[0]).shape
        self.size = (height, width)

    def __len__(self) -> int:
        return len(self._files)

    def batches(self, size: int, rows: Rows | None = None) -> Iterator[Pixels]:
        files = self._files if rows is None else [self._files[row] for row in rows]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            # A batch at a time: a pool given all files would decode ahead of who judges them.
            for start in range(0, len(files), size):
                yield np.stack(list(pool.map(self._read, files[start : start + size])))

    def _read(self, file: Path) -> Pixels:
        picture = read_picture(file)
        if picture.shape[:2] != self.size:
            raise ImageSetError(
                f"{file}: is {_by(picture.shape[:2])}, {self._files[0].name} {_by(self.size)}; all images of "
                "a set must have one size"
            )
        return picture


def read_picture(file: Path) -> Pixels:
    """Decode a picture of 8 bits a channel to (H,W,3), grey ones repeated; raises ImageSetError."""
    try:
        with Image.open(file) as picture:
            picture.load()
            if picture.mode in ("LA", "RGBA") and picture.getchannel("A").getextrema() != (_OPAQUE, _OPAQUE):
                raise ImageSetError(f"{file}: is transparent in part; flatten it onto a background first")
            if picture.mode not in (*_MODES, "LA", "RGBA") or "transparency" in picture.info:
                see_through = " with transparency" if "transparency" in picture.info else ""
                raise ImageSetError(
                    f"{file}: its pixels are {picture.mode}{see_through}; convert it to 8-bit RGB"
                )
            return np.asarray(picture.convert("RGB"))
    except ImageSetError:
        raise
    # What a decoder raises on damaged bytes depends on the format and the damage.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ImageSetError(
            f"{file}: cannot be decoded, damaged? ({reason}); replace it or remove it"
        ) from error


def _by(size: Sequence[int]) -> str:
    return f"{size[0]}×{size[1]}"


def check_shape(path: Path, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
    """Raise ImageSetError unless an array holds images: (N,H,W,3) or (N,H,W,1), uint8, at least one."""
    if len(shape) != 4 or shape[3] not in (1, 3) or dtype != np.uint8:
        raise ImageSetError(f"{path}: holds {dtype} of shape {shape}; expected images (N,H,W,3) in uint8")
    if 0 in shape:
        raise ImageSetError(f"{path}: holds no images, its shape is {shape}")


def regroup(blocks: Iterable[Pixels], size: int, rows: Rows | None) -> Iterator[Pixels]:
    """Cut consecutive blocks of images into batches of `size`, of all or of increasing `rows` alone."""
    held: list[Pixels] = []
    start = 0
    for block in blocks:
        if rows is not None:
            first, last = np.searchsorted(rows, [start, start + len(block)])
            chosen = block[rows[first:last] - start]
        else:
            chosen = block
        start += len(block)
        held.append(chosen)
        if sum(map(len, held)) >= size:
            whole = np.concatenate(held) if len(held) > 1 else held[0]
            full = len(whole) // size * size
            yield from np.split(whole[:full], full // size)
            held = [whole[full:]]
    if any(map(len, held)):
        yield np.concatenate(held)
