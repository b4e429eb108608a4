"""Latents on the fly: those of a cache, without one."""

from pathlib import Path

import pytest
import torch

from flowturbo_trt.models.autoencoder import Encoder
from flowturbo_trt.models.checkpoints import Checkpoint
from flowturbo_trt.tests.training.caches import autoencoder, encoded, save_pictures
from flowturbo_trt.training.image_latents import ImageLatents
from flowturbo_trt.training.images import find_images
from flowturbo_trt.training.latent_cache import ShardedCache
from flowturbo_trt.training.source import DataError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Encoder, Checkpoint]:
    return autoencoder(tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.mark.parametrize("flip", [False, True])
def test_latents_are_those_of_the_cache(
    pictures: Path, made: tuple[Encoder, Checkpoint], tmp_path: Path, flip: bool
) -> None:
    """For the same images, order, noise and mirror images: to the rounding of the encoder."""
    encoded(pictures, made, tmp_path / "cache", flip=flip)
    cache = ShardedCache.load(tmp_path / "cache")
    images = ImageLatents(find_images(pictures), *made, 16, flip=flip, workers=2)
    assert images.shape == cache.shape
    assert len(images) == len(cache) == 9
    assert torch.equal(images.labels, cache.labels)
    for step in range(4):
        found, expected = images.batch(step, 4, seed=2), cache.batch(step, 4, seed=2)
        torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-6)
        assert torch.equal(found[1], expected[1])


def test_an_encoder_in_training_leaves_no_graph(pictures: Path, tmp_path: Path) -> None:
    encoder, checkpoint = autoencoder(tmp_path / "vae")
    images = ImageLatents(find_images(pictures), encoder.requires_grad_(True), checkpoint, 16)
    assert not images.batch(0, 2, seed=0)[0].requires_grad


def test_rows_are_a_part_of_the_whole_batch(pictures: Path, made: tuple[Encoder, Checkpoint]) -> None:
    """Bit for bit on a CPU, where every image is encoded alone."""
    images = ImageLatents(find_images(pictures), *made, 16, flip=True, workers=2)
    latents, labels = images.batch(1, 6, seed=0)
    for rows in (slice(0, 3), slice(3, 6), slice(5, 6)):
        part = images.batch(1, 6, seed=0, rows=rows)
        assert torch.equal(part[0], latents[rows])
        assert torch.equal(part[1], labels[rows])


def test_provenance_tells_what_makes_the_latents(made: tuple[Encoder, Checkpoint], tmp_path: Path) -> None:
    root = save_pictures(tmp_path / "pictures")
    seen = []
    for size, flip in ((16, False), (32, False), (16, True)):
        seen.append(ImageLatents(find_images(root), *made, size, flip=flip).provenance)
    other, checkpoint = autoencoder(tmp_path / "vae")
    other.scaling_factor = 0.5
    seen.append(ImageLatents(find_images(root), other, checkpoint, 16).provenance)
    other.scaling_factor = 0.3
    other.quant_conv.bias.data += 1
    seen.append(ImageLatents(find_images(root), other, checkpoint, 16).provenance)
    (root / "ant" / "0.png").rename(root / "ant" / "9.png")
    seen.append(ImageLatents(find_images(root), *made, 16).provenance)
    assert len({tuple(sorted(provenance.items())) for provenance in seen}) == 6
    assert ImageLatents(find_images(root), *made, 16, workers=7).provenance == seen[-1]


def test_image_that_cannot_be_read(made: tuple[Encoder, Checkpoint], tmp_path: Path) -> None:
    root = save_pictures(tmp_path / "pictures")
    (root / "bee" / "1.png").write_text("no image")
    images = ImageLatents(find_images(root), *made, 16)
    message = r"bee/1\.png: is no image that Pillow knows; remove it, or train on a cache made by"
    with pytest.raises(DataError, match=message):
        images.batch(0, 9, seed=0)
