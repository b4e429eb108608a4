"""Latent caches: encoded images as posterior moments, sampled anew at every visit."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from flowturbo_trt.sampling.errors import FlowTurboError


class DataError(FlowTurboError):
    """A latent cache cannot be read or does not fit the model."""


@dataclass(frozen=True)
class LatentCache:
    """Posterior moments of N encoded images, already in the scale the flow model sees.

    mean and std (N,C,H,W) float32, label (N) int64. A training latent is mean + std·noise.
    """

    mean: Tensor
    std: Tensor
    label: Tensor

    @classmethod
    def load(cls, path: str | Path) -> "LatentCache":
        """Read a safetensors file with tensors `mean`, `std` and `label`."""
        try:
            content = load_file(path)
            cache = cls(content["mean"].float(), content["std"].float(), content["label"].long())
        except KeyError as error:
            raise DataError(f"{path}: no tensor {error}; a latent cache holds mean, std and label") from error
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: cannot be read as a latent cache ({error})") from error
        rows = cache.mean.shape[:1]
        if cache.mean.shape != cache.std.shape or cache.mean.ndim != 4 or cache.label.shape != rows:
            raise DataError(
                f"{path}: mean {tuple(cache.mean.shape)}, std {tuple(cache.std.shape)} and label "
                f"{tuple(cache.label.shape)} do not describe the same images"
            )
        return cache

    def __len__(self) -> int:
        return len(self.label)

    def batch(self, step: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return latents and labels of the given step: an epoch is a seeded permutation.

        A pure function of its arguments, so a resumed run sees the data an uninterrupted one would.
        """
        epoch, position = divmod(step, len(self) // size)
        order = torch.randperm(len(self), generator=step_generator(seed, epoch, stream=0))
        rows = order[position * size : (position + 1) * size]
        noise = torch.randn(self.mean[rows].shape, generator=step_generator(seed, step, stream=1))
        return self.mean[rows] + self.std[rows] * noise, self.label[rows]


def step_generator(seed: int, step: int, stream: int) -> torch.Generator:
    """Return a generator that depends on nothing but (seed, step, stream), so no state is saved."""
    # Hashed, as torch's CPU generator takes no more than the lower 32 bits of what it is given.
    (hashed,) = np.random.SeedSequence((seed, step, stream)).generate_state(1)
    return torch.Generator().manual_seed(int(hashed))
