"""Training: it learns, averages, records, and refuses what it cannot train."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flowturbo_trt.models.checkpoints import load_checkpoint, load_refiner
from flowturbo_trt.models.sit import SiT
from flowturbo_trt.tests.training.runs import contents, rows_recorded, trained_weights
from flowturbo_trt.training.config import TrainingConfig, TrainingError
from flowturbo_trt.training.data import DataError, LatentCache
from flowturbo_trt.training.train_refiner import train_refiner

CONFIG = TrainingConfig(steps=6, batch=4, learning_rate=1e-2, checkpoint_every=4)


def test_loss_falls(tmp_path: Path, predictor: SiT, cache: LatentCache) -> None:
    losses: list[float] = []
    config = replace(CONFIG, steps=100, batch=8, learning_rate=5e-3, checkpoint_every=1000)
    train_refiner(predictor, cache, config, tmp_path, lambda step, loss: losses.append(loss))
    assert len(losses) == 100
    first, last = sum(losses[:20]) / 20, sum(losses[-20:]) / 20
    assert last < 0.6 * first


def test_result_is_a_refiner_of_the_predictor(tmp_path: Path, predictor: SiT, cache: LatentCache) -> None:
    path = train_refiner(predictor, cache, replace(CONFIG, depth=2), tmp_path / "a" / "b")
    assert path == tmp_path / "a" / "b" / "refiner.safetensors"
    refiner = load_refiner(load_checkpoint(path), predictor.config)
    assert refiner.config == replace(predictor.config, depth=2)
    x = torch.randn(1, 2, 4, 4)
    assert refiner(x, torch.rand(1), torch.tensor([1]), x).any()


def test_average_follows_the_ramp(tmp_path: Path, predictor: SiT, cache: LatentCache) -> None:
    """With decay min(ema, (1 + n)/(10 + n)) after step n, starting from the untrained weights."""
    torch.manual_seed(CONFIG.seed)
    average = SiT(predictor.config, refines=True).state_dict()
    for step in range(1, 7):
        config = replace(CONFIG, steps=step, ema=0.4)
        path = train_refiner(predictor, cache, config, tmp_path)
        raw, saved = trained_weights(tmp_path), load_file(path)
        decay = min(0.4, (1 + step) / (10 + step))
        average = {name: decay * average[name] + (1 - decay) * raw[name] for name in average}
        assert saved.keys() == average.keys()
        for name, expected in average.items():
            torch.testing.assert_close(saved[name], expected, rtol=1e-4, atol=1e-6)
        moving = raw["final_layer.linear.weight"] - saved["final_layer.linear.weight"]
        assert moving.abs().max() > 1e-4


def test_same_seed_same_weights_and_another_differ(
    tmp_path: Path, predictor: SiT, cache: LatentCache
) -> None:
    torch.manual_seed(77)
    before = torch.get_rng_state()
    first = train_refiner(predictor, cache, CONFIG, tmp_path / "1")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(78)
    second = train_refiner(predictor, cache, CONFIG, tmp_path / "2")
    other = train_refiner(predictor, cache, replace(CONFIG, seed=1), tmp_path / "3")
    assert first.read_bytes() == second.read_bytes() != other.read_bytes()


def test_position_and_predictor_stay_as_they_are(tmp_path: Path, predictor: SiT, cache: LatentCache) -> None:
    before = {name: tensor.clone() for name, tensor in predictor.state_dict().items()}
    path = train_refiner(predictor, cache, replace(CONFIG, weight_decay=0.5), tmp_path)
    for name, tensor in predictor.state_dict().items():
        assert torch.equal(tensor, before[name])
    torch.testing.assert_close(load_file(path)["pos_embed"], before["pos_embed"], rtol=0, atol=1e-6)


def test_metrics_have_a_row_per_step(tmp_path: Path, predictor: SiT, cache: LatentCache) -> None:
    """With the learning rate and the gradient's norm, and no times: resumed runs have the same rows."""
    seen: list[tuple[int, float]] = []
    config = replace(CONFIG, warmup=4)
    train_refiner(predictor, cache, config, tmp_path, lambda step, loss: seen.append((step, loss)))
    rows = rows_recorded(tmp_path)
    assert [(row["step"], row["loss"]) for row in rows] == seen
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert {tuple(row) for row in rows} == {("step", "loss", "learning_rate", "gradient_norm")}
    assert [row["learning_rate"] for row in rows] == pytest.approx([2.5e-3, 5e-3, 7.5e-3, 1e-2, 1e-2, 1e-2])
    assert all(row["gradient_norm"] > 0 for row in rows)


def test_files_of_a_run(tmp_path: Path, predictor: SiT, cache: LatentCache) -> None:
    train_refiner(predictor, cache, CONFIG, tmp_path)
    checkpoints = {f"checkpoints/step-{step:08}.safetensors" for step in (4, 6)}
    assert set(contents(tmp_path)) == checkpoints | {"refiner.safetensors", "metrics.jsonl"}


def test_bf16_autocast_trains_float32_weights(tmp_path: Path, predictor: SiT, cache: LatentCache) -> None:
    path = train_refiner(predictor, cache, replace(CONFIG, precision="bf16"), tmp_path / "bf16")
    weights = load_file(path)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    exact = load_file(train_refiner(predictor, cache, CONFIG, tmp_path / "fp32"))
    name = "final_layer.linear.weight"
    assert not torch.equal(weights[name], exact[name])
    assert (weights[name] - exact[name]).norm() < 0.5 * exact[name].norm()


def only(cache: LatentCache, n: int) -> LatentCache:
    return LatentCache(cache.mean[:n], cache.std[:n], cache.label[:n])


def test_caches_that_do_not_fit(tmp_path: Path, predictor: SiT, cache: LatentCache) -> None:
    wrong = {
        r"latents are \(1, 4, 4\), the predictor reads \(2, 4, 4\)": replace(
            cache, mean=cache.mean[:, :1], std=cache.std[:, :1]
        ),
        "labels go from 0 to 3, the predictor has 3 classes": replace(cache, label=torch.arange(10) % 4),
        "labels go from -1 to 1, the predictor has 3 classes": replace(cache, label=cache.label - 1),
        "the cache holds 3 latents, fewer than one batch of 4": only(cache, 3),
        "the cache holds 0 latents": only(cache, 0),
    }
    for message, other in wrong.items():
        with pytest.raises(DataError, match=message):
            train_refiner(predictor, other, CONFIG, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_loss_that_is_not_finite(tmp_path: Path, predictor: SiT, cache: LatentCache) -> None:
    """It ends the run before the weights are touched, and keeps the last checkpoint."""
    train_refiner(predictor, cache, replace(CONFIG, steps=4), tmp_path)
    before = contents(tmp_path)
    damaged = replace(cache, mean=cache.mean * float("nan"))
    with pytest.raises(TrainingError, match="the loss is nan at step 4; the last checkpoint is kept"):
        train_refiner(predictor, damaged, CONFIG, tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("obstacle", ["a file in its place", "a file above it", "a folder inside it"])
def test_folder_that_cannot_be_written(
    tmp_path: Path, predictor: SiT, cache: LatentCache, obstacle: str
) -> None:
    """Known before the first step is taken."""
    folder = tmp_path / "run"
    if obstacle == "a file in its place":
        folder.write_text("")
    elif obstacle == "a file above it":
        folder.write_text("")
        folder = folder / "below"
    else:
        (folder / "metrics.jsonl").mkdir(parents=True)
    steps: list[int] = []
    with pytest.raises(TrainingError, match=r"run.* cannot be written .*give another folder"):
        train_refiner(predictor, cache, CONFIG, folder, lambda step, loss: steps.append(step))
    assert not steps
