"""Files that commands read and write: arrays, lists of integers, images."""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.sampling.errors import FlowTurboError


class FileError(FlowTurboError):
    """A file that cannot be read or written."""


class IntegerList(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """Integers as `1,2,5-9`, or a .npy file of them."""

    name = "1,2,5-9|FILE.npy"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if not isinstance(value, str):
            # Configuration files have numbers and lists of their own.
            value = ",".join(map(str, value if isinstance(value, list) else [value]))
        try:
            return _read_integers(Path(value)) if value.endswith(".npy") else _parse_integers(value)
        except (FileError, ValueError) as error:
            self.fail(str(error), param, ctx)


def _read_integers(path: Path) -> list[int]:
    array = load_array(path)
    if array.ndim != 1 or len(array) == 0 or array.dtype.kind not in "iu":
        raise FileError(f"{path} holds {array.dtype} of shape {array.shape}, expected a list of integers")
    return [int(number) for number in array]


def _parse_integers(text: str) -> list[int]:
    ranges = [re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip()) for part in text.split(",")]
    bounds = [(int(match[1]), int(match[2] or match[1])) for match in ranges if match]
    if len(bounds) < len(ranges) or any(low > high for low, high in bounds):
        raise ValueError(f"{text!r} is not a list of integers like 1,2,5-9")
    return [number for low, high in bounds for number in range(low, high + 1)]


def count_up(seeds: Sequence[int], count: int) -> list[int]:
    """Let a single seed stand for as many as are needed, counting up from it."""
    return list(range(seeds[0], seeds[0] + count)) if len(seeds) == 1 else list(seeds)


def check_outputs(files: Sequence[Path], images: Path | None) -> None:
    """Refuse places that cannot be written before any work is done."""
    if not files:
        raise click.UsageError("nothing to write; give --out, --output-latents or --trajectory")
    if len(set(files)) < len(files):
        raise click.UsageError(f"two outputs would be written to {max(files, key=files.count)}")
    if images is not None and images.suffix not in (".png", ".npy"):
        raise click.UsageError(f"--out {images}: expected a name ending in .png or .npy")
    for file in files:
        folder = file.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK) or file.is_dir():
            raise FileError(f"{file}: cannot be written; give a file in a folder you may write to")


def load_array(path: Path) -> NDArray[Any]:
    """Read a .npy file; raises FileError."""
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FileError(f"{path}: cannot be read as a .npy file ({error})") from error
    if not isinstance(array, np.ndarray):
        raise FileError(f"{path}: holds several arrays, expected one (.npy)")
    return array


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write a .npy file under exactly this name."""
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def save_arrays(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Write a .npz file under exactly this name."""
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def write_images(images: NDArray[np.uint8], path: Path, columns: int | None) -> None:
    """Write images (N,H,W,3) as one array (.npy) or one picture (.png), row by row."""
    if path.suffix == ".npy":
        save_array(path, images)
        return
    from PIL import Image

    Image.fromarray(grid(images, columns or math.ceil(math.sqrt(len(images))))).save(path)


def grid(images: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Lay images (N,H,W,3) out in rows of `columns`, the rest black: (R·H,columns·W,3)."""
    N, H, W, _ = images.shape
    rows = -(-N // columns)
    cells = np.zeros((rows * columns, H, W, 3), dtype=np.uint8)
    cells[:N] = images
    return cells.reshape(rows, columns, H, W, 3).swapaxes(1, 2).reshape(rows * H, columns * W, 3)
