"""Latent caches: encoded images as posterior moments, one file or a folder of shards."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from flowturbo_trt.models.checkpoints import file_sha256
from flowturbo_trt.training.cache_format import CACHE_FILE, CacheDescription, read_description, read_index
from flowturbo_trt.training.source import DataError, EncoderRecord, PosteriorSource


@dataclass(frozen=True)
class LatentCache(PosteriorSource):
    """Posterior moments of N encoded images, already in the scale the flow model sees.

    mean and std (N,C,H,W) of any floating type, label (N) of any integer type. A training latent is
    mean + std·noise, in float32. The moments of the mirrored images may be there too; `flip` uses them.
    """

    mean: Tensor
    std: Tensor
    label: Tensor
    mirrored_mean: Tensor | None = None
    mirrored_std: Tensor | None = None
    flip: bool = False
    path: Path | None = None

    @classmethod
    def load(cls, path: str | Path) -> "LatentCache":
        """Map a safetensors file with tensors `mean`, `std` and `label` into memory.

        With `mirrored_mean` and `mirrored_std` in it, training visits mirrored images as well. Raises
        DataError.
        """
        path = Path(path)
        try:
            content = load_file(path)
            moments = content["mean"], content["std"], content["label"]
        except KeyError as error:
            raise DataError(f"{path}: no tensor {error}; a latent cache holds mean, std and label") from error
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: cannot be read as a latent cache ({error})") from error
        mirrored = content.get("mirrored_mean"), content.get("mirrored_std")
        cache = cls(*moments, *mirrored, flip=mirrored != (None, None), path=path)
        cache._check(path)
        return cache

    def _check(self, path: Path) -> None:
        moments = {"mean": self.mean, "std": self.std}
        if self.flip:
            if self.mirrored_mean is None or self.mirrored_std is None:
                raise DataError(f"{path}: holds one of mirrored_mean and mirrored_std, expected both or none")
            moments |= {"mirrored_mean": self.mirrored_mean, "mirrored_std": self.mirrored_std}
        shapes = {tuple(tensor.shape) for tensor in moments.values()}
        if len(shapes) > 1 or self.mean.ndim != 4 or self.label.shape != self.mean.shape[:1]:
            found = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in moments.items())
            raise DataError(
                f"{path}: {found} and label {tuple(self.label.shape)} do not describe the same images"
            )
        if not all(tensor.is_floating_point() for tensor in moments.values()):
            raise DataError(f"{path}: mean and std are not of floating types")
        if self.label.is_floating_point():
            raise DataError(f"{path}: label is {self.label.dtype}, expected integers")

    @property
    def encoder(self) -> None:
        return None

    @property
    def shape(self) -> tuple[int, int, int]:
        _, C, H, W = self.mean.shape
        return C, H, W

    @cached_property
    def labels(self) -> Tensor:
        return self.label.long()

    @cached_property
    def provenance(self) -> Mapping[str, str]:
        known = {} if self.path is None else {"data": file_sha256(self.path)}
        return known if self.mirrored_mean is None else known | {"flip": str(self.flip)}

    def moments(self, rows: Tensor, mirrored: Tensor) -> tuple[Tensor, Tensor]:
        # Widened here and not on loading, which would copy the whole file into memory.
        mean, std = self.mean[rows].float(), self.std[rows].float()
        if mirrored.any() and self.mirrored_mean is not None and self.mirrored_std is not None:
            mean[mirrored] = self.mirrored_mean[rows[mirrored]].float()
            std[mirrored] = self.mirrored_std[rows[mirrored]].float()
        return mean, std


@dataclass(frozen=True)
class ShardedCache(PosteriorSource):
    """A folder that `flowturbo_trt encode` wrote: its shards, one after the other, mapped into memory."""

    folder: Path
    description: CacheDescription
    shards: tuple[LatentCache, ...] = field(repr=False)
    sha256: str
    flip: bool

    @classmethod
    def load(cls, folder: str | Path, *, verify: bool = False) -> "ShardedCache":
        """Open a cache folder after checking its shards' sizes, and their hashes with `verify`.

        Raises DataError with the shard's name.
        """
        folder = Path(folder)
        description = read_description(folder)
        shards = []
        for record in description.shards:
            record.check(folder, hashed=verify)
            shard = LatentCache.load(folder / record.file)
            if shard.shape != description.latent or len(shard) != record.rows:
                raise DataError(
                    f"{folder / record.file}: holds {len(shard)} latents {shard.shape}, {CACHE_FILE} says "
                    f"{record.rows} of {description.latent}; restore it or encode again"
                )
            shards.append(shard)
        sha256 = file_sha256(folder / CACHE_FILE)
        return cls(folder, description, tuple(shards), sha256, flip=description.preparation.flip)

    @property
    def encoder(self) -> EncoderRecord:
        return self.description.encoder

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.description.latent

    @cached_property
    def labels(self) -> Tensor:
        return torch.cat([shard.labels for shard in self.shards])

    def image(self, row: int) -> str:
        """Return the path of the image that a row is of, relative to the folder that was encoded."""
        number = int(torch.searchsorted(self._ends, row, right=True))
        first = int(self._ends[number]) - len(self.shards[number])
        file = self.folder / Path(self.description.shards[number].file).with_suffix(".json")
        return read_index(file).images[row - first]

    @property
    def provenance(self) -> Mapping[str, str]:
        # The file names every shard's hash.
        return {"data": self.sha256, "encoder": self.encoder.weights_sha256, "flip": str(self.flip)}

    @cached_property
    def _ends(self) -> Tensor:
        return torch.tensor([len(shard) for shard in self.shards]).cumsum(0)

    def moments(self, rows: Tensor, mirrored: Tensor) -> tuple[Tensor, Tensor]:
        owner = torch.searchsorted(self._ends, rows.contiguous(), right=True)
        mean, std = torch.empty(2, len(rows), *self.shape)
        for index in owner.unique().tolist():
            shard, here = self.shards[index], owner == index
            first = int(self._ends[index]) - len(shard)
            mean[here], std[here] = shard.moments(rows[here] - first, mirrored[here])
        return mean, std
