"""Where a training's latents come from, by what the user names, and whether they fit the model."""

from dataclasses import replace
from pathlib import Path

import torch

from flowturbo_trt.models.sit import SiTConfig
from flowturbo_trt.training.cache_format import BEGUN_FILE, CACHE_FILE
from flowturbo_trt.training.latent_cache import LatentCache as LatentCache
from flowturbo_trt.training.latent_cache import ShardedCache as ShardedCache
from flowturbo_trt.training.source import DataError as DataError
from flowturbo_trt.training.source import LatentSource, PosteriorSource


def open_source(
    data: str | Path,
    *,
    encoder: str | Path | None = None,
    size: int | None = None,
    flip: bool | None = None,
    device: str | torch.device = "cpu",
) -> LatentSource:
    """Open a latent cache (a file or a folder), or a folder of images to encode as they are needed.

    Images take an `encoder` (a path as for load_encoder) and a `size` in pixels, and are encoded on
    `device`; latents come back in host memory whatever it is. A cache folder is held against `encoder`
    and `size`. `flip` None is a cache as it was made, and images without mirror images. Raises
    DataError, EncodeError and CheckpointError.
    """
    data = Path(data)
    if data.is_dir() and not any((data / name).is_file() for name in (CACHE_FILE, BEGUN_FILE)):
        return _open_images(data, encoder, size, flip, device)
    cache = ShardedCache.load(data) if data.is_dir() else LatentCache.load(data)
    if isinstance(cache, LatentCache) and (encoder, size) != (None, None):
        raise DataError(f"{data}: does not tell its encoder and size; leave them out")
    if isinstance(cache, ShardedCache):
        made = cache.description.preparation.size
        if size not in (None, made):
            raise DataError(f"{data}: was made of images of {made} pixels, not {size}; encode them again")
        if encoder is not None:
            check_same_autoencoder(cache, encoder)
    if flip and not cache.flip:
        raise DataError(f"{data}: holds no mirrored images; encode them again with --flip")
    return cache if flip is None else replace(cache, flip=flip)


def _open_images(
    folder: Path, encoder: str | Path | None, size: int | None, flip: bool | None, device: str | torch.device
) -> LatentSource:
    # Imported here because diffusers takes seconds to import, which a cache does not need.
    from flowturbo_trt.models.autoencoder import load_encoder
    from flowturbo_trt.training.image_encoder import check_encoder
    from flowturbo_trt.training.image_latents import ImageLatents
    from flowturbo_trt.training.images import find_images

    images = find_images(folder)
    if encoder is None or size is None:
        raise DataError(
            f"{folder}: is a folder of {len(images)} images; give an encoder and a size to encode them as "
            "they are needed, or a latent cache made by `flowturbo_trt encode`"
        )
    network, checkpoint = load_encoder(encoder)
    check_encoder(network, size, checkpoint.path)
    return ImageLatents(images, network.to(device), checkpoint, size, flip=bool(flip))


def check_fits(source: LatentSource, config: SiTConfig, batch: int = 1) -> None:
    """Raise DataError unless latents and labels are a predictor's, and enough for one batch."""
    expected = (config.in_channels, config.input_size, config.input_size)
    if source.shape != expected:
        raise DataError(
            f"latents are {source.shape}, the predictor reads {expected}; encode images of its size with its "
            "autoencoder"
        )
    if len(source) < batch:
        raise DataError(
            f"the cache holds {len(source)} latents, fewer than one batch of {batch}; use a smaller one"
        )
    _check_labels(source, config.num_classes)


def _check_labels(source: LatentSource, classes: int) -> None:
    labels = source.labels
    outside = (labels < 0) | (labels >= classes)
    if not outside.any():
        return
    row = int(outside.long().argmax())
    first = source.image(row) if isinstance(source, ShardedCache) else f"row {row}"
    raise DataError(
        f"labels go from {int(labels.min())} to {int(labels.max())}, the predictor has {classes} classes; "
        f"{int(outside.sum())} of {len(source)} latents are not of 0 to {classes - 1}, the first is {first} "
        f"with label {int(labels[row])}; encode with other labels"
    )


def check_same_autoencoder(source: LatentSource, autoencoder: str | Path) -> None:
    """Raise DataError if latents are not those of the autoencoder at a path.

    Only its encoder is compared: autoencoders that differ in their decoder alone (ft-ema and ft-mse)
    are the same. A source that does not tell its encoder, as a single file does not, passes.
    """
    made_by = source.encoder if isinstance(source, PosteriorSource) else None
    if made_by is None:
        return
    from flowturbo_trt.models.autoencoder import load_encoder

    encoder, checkpoint = load_encoder(autoencoder)
    pairs = {
        "encoder weights": (made_by.weights_sha256[:12], encoder.weights_sha256()[:12]),
        "scaling_factor": (made_by.scaling_factor, encoder.scaling_factor),
        "shift_factor": (made_by.shift_factor, encoder.shift_factor),
    }
    for name, (then, now) in pairs.items():
        if then != now:
            raise DataError(
                f"{checkpoint.path}: is not the autoencoder that made the latents ({made_by.file}): {name} "
                f"{now}, expected {then}"
            )
