"""Latent caches: batches that depend on nothing but their step, and files that are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.training.data import DataError, LatentCache, step_generator


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """Moments that say which image they are of."""
    mean = torch.arange(7.0)[:, None, None, None].repeat(1, 2, 4, 4)
    return {"mean": mean, "std": torch.full_like(mean, 1e-4), "label": torch.arange(7)}


def saved(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def test_load(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    cache = LatentCache.load(saved(tmp_path / "c.safetensors", tensors))
    assert len(cache) == 7
    assert torch.equal(cache.mean, tensors["mean"])
    assert torch.equal(cache.label, tensors["label"])


def test_compact_types_are_widened(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    compact = {
        "mean": tensors["mean"].half(),
        "std": tensors["std"].half(),
        "label": tensors["label"].to(torch.uint8),
    }
    cache = LatentCache.load(saved(tmp_path / "c.safetensors", compact))
    assert (cache.mean.dtype, cache.std.dtype, cache.label.dtype) == (
        torch.float32,
        torch.float32,
        torch.int64,
    )


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


def test_generators_of_steps_streams_and_seeds_differ() -> None:
    keys = [(seed, step, stream) for seed in (0, 1, 2**23 - 1) for step in (0, 1, 2) for stream in range(3)]
    draws = {float(torch.rand((), generator=step_generator(*key), dtype=torch.float64)) for key in keys}
    assert len(draws) == len(keys)


@pytest.mark.parametrize("name", ["mean", "std", "label"])
def test_missing_tensor(tmp_path: Path, tensors: dict[str, Tensor], name: str) -> None:
    del tensors[name]
    with pytest.raises(DataError, match=f"no tensor .*{name}.*; a latent cache holds mean, std and label"):
        LatentCache.load(saved(tmp_path / "c.safetensors", tensors))


@pytest.mark.parametrize(
    "change",
    [
        {"std": torch.ones(7, 2, 4, 3)},
        {"label": torch.zeros(6, dtype=torch.int64)},
        {"mean": torch.ones(7, 32), "std": torch.ones(7, 32)},
    ],
)
def test_tensors_of_other_images(tmp_path: Path, tensors: dict[str, Tensor], change: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="do not describe the same images"):
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


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "c.safetensors", tmp_path):
        with pytest.raises(DataError, match="cannot be read as a latent cache"):
            LatentCache.load(path)
