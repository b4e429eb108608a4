"""The latent cache: posterior parameters of the generator split, so that training never sees a pixel."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from flowturbo_trt.models.autoencoder import load_encoder

from .autoencoder import DIRECTORY, LIGHT
from .data import augment, load_split
from .loop import prepare

COPIES = 8


@torch.no_grad()
def encode_generator_split(file: Path, *, copies: int = COPIES, seed: int = 3) -> None:
    """Write `mean` and `std` (N,4,8,8) float32 and `label` (N) int64 as a safetensors file.

    Both are already multiplied by the autoencoder's scaling factor: a training latent is
    mean + std·noise. The first of the `copies` is the split as it is, the others are augmented.
    """
    generator = prepare(seed)
    digits = load_split("generator")
    encoder, _ = load_encoder(DIRECTORY)
    images = [digits.images, *(augment(digits.images, LIGHT, generator) for _ in range(copies - 1))]
    moments = [encoder(part) for part in torch.cat(images).split(250)]
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            "mean": torch.cat([mean for mean, _ in moments]),
            "std": torch.cat([std for _, std in moments]),
            "label": digits.labels.repeat(copies),
        },
        file,
    )
