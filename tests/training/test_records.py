"""Metrics on the way: what TensorBoard reads of a run, whole, interrupted or without TensorBoard."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flowturbo_trt.models.sit import SiT
from flowturbo_trt.tests.training.runs import contents, rows_recorded
from flowturbo_trt.training.config import TrainingConfig, TrainingError
from flowturbo_trt.training.data import LatentCache
from flowturbo_trt.training.records import EventFiles
from flowturbo_trt.training.train_refiner import train_refiner

CONFIG = TrainingConfig(steps=6, batch=4, learning_rate=1e-2, warmup=3, checkpoint_every=2)


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return accumulator


def test_every_row_is_there(tmp_path: Path, predictor: SiT, cache: LatentCache) -> None:
    train_refiner(predictor, cache, CONFIG, tmp_path, tensorboard=True)
    found = events(tmp_path)
    names = ["loss", "learning_rate", "gradient_norm"]
    assert set(found.Tags()["scalars"]) == {f"train/{name}" for name in (*names, "seconds")}
    for name in names:
        scalars = found.Scalars(f"train/{name}")
        assert [scalar.step for scalar in scalars] == [1, 2, 3, 4, 5, 6]
        expected = [row[name] for row in rows_recorded(tmp_path)]
        assert [scalar.value for scalar in scalars] == pytest.approx(expected, rel=1e-6)
    assert all(scalar.value > 0 for scalar in found.Scalars("train/seconds"))


def fail_at(step: int) -> Callable[[int, float], None]:
    def on_step(n: int, loss: float) -> None:
        if n == step:
            raise RuntimeError("the machine went down")

    return on_step


def test_steps_that_were_not_saved_are_not_doubled(
    tmp_path: Path, predictor: SiT, cache: LatentCache
) -> None:
    """A run that dies in step 5 goes on from step 4; the event files know two fifth steps."""
    with pytest.raises(RuntimeError, match="went down"):
        train_refiner(predictor, cache, CONFIG, tmp_path, fail_at(5), tensorboard=True)
    assert [scalar.step for scalar in events(tmp_path).Scalars("train/loss")] == [1, 2, 3, 4, 5]
    train_refiner(predictor, cache, CONFIG, tmp_path, tensorboard=True)
    assert [scalar.step for scalar in events(tmp_path).Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]


def test_images(tmp_path: Path) -> None:
    images = np.full((3, 8, 8, 3), 200, dtype=np.uint8)
    files = EventFiles(tmp_path, step=0)
    files.add_images(images, 4)
    files.close()
    (image,) = events(tmp_path).Images("preview")
    assert image.step == 4


def test_tensorboard_that_is_missing(
    tmp_path: Path, predictor: SiT, cache: LatentCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known before the first step; without it there is nothing to miss."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    message = r"pip install 'flowturbo_trt\[train\]', or say --no-tensorboard"
    with pytest.raises(TrainingError, match=message):
        train_refiner(predictor, cache, CONFIG, tmp_path, tensorboard=True)
    assert not rows_recorded(tmp_path)
    train_refiner(predictor, cache, replace(CONFIG, steps=1), tmp_path)
    assert not [name for name in contents(tmp_path) if "tensorboard" in name]
