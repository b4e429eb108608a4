"""Latent caches: batches that depend on nothing but their step, files and folders that are refused."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.tests.training.caches import random_moments, write_cache
from flowturbo_trt.training.latent_cache import LatentCache, ShardedCache
from flowturbo_trt.training.source import DataError, step_generator

SIZES = (3, 1, 0, 4)


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """Moments that say which image they are of."""
    mean = torch.arange(7.0)[:, None, None, None].repeat(1, 2, 4, 4)
    return {"mean": mean, "std": torch.full_like(mean, 1e-4), "label": torch.arange(7)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cache of eight images in shards of SIZES."""
    return write_cache(tmp_path / "cache", random_moments(8, flip=True), SIZES)


def saved(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def test_load(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    cache = LatentCache.load(saved(tmp_path / "c.safetensors", tensors))
    assert len(cache) == 7
    assert cache.shape == (2, 4, 4)
    assert torch.equal(cache.mean, tensors["mean"])
    assert torch.equal(cache.labels, tensors["label"])
    assert cache.provenance.keys() == {"data"}
    other = LatentCache.load(saved(tmp_path / "d.safetensors", tensors | {"label": torch.zeros(7).long()}))
    assert other.provenance != cache.provenance


def test_compact_types_are_widened(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    compact = {
        "mean": tensors["mean"].half(),
        "std": tensors["std"].half(),
        "label": tensors["label"].to(torch.uint8),
    }
    latents, labels = LatentCache.load(saved(tmp_path / "c.safetensors", compact)).batch(3, 5, seed=1)
    assert (latents.dtype, labels.dtype) == (torch.float32, torch.int64)
    wide = {name: tensor.float() for name, tensor in compact.items()} | {"label": tensors["label"]}
    assert torch.equal(latents, LatentCache(**wide).batch(3, 5, seed=1)[0])


def test_an_epoch_visits_every_image_once(tensors: dict[str, Tensor]) -> None:
    """Of 7 images in batches of 3 one is left out, another one each time."""
    cache = LatentCache(**tensors)
    epochs = []
    for epoch in range(6):
        visited = torch.cat([cache.batch(2 * epoch + i, 3, seed=0)[1] for i in range(2)]).tolist()
        assert len(set(visited)) == 6
        epochs.append(visited)
    assert len({tuple(visited) for visited in epochs}) == 6
    assert {label for visited in epochs for label in visited} == set(range(7))


def test_latents_belong_to_their_labels(tensors: dict[str, Tensor]) -> None:
    latents, labels = LatentCache(**tensors).batch(3, 5, seed=1)
    assert latents.shape == (5, 2, 4, 4)
    assert torch.equal(latents.mean(dim=(1, 2, 3)).round().long(), labels)


def test_every_visit_samples_the_posterior_anew() -> None:
    mean, std = torch.full((1, 2, 4, 4), 3.0), torch.full((1, 2, 4, 4), 0.5)
    cache = LatentCache(mean, std, torch.zeros(1, dtype=torch.int64))
    visits = torch.cat([cache.batch(step, 1, seed=0)[0] for step in range(500)])
    assert not torch.equal(visits[0], visits[1])
    assert float(visits.mean()) == pytest.approx(3, abs=0.02)
    assert float(visits.std()) == pytest.approx(0.5, abs=0.02)


def test_a_batch_is_a_function_of_seed_and_step(tensors: dict[str, Tensor]) -> None:
    cache = LatentCache(**tensors)
    latents, labels = cache.batch(4, 3, seed=9)
    cache.batch(5, 3, seed=9)
    torch.manual_seed(123)
    again = cache.batch(4, 3, seed=9)
    assert torch.equal(latents, again[0])
    assert torch.equal(labels, again[1])
    for other in (cache.batch(5, 3, seed=9), cache.batch(4, 3, seed=10)):
        assert not torch.equal(latents, other[0])


def test_values_are_those_of_earlier_versions(cache: LatentCache) -> None:
    """Pinned: another stream of random numbers would continue a run with other data."""
    latents, labels = cache.batch(4, 3, seed=7)
    assert labels.tolist() == [0, 2, 0]
    expected = [-0.5645493268966675, 0.37197187542915344, -0.2121671438217163]
    assert latents[:, 0, 0, 0].tolist() == pytest.approx(expected, rel=1e-6)
    assert latents.double().sum().item() == pytest.approx(15.744813316036016, rel=1e-6)


def any_cache(tmp_path: Path, kind: str) -> LatentCache | ShardedCache:
    moments = random_moments(8, flip=kind != "unmirrored")
    if kind == "folder":
        return ShardedCache.load(write_cache(tmp_path / "cache", moments, SIZES))
    return LatentCache.load(saved(tmp_path / "c.safetensors", moments))


@pytest.mark.parametrize("kind", ["unmirrored", "mirrored", "folder"])
def test_rows_are_a_part_of_the_whole_batch(tmp_path: Path, kind: str) -> None:
    """Bit for bit, whichever part: what processes that share a batch rely on."""
    cache = any_cache(tmp_path, kind)
    for step in range(5):
        latents, labels = cache.batch(step, 6, seed=3)
        for rows in (slice(0, 3), slice(3, 6), slice(5, 6), slice(2, 2), slice(None), slice(0, 6, 2)):
            part = cache.batch(step, 6, seed=3, rows=rows)
            assert torch.equal(part[0], latents[rows])
            assert torch.equal(part[1], labels[rows])


def test_each_visit_takes_an_image_or_its_mirror_image() -> None:
    """By a coin of its own: order and noise are those of training without."""
    zeros, ones = torch.zeros(5, 1, 2, 2), torch.ones(5, 1, 2, 2)
    plain = LatentCache(zeros, 0 * zeros, torch.arange(5))
    both = replace(plain, mirrored_mean=ones, mirrored_std=0 * zeros, flip=True)
    values = torch.stack([both.batch(step, 5, seed=0)[0].mean(dim=(1, 2, 3)) for step in range(200)])
    assert set(values.unique().tolist()) == {0.0, 1.0}
    assert float(values.mean()) == pytest.approx(0.5, abs=0.05)
    for step in range(3):
        coins = torch.rand(5, generator=step_generator(0, step, stream=3)) < 0.5
        assert torch.equal(values[step] == 1, coins)
        assert torch.equal(both.batch(step, 5, seed=0)[1], plain.batch(step, 5, seed=0)[1])
    unmirrored = replace(both, flip=False)
    assert not any(unmirrored.batch(step, 5, seed=0)[0].any() for step in range(20))


def test_mirrored_moments_go_together() -> None:
    """Mean and spread are of the same view, of the same image."""
    moments = random_moments(6, flip=True)
    cache = LatentCache(**moments, flip=True)
    rows, mirrored = torch.tensor([4, 1, 4, 0]), torch.tensor([True, False, False, True])
    mean, std = cache.moments(rows, mirrored)
    for i, (row, turned) in enumerate(zip(rows.tolist(), mirrored.tolist(), strict=True)):
        prefix = "mirrored_" if turned else ""
        assert torch.equal(mean[i], moments[f"{prefix}mean"][row])
        assert torch.equal(std[i], moments[f"{prefix}std"][row])


def test_a_folder_is_one_cache(folder: Path) -> None:
    """The shards of a folder, one of them empty, give what one file would."""
    moments = random_moments(8, flip=True)
    cache, whole = ShardedCache.load(folder, verify=True), LatentCache(**moments, flip=True)
    assert len(cache) == 8
    assert cache.shape == (2, 4, 4)
    assert cache.flip
    assert torch.equal(cache.labels, moments["label"])
    for step in range(8):
        found, expected = cache.batch(step, 5, seed=1), whole.batch(step, 5, seed=1)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def test_rows_have_their_images(folder: Path) -> None:
    cache = ShardedCache.load(folder)
    assert [cache.image(row) for row in range(8)] == [f"{row}.png" for row in range(8)]


def test_provenance_of_a_folder(folder: Path, tmp_path: Path) -> None:
    cache = ShardedCache.load(folder)
    assert cache.provenance["encoder"] == "7" * 64
    other = write_cache(tmp_path / "other", random_moments(8, flip=True, seed=1), SIZES)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert ShardedCache.load(copy).provenance == cache.provenance
    assert ShardedCache.load(other).provenance["data"] != cache.provenance["data"]
    assert replace(cache, flip=False).provenance != cache.provenance


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_large_caches_stay_on_the_disk(tmp_path: Path) -> None:
    """400 MB, of which a batch takes a few pages; the file has holes, so that it is made in no time."""
    rows = 50_000
    header: dict[str, Any] = {"label": {"dtype": "I64", "shape": [rows], "data_offsets": [0, 8 * rows]}}
    end = 8 * rows
    for name in ("mean", "std"):
        header[name] = {"dtype": "F16", "shape": [rows, 2, 32, 32], "data_offsets": [end, end + 4096 * rows]}
        end += 4096 * rows
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (tmp_path / "c.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    before = resident()
    cache = LatentCache.load(tmp_path / "c.safetensors")
    for step in range(3):
        assert not cache.batch(step, 16, seed=0)[0].any()
    assert len(cache) == rows
    assert resident() - before < 50e6


@pytest.mark.parametrize("name", ["mean", "std", "label"])
def test_missing_tensor(tmp_path: Path, tensors: dict[str, Tensor], name: str) -> None:
    del tensors[name]
    with pytest.raises(DataError, match=f"no tensor .*{name}.*; a latent cache holds mean, std and label"):
        LatentCache.load(saved(tmp_path / "c.safetensors", tensors))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"std": torch.ones(7, 2, 4, 3)}, "do not describe the same images"),
        ({"label": torch.zeros(6, dtype=torch.int64)}, "do not describe the same images"),
        ({"mean": torch.ones(7, 32), "std": torch.ones(7, 32)}, "do not describe the same images"),
        (
            {"mirrored_mean": torch.ones(7, 2, 4, 3), "mirrored_std": torch.ones(7, 2, 4, 3)},
            r"mirrored_mean \(7, 2, 4, 3\).* do not describe the same images",
        ),
        ({"mirrored_std": torch.ones(7, 2, 4, 4)}, "one of mirrored_mean and mirrored_std, expected both"),
        ({"label": torch.zeros(7)}, "label is torch.float32, expected integers"),
        ({"mean": torch.ones(7, 2, 4, 4).int()}, "mean and std are not of floating types"),
    ],
)
def test_tensors_that_do_not_fit(
    tmp_path: Path, tensors: dict[str, Tensor], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        LatentCache.load(saved(tmp_path / "c.safetensors", tensors | change))


def test_unreadable_file(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = saved(tmp_path / "c.safetensors", tensors)
    whole = path.read_bytes()
    for size in (0, 4, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="cannot be read as a latent cache") as caught:
            LatentCache.load(path)
        assert isinstance(caught.value, FlowTurboError)
        assert "\n" not in str(caught.value)


def test_missing_file_and_other_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "c.safetensors", tmp_path):
        with pytest.raises(DataError, match="cannot be read as a latent cache"):
            LatentCache.load(path)
    with pytest.raises(DataError, match=r"cannot be read as a latent cache \(cache\.json not found\); make"):
        ShardedCache.load(tmp_path)


def test_generators_of_steps_streams_and_seeds_differ() -> None:
    keys = [(seed, step, stream) for seed in (0, 1, 2**23 - 1) for step in (0, 1, 2) for stream in range(4)]
    draws = {float(torch.rand((), generator=step_generator(*key), dtype=torch.float64)) for key in keys}
    assert len(draws) == len(keys)
