"""Shards: the files a set of images is written in, each there as a whole or not at all (plan.py)."""

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.bundle.writing import sync
from flowturbo_trt.generation.plan import GenerationError, GenerationPlan, read_plan

SHARDS = "shards"
IMAGES = "images"
# What is being written; a run that is killed leaves it, and the next one removes it.
PARTIAL = ".partial"
SUFFIXES = {"npz": ".npz", "png": ".json"}
# The earliest that a zip archive can tell, so that it does not tell when it was made.
TIMESTAMP = (1980, 1, 1, 0, 0, 0)

Images = NDArray[np.uint8]


class ShardedImages:
    """The images of a finished set, in the order of their numbers; images are read when asked for."""

    def __init__(self, folder: Path, plan: GenerationPlan) -> None:
        self.folder = folder
        self.plan = plan

    @classmethod
    def open(cls, folder: str | Path) -> "ShardedImages":
        """Open a folder that `generate` wrote; raises GenerationError unless all images are there."""
        folder = Path(folder)
        plan = read_plan(folder)
        finished = finished_shards(folder, plan)
        if missing := plan.num - sum(len(plan.indices(shard)) for shard in finished):
            raise GenerationError(
                f"{folder}: {missing} of {plan.num} images are missing; run `generate` again to make them"
            )
        return cls(folder, plan)

    def __len__(self) -> int:
        return self.plan.num

    @property
    def labels(self) -> NDArray[np.int64]:
        """The labels (N)."""
        return np.array([self.plan.label_of(index) for index in range(len(self))], dtype=np.int64)

    def batches(self, size: int) -> Iterator[Images]:
        """Yield images (n,H,W,3), `size` at a time and what is left at the end.

        Raises GenerationError where a file is damaged.
        """
        held = np.empty((0, *self.plan.image, 3), dtype=np.uint8)
        for shard in range(self.plan.shards):
            held = np.concatenate([held, read_shard(self.folder, self.plan, shard)])
            whole = len(held) - len(held) % size
            for start in range(0, whole, size):
                yield held[start : start + size]
            held = held[whole:]
        if len(held):
            yield held


def shard_name(plan: GenerationPlan, shard: int) -> str:
    """Return the file, by its path in the folder, that is there once a shard is."""
    return f"{SHARDS}/{shard:05}{SUFFIXES[plan.format]}"


def image_name(plan: GenerationPlan, index: int) -> str:
    """Return the PNG file of an image by its path in the folder; by name they are in order."""
    return f"{IMAGES}/{index:0{max(6, len(str(plan.num - 1)))}}.png"


def encode_shard(plan: GenerationPlan, shard: int, images: Images) -> dict[str, bytes]:
    """Return the files of a shard, by path, for its images (n,H,W,3): the last one says that it is whole."""
    indices = plan.indices(shard)
    labels = [plan.label_of(index) for index in indices]
    seeds = [plan.seed_of(index) for index in indices]
    if plan.format == "npz":
        arrays: dict[str, NDArray[Any]] = {
            "arr_0": images,
            "label": np.array(labels, dtype=np.int64),
            "seed": np.array(seeds, dtype=np.uint64),
        }
        return {shard_name(plan, shard): _npz(arrays)}
    files = {
        image_name(plan, index): _png(image, label, seed)
        for index, image, label, seed in zip(indices, images, labels, seeds, strict=True)
    }
    record = json.dumps({"first": indices.start, "labels": labels, "seeds": seeds}) + "\n"
    return files | {shard_name(plan, shard): record.encode()}


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files, by their paths in a folder, so that the last one is there only if all others are.

    A file appears under its name when its content is safely on the disk, whatever happens meanwhile.
    """
    *images, last = files
    for names in (images, [last]):
        drafts = {folder / PARTIAL / Path(name).name: folder / name for name in names}
        for draft, target in drafts.items():
            draft.parent.mkdir(exist_ok=True)
            target.parent.mkdir(exist_ok=True)
            draft.write_bytes(files[target.relative_to(folder).as_posix()])
        sync(drafts)
        for draft, target in drafts.items():
            os.replace(draft, target)
        if drafts:
            # The names as well.
            sync([target])


def remove_partial(folder: Path) -> None:
    """Remove what was being written when this run, or one before that ended suddenly, was at it."""
    if (folder / PARTIAL).exists():
        shutil.rmtree(folder / PARTIAL)


def finished_shards(folder: Path, plan: GenerationPlan) -> set[int]:
    """Return the shards that are there as a whole."""
    present = {
        f"{part}/{path.name}"
        for part in (SHARDS, IMAGES)
        if (folder / part).is_dir()
        for path in (folder / part).iterdir()
    }
    return {
        shard
        for shard in range(plan.shards if present else 0)
        if shard_name(plan, shard) in present and _is_whole(folder, plan, shard, present)
    }


def _is_whole(folder: Path, plan: GenerationPlan, shard: int, present: set[str]) -> bool:
    indices = plan.indices(shard)
    if plan.format == "png":
        return all(image_name(plan, index) in present for index in indices)
    try:
        # The directory of an archive is at its end: a file that was cut short has none.
        with zipfile.ZipFile(folder / shard_name(plan, shard)) as archive, archive.open("arr_0.npy") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return False
    return shape == (len(indices), *plan.image, 3) and dtype == np.uint8


def read_shard(folder: Path, plan: GenerationPlan, shard: int) -> Images:
    """Read the images (n,H,W,3) of a shard; raises GenerationError where a file is damaged."""
    indices = plan.indices(shard)
    if plan.format == "npz":
        return _read(folder / shard_name(plan, shard), _read_npz, (len(indices), *plan.image, 3))
    names = [image_name(plan, index) for index in indices]
    return np.stack([_read(folder / name, _read_png, (*plan.image, 3)) for name in names])


def _read(path: Path, reader: Callable[[Path], NDArray[Any]], shape: tuple[int, ...]) -> Images:
    try:
        array = reader(path)
    # Pillow has a SyntaxError for files that are no PNG inside.
    except (OSError, ValueError, KeyError, EOFError, SyntaxError, zipfile.BadZipFile) as error:
        reason = str(error)
    else:
        if array.shape == shape and array.dtype == np.uint8:
            return array
        reason = f"{array.dtype} of shape {array.shape}, expected uint8 of shape {shape}"
    raise GenerationError(
        f"{path}: is damaged ({reason}); delete it, and `generate` with the same options makes it again"
    )


def _read_npz(path: Path) -> NDArray[Any]:
    with np.load(path, allow_pickle=False) as arrays:
        images: NDArray[Any] = arrays["arr_0"]
    return images


def _read_png(path: Path) -> NDArray[Any]:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image)


def _npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Write arrays as np.savez does, without compression, and the same bytes whenever it is done."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=TIMESTAMP)
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return buffer.getvalue()


def _png(image: Images, label: int, seed: int) -> bytes:
    # Imported here: sets of npz shards need no Pillow, and readers of plans nothing but NumPy.
    from PIL import Image, PngImagePlugin

    text = PngImagePlugin.PngInfo()
    text.add_text("label", str(label))
    text.add_text("seed", str(seed))
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()
