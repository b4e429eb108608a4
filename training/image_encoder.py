"""Image files to posterior moments: read by threads ahead of the encoder, in the order asked for."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from flowturbo_trt.models.autoencoder import Encoder
from flowturbo_trt.models.checkpoints import Checkpoint
from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.training.images import ImageFolder
from flowturbo_trt.training.pixels import ImageError, read_pixels
from flowturbo_trt.training.source import DataError, EncoderRecord


class EncodeError(FlowTurboError):
    """Images cannot be encoded, or their latents not be written."""


class ImageEncoder:
    """The images of a folder through an encoder, `size` pixels wide, at most `batch` at once."""

    def __init__(self, images: ImageFolder, encoder: Encoder, size: int, batch: int, workers: int) -> None:
        self.images = images
        self._encoder = encoder
        self._size = size
        self._batch = batch
        self._device = next(encoder.parameters()).device
        # Pillow decodes and scales without holding Python's lock, so threads are enough.
        self._pool = ThreadPoolExecutor(workers)
        self._ahead = 2 * max(batch, workers)

    def __enter__(self) -> "ImageEncoder":
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def read(self, rows: Sequence[int]) -> Iterator[Tensor | ImageError]:
        """Yield the pixels of each image, or why there are none; raises DataError if no image is at fault."""
        waiting: deque[Future[Tensor | ImageError]] = deque()
        try:
            for row in rows:
                waiting.append(self._pool.submit(self._read, self.images.root / self.images.files[row]))
                if len(waiting) > self._ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _read(self, path: Path) -> Tensor | ImageError:
        try:
            return read_pixels(path, self._size, self._encoder.channels)
        except ImageError as error:
            return error
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}), by no fault of the file; go on when it can"
            ) from error

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and std (B,C,H,W) float32, in host memory, of pixels (B,K,size,size)."""
        try:
            parts = [self._encoder(part.to(self._device)) for part in pixels.split(self._batch)]
        except torch.OutOfMemoryError as error:
            raise EncodeError(
                f"{self._device}: out of memory for {self._batch} images of {self._size} pixels; "
                "use a smaller batch"
            ) from error
        mean, std = (torch.cat(moments).cpu() for moments in zip(*parts, strict=True))
        return mean, std


def encoder_record(encoder: Encoder, checkpoint: Checkpoint) -> EncoderRecord:
    """Describe an encoder that was read from a checkpoint."""
    return EncoderRecord(
        file=checkpoint.path.name,
        sha256=checkpoint.sha256,
        weights_sha256=encoder.weights_sha256(),
        channels=encoder.channels,
        scaling_factor=encoder.scaling_factor,
        shift_factor=encoder.shift_factor,
    )


def check_encoder(encoder: Encoder, size: int, path: Path) -> None:
    """Raise EncodeError if images cannot be made as the encoder reads them."""
    if encoder.channels not in (1, 3):
        raise EncodeError(f"{path}: reads {encoder.channels} channels, expected 1 (grey) or 3 (RGB)")
    if size < 1 or size % encoder.downsampling:
        raise EncodeError(f"size is {size}, expected a multiple of the encoder's {encoder.downsampling}")
