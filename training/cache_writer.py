"""Writing a cache folder shard by shard, so that whatever the moment it stops in, it goes on from there."""

import contextlib
import errno
import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

import flowturbo_trt
from flowturbo_trt.bundle.lock import held
from flowturbo_trt.models.checkpoints import file_sha256
from flowturbo_trt.training.cache_format import (
    BEGUN_FILE,
    CACHE_FILE,
    SKIPPED_FILE,
    CacheDescription,
    CacheIdentity,
    ShardIndex,
    ShardRecord,
    index_name,
    read_description,
    read_identity,
    read_index,
    shard_name,
    to_json,
)
from flowturbo_trt.training.files import replace_file
from flowturbo_trt.training.image_encoder import EncodeError
from flowturbo_trt.training.source import DataError

LOCK = ".lock"


class CacheWriter:
    """A cache folder in the making. A shard counts once its index is there, which is written last."""

    def __init__(self, folder: Path, identity: CacheIdentity) -> None:
        self._folder = folder
        self._identity = identity
        self._changed = False

    def finished(self, number: int, *, hashed: bool) -> ShardIndex | None:
        """Return the index of a shard that is there already, whole; None if it is to be made."""
        try:
            index = read_index(self._folder / index_name(number))
            if index.shard is not None:
                index.shard.check(self._folder, hashed=hashed)
        except DataError:
            return None
        return index

    def write(
        self,
        number: int,
        tensors: Mapping[str, Tensor],
        images: Sequence[str],
        skipped: Sequence[tuple[str, str]],
    ) -> ShardIndex:
        """Write a shard and its index; `tensors` is empty where no image was left."""
        shard = None
        if images:
            path = self._folder / shard_name(number)
            with _reported(self._folder):
                # Written by safetensors itself, the file would be readable by its owner alone.
                replace_file(path, lambda partial: partial.write_bytes(save(dict(tensors))))
                shard = ShardRecord(path.name, len(images), path.stat().st_size, file_sha256(path))
        index = ShardIndex(shard, tuple(images), tuple(skipped))
        self._write_text(index_name(number), json.dumps(asdict(index)) + "\n")
        return index

    def finish(self, indices: Sequence[ShardIndex]) -> CacheDescription:
        """Write the description, which makes a cache of the folder, and return it."""
        if not self._changed and (self._folder / CACHE_FILE).is_file():
            return read_description(self._folder)
        skipped = [entry for index in indices for entry in index.skipped]
        lines = [json.dumps({"path": path, "reason": reason}) + "\n" for path, reason in skipped]
        if lines:
            self._write_text(SKIPPED_FILE, "".join(lines))
        else:
            (self._folder / SKIPPED_FILE).unlink(missing_ok=True)
        shards = [asdict(index.shard) for index in indices if index.shard is not None]
        if not shards:
            raise EncodeError(f"none of {len(skipped)} images can be read; see {self._folder / SKIPPED_FILE}")
        extra: dict[str, Any] = {"shards": shards, "skipped": len(skipped), "made_with": _versions()}
        self._write_text(CACHE_FILE, to_json(self._identity, **extra))
        (self._folder / BEGUN_FILE).unlink(missing_ok=True)
        return read_description(self._folder)

    def begin(self) -> None:
        """Write down what the cache is to be of, or refuse what is there of something else."""
        files = [self._folder / CACHE_FILE, self._folder / BEGUN_FILE]
        known = next((file for file in files if file.is_file()), None)
        if known is not None:
            # What a kill has left.
            for partial in self._folder.glob("*.partial"):
                partial.unlink()
            if difference := read_identity(known).difference(self._identity):
                raise EncodeError(
                    f"{self._folder}: holds another encoding: {difference}; use the same images and options, "
                    "or another folder"
                )
        elif {path.name for path in self._folder.iterdir()} - {f"{BEGUN_FILE}.partial", LOCK}:
            raise EncodeError(f"{self._folder}: holds files that are no latent cache; give a new folder")
        else:
            self._write_text(BEGUN_FILE, to_json(self._identity))

    def _write_text(self, name: str, text: str) -> None:
        self._changed = True
        with _reported(self._folder):
            replace_file(self._folder / name, lambda partial: partial.write_text(text, encoding="utf-8"))


@contextlib.contextmanager
def open_writer(folder: Path, identity: CacheIdentity) -> Iterator[CacheWriter]:
    """Give the writer of a cache folder, to one process at a time; raises EncodeError and DataError."""
    with contextlib.ExitStack() as stack:
        with _reported(folder):
            folder.mkdir(parents=True, exist_ok=True)
            alone = stack.enter_context(held(folder / LOCK))
        if not alone:
            raise EncodeError(
                f"{folder}: another process is encoding into it; wait for it, or give another folder"
            )
        writer = CacheWriter(folder, identity)
        writer.begin()
        yield writer


@contextlib.contextmanager
def _reported(folder: Path) -> Iterator[None]:
    """Say what writing fails on; shards that are finished stay."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise EncodeError(
                f"{folder}: the disk is full; free some space and encode again, finished shards are kept"
            ) from error
        raise EncodeError(
            f"{folder}: cannot be written ({error.strerror}); give a folder you may write to"
        ) from error


def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "pillow")}
    return {"flowturbo_trt": flowturbo_trt.__version__, **found}
