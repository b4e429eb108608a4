"""Encoding: the values, the description, what is left out."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from flowturbo_trt.models.autoencoder import Encoder, load_autoencoder
from flowturbo_trt.models.checkpoints import Checkpoint
from flowturbo_trt.tests.training.caches import autoencoder, encoded, files_of
from flowturbo_trt.training.encode import EncodeOptions
from flowturbo_trt.training.latent_cache import LatentCache, ShardedCache
from flowturbo_trt.training.pixels import read_pixels

Made = tuple[Encoder, Checkpoint]


READABLE = [f"{name}/{number}.png" for name in ("ant", "bee", "cat") for number in range(3)]
READABLE.remove("bee/1.png")


def tensors_of(cache: ShardedCache) -> dict[str, Tensor]:
    shards = [load_file(cache.folder / shard.file) for shard in cache.description.shards]
    return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}


@pytest.mark.parametrize("flip", [False, True])
def test_moments_are_the_posteriors(pictures: Path, vae: Path, made: Made, out: Path, flip: bool) -> None:
    """Of diffusers' own autoencoder, scaled; the mirrored ones of the mirrored pixels."""
    encoded(pictures, made, out, flip=flip)
    cache = ShardedCache.load(out, verify=True)
    found = tensors_of(cache)
    assert [cache.image(row) for row in range(len(cache))] == READABLE
    assert found["label"].tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    reference, _ = load_autoencoder(vae)
    pixels = torch.stack([read_pixels(pictures / name, 16, 3) for name in READABLE])
    views = {"": pixels, "mirrored_": pixels.flip(-1)} if flip else {"": pixels}
    assert found.keys() == {f"{view}{kind}" for view in views for kind in ("mean", "std")} | {"label"}
    for view, images in views.items():
        with torch.no_grad():
            posterior = reference.encode(images).latent_dist
        torch.testing.assert_close(found[f"{view}mean"], posterior.mean * 0.3, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found[f"{view}std"], posterior.std * 0.3, rtol=1e-4, atol=1e-6)


def test_description(pictures: Path, made: Made, out: Path) -> None:
    result = encoded(pictures, made, out, flip=True)
    assert result.shards_made == 3
    description = ShardedCache.load(out).description
    assert description == result.cache
    assert (description.rows, description.skipped, description.latent) == (8, 2, (2, 8, 8))
    assert [shard.rows for shard in description.shards] == [4, 2, 2]
    assert (description.source.images, description.source.classes) == (10, ("ant", "bee", "cat"))
    encoder, checkpoint = made
    assert description.encoder.weights_sha256 == encoder.weights_sha256()
    assert (description.encoder.sha256, description.encoder.scaling_factor) == (checkpoint.sha256, 0.3)
    assert set(files_of(out)) == {
        "cache.json",
        "skipped.jsonl",
        *(f"shard-0000{n}.{kind}" for n in range(3) for kind in ("safetensors", "json")),
    }
    assert {path.stat().st_mode & 0o044 for path in out.iterdir()} == {0o044}


def test_images_left_out_are_listed(pictures: Path, made: Made, out: Path) -> None:
    encoded(pictures, made, out)
    rows = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == ["bee/1.png", "bee/3.png"]
    assert "truncated" in rows[0]["reason"]
    assert rows[1]["reason"] == "is no image that Pillow knows"


def test_every_shard_is_a_cache_by_itself(pictures: Path, made: Made, out: Path) -> None:
    encoded(pictures, made, out, flip=True)
    part = LatentCache.load(out / "shard-00001.safetensors")
    assert part.labels.tolist() == [1, 2]
    assert part.flip


def test_compact_moments_are_the_rounded_ones(pictures: Path, made: Made, out: Path, tmp_path: Path) -> None:
    assert EncodeOptions().dtype == "fp16"
    encoded(pictures, made, out)
    encoded(pictures, made, tmp_path / "half", dtype="fp16")
    wide, half = tensors_of(ShardedCache.load(out)), tensors_of(ShardedCache.load(tmp_path / "half"))
    for name in ("mean", "std"):
        assert half[name].dtype == torch.float16
        assert torch.equal(half[name], wide[name].half())


def test_threads_and_batches_do_not_matter(pictures: Path, made: Made, out: Path, tmp_path: Path) -> None:
    """Threads not at all, batches to the rounding of the encoder."""
    encoded(pictures, made, out)
    for workers in (1, 7):
        encoded(pictures, made, tmp_path / f"{workers}", workers=workers)
        assert files_of(tmp_path / f"{workers}") == files_of(out)
    encoded(pictures, made, tmp_path / "one", batch=1)
    one, three = tensors_of(ShardedCache.load(tmp_path / "one")), tensors_of(ShardedCache.load(out))
    torch.testing.assert_close(one["mean"], three["mean"], rtol=1e-4, atol=1e-6)
    assert torch.equal(one["label"], three["label"])


@pytest.mark.parametrize("channels", [1, 3])
def test_encoders_of_one_and_three_channels(pictures: Path, out: Path, tmp_path: Path, channels: int) -> None:
    encoded(pictures, autoencoder(tmp_path / "vae", 4, channels), out)
    assert ShardedCache.load(out).shape == (4, 8, 8)
