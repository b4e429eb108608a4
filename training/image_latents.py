"""Latents on the fly: images encoded when a step needs them, without a cache."""

import os
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from flowturbo_trt.models.autoencoder import Encoder
from flowturbo_trt.models.checkpoints import Checkpoint
from flowturbo_trt.training.image_encoder import ImageEncoder, encoder_record
from flowturbo_trt.training.images import ImageFolder
from flowturbo_trt.training.pixels import ImageError
from flowturbo_trt.training.source import DataError, EncoderRecord, PosteriorSource

# On a CPU a batch gains nothing, and alone an image's latent is the same bits whoever shares its batch.
# On a GPU it may then differ by rounding.
BATCH = {"cpu": 1, "cuda": 16}


class ImageLatents(PosteriorSource):
    """The latents of a folder of images, `size` pixels wide, encoded anew at every visit.

    A latent cache of the same images, encoder and size gives the same latents. The encoder runs on the
    device that it is on; images that cannot be read raise DataError when their turn comes.
    """

    def __init__(
        self,
        images: ImageFolder,
        encoder: Encoder,
        checkpoint: Checkpoint,
        size: int,
        *,
        flip: bool = False,
        workers: int = os.cpu_count() or 1,
    ) -> None:
        self.flip = flip
        self._size = size
        self._images = images
        self._encoder = encoder
        self._checkpoint = checkpoint
        batch = BATCH[next(encoder.parameters()).device.type]
        self._reader = ImageEncoder(images, encoder, size, batch, workers)

    @cached_property
    def encoder(self) -> EncoderRecord:
        return encoder_record(self._encoder, self._checkpoint)

    @property
    def shape(self) -> tuple[int, int, int]:
        side = self._size // self._encoder.downsampling
        return self._encoder.latent_channels, side, side

    @cached_property
    def labels(self) -> Tensor:
        return torch.tensor(self._images.labels)

    @cached_property
    def provenance(self) -> Mapping[str, str]:
        return {
            "data": self._images.listing_sha256(),
            "encoder": self.encoder.weights_sha256,
            "scaling": f"{self.encoder.scaling_factor} {self.encoder.shift_factor}",
            "size": str(self._size),
            "flip": str(self.flip),
        }

    def moments(self, rows: Tensor, mirrored: Tensor) -> tuple[Tensor, Tensor]:
        found = []
        for row, pixels in zip(rows.tolist(), self._reader.read(rows.tolist()), strict=True):
            if isinstance(pixels, ImageError):
                raise DataError(
                    f"{self._images.root / self._images.files[row]}: {pixels}; remove it, or train on a "
                    "cache made by `flowturbo_trt encode`, which leaves it out"
                )
            found.append(pixels)
        images = torch.stack(found)
        images[mirrored] = images[mirrored].flip(-1)
        return self._reader.encode(images)
