"""Cache folders that are refused: every damage by the file's name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from flowturbo_trt.tests.training.caches import random_moments, write_cache
from flowturbo_trt.training.latent_cache import ShardedCache
from flowturbo_trt.training.source import DataError

SIZES = (3, 1, 0, 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cache of eight images in shards of SIZES."""
    return write_cache(tmp_path / "cache", random_moments(8, flip=True), SIZES)


SHARD = "shard-00001.safetensors"


def rewrite(folder: Path, **changes: Any) -> None:
    data = json.loads((folder / "cache.json").read_text())
    (folder / "cache.json").write_text(json.dumps(data | changes))


def change_shard(folder: Path, **changes: Any) -> None:
    shards = json.loads((folder / "cache.json").read_text())["shards"]
    shards[1] |= changes
    rewrite(folder, shards=shards)


def truncate(folder: Path) -> None:
    whole = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(whole[:-1])


def replace_shard(folder: Path) -> None:
    save_file(random_moments(2), folder / SHARD)
    change_shard(folder, bytes=(folder / SHARD).stat().st_size)


def unfinish(folder: Path) -> None:
    (folder / "cache.json").rename(folder / "encoding.json")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing shard": (
        lambda folder: (folder / SHARD).unlink(),
        rf"{SHARD}: is missing; restore it or encode",
    ),
    "cut shard": (truncate, rf"{SHARD}: has \d+ bytes, expected \d+; restore it or encode again"),
    "other shard": (
        replace_shard,
        rf"{SHARD}: holds 2 latents \(2, 4, 4\), cache\.json says 1 of \(2, 4, 4\)",
    ),
    "other shape": (
        lambda folder: rewrite(folder, latent=[2, 4, 5]),
        r"shard-00000\.safetensors: holds 3 latents \(2, 4, 4\), cache\.json says 3 of \(2, 4, 5\)",
    ),
    "newer": (
        lambda folder: rewrite(folder, version=2),
        r"cache\.json: is of version 2 of the format, this program reads version 1; upgrade flowturbo_trt",
    ),
    "unfinished": (unfinish, r"cache: is not finished; run the same `flowturbo_trt encode` again to go on"),
    "other JSON": (
        lambda folder: rewrite(folder, format="x"),
        r"cache\.json: does not describe a latent cache",
    ),
    "cut JSON": (
        lambda folder: (folder / "cache.json").write_text("{"),
        r"cache\.json: cannot be read as JSON",
    ),
    "path out": (
        lambda folder: change_shard(folder, file="../c.safetensors"),
        r"cache\.json: does not describe a latent cache \(a shard's name leaves the folder\)",
    ),
    "wrong type": (
        lambda folder: change_shard(folder, rows="1"),
        r"cache\.json: does not describe a latent cache \(rows is '1'\)",
    ),
    "field missing": (
        lambda folder: rewrite(folder, encoder={}),
        r"cache\.json: does not describe a latent cache \('file'\)",
    ),
    "wrong latent": (
        lambda folder: rewrite(folder, latent=[2, 4]),
        r"cache\.json: does not describe a latent cache",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folder(folder: Path, damage: str) -> None:
    harm, message = DAMAGE[damage]
    harm(folder)
    with pytest.raises(DataError, match=message) as caught:
        ShardedCache.load(folder)
    assert "\n" not in str(caught.value)


def test_altered_shard(folder: Path) -> None:
    """Of the same size, so that only its hash tells."""
    altered = load_file(folder / SHARD)
    altered["mean"] = altered["mean"].clone() + 1
    save_file(altered, folder / SHARD)
    ShardedCache.load(folder)
    with pytest.raises(DataError, match=rf"{SHARD}: its content is not what was written \(sha256 differs\)"):
        ShardedCache.load(folder, verify=True)
