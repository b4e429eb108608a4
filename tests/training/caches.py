"""Image folders, autoencoders and latent caches small enough to make in a moment."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from flowturbo_trt.models.autoencoder import Encoder, load_encoder
from flowturbo_trt.models.checkpoints import Checkpoint
from flowturbo_trt.tests.bundles import save_autoencoder
from flowturbo_trt.training.cache_format import CacheIdentity, Preparation, SourceRecord
from flowturbo_trt.training.cache_writer import open_writer
from flowturbo_trt.training.encode import Encoded, EncodeOptions, encode_images
from flowturbo_trt.training.images import find_images
from flowturbo_trt.training.source import EncoderRecord

# Of the images below: 16 pixels to 8×8 latents, shards that end amid a class.
OPTIONS = EncodeOptions(size=16, dtype="fp32", shard_size=4, batch=3, workers=2)


def save_pictures(root: Path, classes: Sequence[str] = ("ant", "bee", "cat"), each: int = 3) -> Path:
    """Save noisy pictures of various sizes, a folder for each class."""
    random = np.random.default_rng(len(classes))
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(each):
            pixels = random.integers(0, 256, (18 + 7 * number, 35 - number, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def autoencoder(folder: Path, latent_channels: int = 2, channels: int = 3) -> tuple[Encoder, Checkpoint]:
    """Save a random autoencoder, and load its encoder."""
    encoder, checkpoint = load_encoder(save_autoencoder(folder, latent_channels, channels, spread=4))
    return encoder, checkpoint


def encoded(images: Path, made: tuple[Encoder, Checkpoint], out: Path, **changed: Any) -> Encoded:
    """Encode a folder with OPTIONS, some of them changed."""
    return encode_images(find_images(images), *made, out, EncodeOptions(**{**vars(OPTIONS), **changed}))


def random_moments(rows: int, *, flip: bool = False, seed: int = 0) -> dict[str, Tensor]:
    """Return the tensors of a cache of 2×4×4 latents, in which every row is another."""
    random = torch.Generator().manual_seed(seed)
    names = ["mean", "std", *(["mirrored_mean", "mirrored_std"] if flip else [])]
    moments = {name: torch.rand(rows, 2, 4, 4, generator=random) for name in names}
    return moments | {"label": torch.arange(rows) % 3}


def write_cache(folder: Path, moments: dict[str, Tensor], sizes: Sequence[int]) -> Path:
    """Write moments as a cache folder with shards of the given sizes; image n is called n.png."""
    identity = CacheIdentity(
        latent=(2, 4, 4),
        source=SourceRecord(sum(sizes), "5" * 64, ("a", "b", "c")),
        encoder=EncoderRecord("vae.pt", "6" * 64, "7" * 64, 3, 0.5, 0.0),
        preparation=Preparation(8, "mirrored_mean" in moments, "fp32", max(sizes)),
    )
    ends = np.cumsum(sizes).tolist()
    with open_writer(folder, identity) as writer:
        indices = []
        for number, (size, end) in enumerate(zip(sizes, ends, strict=True)):
            part = {name: tensor[end - size : end].contiguous() for name, tensor in moments.items()}
            images = [f"{row}.png" for row in range(end - size, end)]
            indices.append(writer.write(number, part if size else {}, images, []))
        writer.finish(indices)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def noise(height: int, width: int, channels: int = 3) -> NDArray[np.uint8]:
    """Return levels (H,W,K), or (H,W) of one channel, in which no two neighbours are alike."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def saved_image(path: Path, levels: NDArray[Any], **settings: Any) -> Path:
    Image.fromarray(levels).save(path, **settings)
    return path
