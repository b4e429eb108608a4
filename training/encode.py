"""From a folder of images to a latent cache: encoded in batches, written in shards, resumable."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flowturbo_trt.models.autoencoder import Encoder
from flowturbo_trt.models.checkpoints import Checkpoint
from flowturbo_trt.training.cache_format import (
    CacheDescription,
    CacheIdentity,
    Preparation,
    ShardIndex,
    SourceRecord,
)
from flowturbo_trt.training.cache_writer import CacheWriter, open_writer
from flowturbo_trt.training.image_encoder import EncodeError, ImageEncoder, check_encoder, encoder_record
from flowturbo_trt.training.images import ImageFolder
from flowturbo_trt.training.pixels import ImageError

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class EncodeOptions:
    """How images are encoded. What makes the latents (size, flip, dtype, shard_size) cannot change midway.

    Moments are kept in fp16 by default, half the size: it rounds a value by 5e-4 of itself at most, far
    less than the noise that training adds to it. A shard is held in memory, twice while it is written.
    """

    size: int = 256
    flip: bool = False
    dtype: str = "fp16"
    shard_size: int = 10_000
    batch: int = 16
    workers: int = os.cpu_count() or 1
    strict: bool = False
    check: bool = False

    def __post_init__(self) -> None:
        for name in ("size", "shard_size", "batch", "workers"):
            if getattr(self, name) < 1:
                raise EncodeError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.dtype not in DTYPES:
            raise EncodeError(f"dtype is {self.dtype!r}, expected {' or '.join(DTYPES)}")


@dataclass(frozen=True)
class Encoded:
    """A finished cache, and how many of its shards this run has made."""

    cache: CacheDescription
    shards_made: int


def encode_images(
    images: ImageFolder,
    encoder: Encoder,
    checkpoint: Checkpoint,
    out: Path,
    options: EncodeOptions,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Encoded:
    """Encode a folder of images into the cache folder `out`, going on with what it holds.

    The encoder, of the file `checkpoint`, is in float32 on the device that is to do it. A shard whose
    file is missing or of another size is made anew, with `check` also one of another content. Images
    that cannot be read are left out and listed. Raises EncodeError, with `strict` also for them, and
    DataError for a cache that cannot be read.
    """
    check_encoder(encoder, options.size, checkpoint.path)
    if out.resolve().is_relative_to(images.root.resolve()):
        raise EncodeError(f"{out}: lies among the images of {images.root}; give a folder elsewhere")
    N, S = len(images), options.shard_size
    shards = [range(first, min(first + S, N)) for first in range(0, N, S)]
    indices, made = [], 0
    with (
        open_writer(out, _identity(images, encoder, checkpoint, options)) as writer,
        ImageEncoder(images, encoder, options.size, options.batch, options.workers) as reader,
    ):
        for number, rows in enumerate(shards):
            index = writer.finished(number, hashed=options.check)
            if index is None:
                index = _make_shard(number, rows, reader, writer, options, progress)
                made += 1
            _check_strict(index, images.root, options)
            progress(f"shard {number}", rows.stop, N)
            indices.append(index)
        return Encoded(writer.finish(indices), made)


def _make_shard(
    number: int,
    rows: range,
    reader: ImageEncoder,
    writer: CacheWriter,
    options: EncodeOptions,
    progress: Callable[[str, int, int], None],
) -> ShardIndex:
    """Encode one shard's images; its batches begin with it, so that it does not matter what came before."""
    shard = _Shard(reader, options)
    for row, pixels in zip(rows, reader.read(rows), strict=True):
        progress(f"shard {number}", row, len(reader.images))
        shard.add(row, pixels)
    shard.encode_waiting()
    return writer.write(number, shard.tensors(), shard.files, shard.skipped)


class _Shard:
    """The rows of a shard in the making."""

    def __init__(self, reader: ImageEncoder, options: EncodeOptions) -> None:
        self._reader = reader
        self._options = options
        self._waiting: list[Tensor] = []
        self._parts: list[dict[str, Tensor]] = []
        self._labels: list[int] = []
        self.files: list[str] = []
        self.skipped: list[tuple[str, str]] = []

    def add(self, row: int, pixels: Tensor | ImageError) -> None:
        images = self._reader.images
        if isinstance(pixels, ImageError):
            self.skipped.append((images.files[row], str(pixels)))
            return
        self._waiting.append(pixels)
        self._labels.append(images.labels[row])
        self.files.append(images.files[row])
        if len(self._waiting) == self._options.batch:
            self.encode_waiting()

    def encode_waiting(self) -> None:
        if not self._waiting:
            return
        pixels = torch.stack(self._waiting)
        moments = dict(zip(("mean", "std"), self._reader.encode(pixels), strict=True))
        if self._options.flip:
            mirrored = self._reader.encode(pixels.flip(-1))
            moments |= dict(zip(("mirrored_mean", "mirrored_std"), mirrored, strict=True))
        part = {name: tensor.to(DTYPES[self._options.dtype]) for name, tensor in moments.items()}
        self._check_finite(part)
        self._parts.append(part)
        self._waiting.clear()

    def tensors(self) -> dict[str, Tensor]:
        """Return the shard's tensors; none if no image could be read."""
        if not self._parts:
            return {}
        names = self._parts[0]
        moments = {name: torch.cat([part[name] for part in self._parts]).contiguous() for name in names}
        return moments | {"label": torch.tensor(self._labels)}

    def _check_finite(self, part: dict[str, Tensor]) -> None:
        for tensor in part.values():
            finite = tensor.isfinite().flatten(1).all(dim=1)
            if not finite.all():
                file = self.files[int(finite.long().argmin()) - len(self._waiting)]
                raise EncodeError(
                    f"{self._reader.images.root / file}: its latent is not finite in {self._options.dtype}; "
                    f"{'use fp32' if self._options.dtype == 'fp16' else 'the encoder is unusable'}"
                )


def _check_strict(index: ShardIndex, root: Path, options: EncodeOptions) -> None:
    if options.strict and index.skipped:
        path, reason = index.skipped[0]
        raise EncodeError(f"{root / path}: {reason}; remove it, or leave such images out without --strict")


def _identity(
    images: ImageFolder, encoder: Encoder, checkpoint: Checkpoint, options: EncodeOptions
) -> CacheIdentity:
    side = options.size // encoder.downsampling
    return CacheIdentity(
        latent=(encoder.latent_channels, side, side),
        source=SourceRecord(len(images), images.listing_sha256(), images.classes),
        encoder=encoder_record(encoder, checkpoint),
        preparation=Preparation(options.size, options.flip, options.dtype, options.shard_size),
    )
