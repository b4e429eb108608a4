"""What training reads: latents with labels, the same for every step whoever asks."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from flowturbo_trt.sampling.errors import FlowTurboError


class DataError(FlowTurboError):
    """Training data cannot be read, or does not fit the model."""


@dataclass(frozen=True)
class EncoderRecord:
    """An encoder: its file, and a hash of its weights that does not depend on the layout of that file."""

    file: str
    sha256: str
    weights_sha256: str
    channels: int
    scaling_factor: float
    shift_factor: float


class LatentSource(Protocol):
    """Where a training's latents come from: a latent cache, or images encoded as they are needed."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""
        ...

    @property
    def labels(self) -> Tensor:
        """The label (N) int64 of every image."""
        ...

    @property
    def provenance(self) -> Mapping[str, str]:
        """What a run must not be resumed without: hashes of data and encoder, by name."""
        ...

    def __len__(self) -> int: ...

    def batch(self, step: int, size: int, seed: int, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Return `rows` of the global batch of `size` at a step: latents (B,C,H,W) float32, labels (B).

        A pure function of its arguments: a resumed run sees the data an uninterrupted one would, and
        processes that share a batch see each a part of what one process would see.
        """
        ...


class PosteriorSource(ABC):
    """A LatentSource that knows the posterior of every image, and samples it anew at every visit.

    An epoch is a seeded permutation of the images; what is left over of it after the last whole batch
    is left out. With `flip` every visit takes an image or its mirror image, each half of the time.
    """

    flip: bool

    @property
    @abstractmethod
    def encoder(self) -> EncoderRecord | None:
        """The encoder that made the latents, where that is known."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]: ...

    @property
    @abstractmethod
    def labels(self) -> Tensor: ...

    @property
    @abstractmethod
    def provenance(self) -> Mapping[str, str]: ...

    @abstractmethod
    def moments(self, rows: Tensor, mirrored: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and std (B,C,H,W) float32 of images `rows` (B) int64, mirrored where (B) bool says."""

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, step: int, size: int, seed: int, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Return `rows` of the global batch at a step (see LatentSource): mean + std·noise, and labels."""
        images = epoch_rows(len(self), step, size, seed)[rows]
        # Everything random is drawn for the whole batch, so that a part of it is a part of the same draw.
        noise = torch.randn((size, *self.shape), generator=step_generator(seed, step, stream=1))[rows]
        mirrored = torch.zeros(len(images), dtype=torch.bool)
        if self.flip:
            mirrored = (torch.rand(size, generator=step_generator(seed, step, stream=3)) < 0.5)[rows]
        mean, std = self.moments(images, mirrored)
        return mean + std * noise, self.labels[images]


def step_generator(seed: int, step: int, stream: int) -> torch.Generator:
    """Return a generator that depends on nothing but (seed, step, stream), so no state is saved.

    Streams: 0 the order of an epoch, 1 the posterior's noise, 2 the objective's draws, 3 flips.
    """
    # Hashed, as torch's CPU generator takes no more than the lower 32 bits of what it is given.
    (hashed,) = np.random.SeedSequence((seed, step, stream)).generate_state(1)
    return torch.Generator().manual_seed(int(hashed))


def epoch_rows(count: int, step: int, size: int, seed: int) -> Tensor:
    """Return which of `count` images (size) int64 make the batch of a step."""
    epoch, position = divmod(step, count // size)
    return _epoch_order(count, epoch, seed)[position * size : (position + 1) * size]


# Shuffling a million images takes longer than reading a batch: once an epoch is enough.
@functools.lru_cache(maxsize=2)
def _epoch_order(count: int, epoch: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=step_generator(seed, epoch, stream=0))
