"""Interrupted training: what comes after is bit for bit what would have come anyway."""

import _thread
import json
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flowturbo_trt.models.sit import SiT
from flowturbo_trt.tests.training.runs import assert_same_run, contents, newest, steps_recorded
from flowturbo_trt.training import checkpoints, lessons
from flowturbo_trt.training.config import TrainingConfig, TrainingError
from flowturbo_trt.training.data import LatentCache
from flowturbo_trt.training.train_refiner import train_refiner

BeforeCall = Callable[[Any, str, int, Callable[[], None]], None]
CONFIG = TrainingConfig(steps=6, batch=4, learning_rate=1e-2, weight_decay=0.01, checkpoint_every=100)


@pytest.fixture
def whole(tmp_path: Path, predictor: SiT, cache: LatentCache) -> Path:
    """A run of six steps that nothing interrupted."""
    train_refiner(predictor, cache, CONFIG, tmp_path / "whole")
    return tmp_path / "whole"


def test_three_and_three_steps_are_six(
    tmp_path: Path, whole: Path, predictor: SiT, cache: LatentCache
) -> None:
    folder = tmp_path / "parts"
    train_refiner(predictor, cache, replace(CONFIG, steps=3), folder)
    assert steps_recorded(folder) == [1, 2, 3]
    seen: list[int] = []
    path = train_refiner(
        predictor, cache, replace(CONFIG, checkpoint_every=2), folder, lambda n, _: seen.append(n)
    )
    assert seen == [4, 5, 6]
    assert path == folder / "refiner.safetensors"
    assert_same_run(folder, whole)


def test_three_and_three_steps_on_policy(tmp_path: Path, predictor: SiT) -> None:
    """Of two schedules in turn: the second half begins with the other one."""
    config = replace(CONFIG, on_policy="H1R2 P2R1", guidance_high=2.0)
    train_refiner(predictor, None, config, tmp_path / "whole")
    for steps in (3, 6):
        train_refiner(predictor, None, replace(config, steps=steps), tmp_path / "parts")
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_checkpoint_from_before_an_option(
    tmp_path: Path, whole: Path, predictor: SiT, cache: LatentCache
) -> None:
    """It was as it is by default now, and as nothing else."""
    folder = tmp_path / "parts"
    train_refiner(predictor, cache, replace(CONFIG, steps=3), folder)
    path = newest(folder)
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["run"])
    del about["config"]["on_policy"]
    save_file(load_file(path), path, {"run": json.dumps(about)})
    with pytest.raises(TrainingError, match="was trained with on_policy=, now H1R1; use the same"):
        train_refiner(predictor, None, replace(CONFIG, on_policy="H1R1"), folder)
    train_refiner(predictor, cache, CONFIG, folder)
    assert steps_recorded(folder) == steps_recorded(whole)


def test_a_finished_run_takes_no_more_steps(whole: Path, predictor: SiT, cache: LatentCache) -> None:
    before = contents(whole)
    seen: list[int] = []
    train_refiner(predictor, cache, CONFIG, whole, lambda n, _: seen.append(n))
    assert not seen
    assert contents(whole) == before


def interrupt_at(step: int) -> Callable[[int, float], None]:
    def on_step(n: int, loss: float) -> None:
        if n == step:
            raise KeyboardInterrupt

    return on_step


@pytest.mark.parametrize("step", [1, 4, 6])
def test_interrupt_from_on_step(
    tmp_path: Path, whole: Path, predictor: SiT, cache: LatentCache, step: int
) -> None:
    folder = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        train_refiner(predictor, cache, CONFIG, folder, interrupt_at(step))
    assert steps_recorded(folder) == list(range(1, step + 1))
    train_refiner(predictor, cache, CONFIG, folder)
    assert_same_run(folder, whole)


@pytest.fixture
def before_call(monkeypatch: pytest.MonkeyPatch) -> BeforeCall:
    """Return a function that makes something happen once, before the n-th call of owner.name."""

    def patch(owner: Any, name: str, number: int, happen: Callable[[], None]) -> None:
        original, calls = getattr(owner, name), count(1)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == number:
                happen()
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    return patch


def press_ctrl_c() -> None:
    # Not raised by the system: pytest's fault handler has signals handled on a stack of a few kilobytes,
    # which the first call of a function in a shared library overflows where registers are wide.
    _thread.interrupt_main(signal.SIGINT)


@pytest.mark.parametrize("step", [1, 4])
def test_interrupt_within_the_forward_pass(
    tmp_path: Path,
    whole: Path,
    predictor: SiT,
    cache: LatentCache,
    before_call: BeforeCall,
    step: int,
) -> None:
    folder = tmp_path / "parts"
    before_call(lessons, "refiner_objective", step, press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        train_refiner(predictor, cache, CONFIG, folder)
    assert steps_recorded(folder) == list(range(1, step))
    train_refiner(predictor, cache, CONFIG, folder)
    assert_same_run(folder, whole)


def test_interrupt_within_the_optimizer(
    tmp_path: Path, whole: Path, predictor: SiT, cache: LatentCache, before_call: BeforeCall
) -> None:
    """Half a step must not be saved: the weights would move twice."""
    folder = tmp_path / "parts"
    before_call(torch.optim.AdamW, "step", 4, press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        train_refiner(predictor, cache, CONFIG, folder)
    assert steps_recorded(folder) == [1, 2, 3, 4]
    train_refiner(predictor, cache, CONFIG, folder)
    assert_same_run(folder, whole)


@pytest.mark.parametrize("write", [1, 2, 3, 4])
def test_interrupt_within_a_checkpoint(
    tmp_path: Path,
    whole: Path,
    predictor: SiT,
    cache: LatentCache,
    before_call: BeforeCall,
    write: int,
) -> None:
    folder = tmp_path / "parts"
    config = replace(CONFIG, checkpoint_every=2)
    before_call(checkpoints, "save", write, press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        train_refiner(predictor, cache, config, folder)
    assert steps_recorded(folder) == list(range(1, 2 * ((write + 1) // 2) + 1))
    train_refiner(predictor, cache, config, folder)
    assert_same_run(folder, whole)


def fill_the_disk() -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("write", [3, 4, 5, 6])
def test_disk_that_fills_up_costs_the_steps_since_the_last_checkpoint(
    tmp_path: Path,
    whole: Path,
    predictor: SiT,
    cache: LatentCache,
    before_call: BeforeCall,
    write: int,
) -> None:
    """Whichever file fails, the run goes on from the checkpoint before, with no row twice."""
    folder = tmp_path / "parts"
    config = replace(CONFIG, checkpoint_every=2)
    before_call(checkpoints, "save", write, fill_the_disk)
    with pytest.raises(TrainingError, match=r"cannot be saved .*No space"):
        train_refiner(predictor, cache, config, folder)
    seen: list[int] = []
    train_refiner(predictor, cache, config, folder, lambda n, _: seen.append(n))
    assert seen == list(range(2 * ((write - 1) // 2) + 1, 7))
    assert_same_run(folder, whole)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("batch", 5),
        ("learning_rate", 1e-3),
        ("weight_decay", 0.0),
        ("ema", 0.5),
        ("max_delta", 0.2),
        ("label_drop", 0.5),
        ("guidance_low", 0.5),
        ("guidance_high", 2.0),
        ("warmup", 10),
        ("clip", 0.1),
        ("depth", 2),
        ("width", 32),
        ("heads", 4),
        ("init", "predictor"),
        ("precision", "bf16"),
        ("seed", 3),
    ],
)
def test_other_options_are_refused(
    whole: Path, predictor: SiT, cache: LatentCache, option: str, value: Any
) -> None:
    before = contents(whole)
    was = getattr(CONFIG, option)
    message = rf"was trained with {option}={was}, now {value}; use the same options or another folder"
    with pytest.raises(TrainingError, match=message):
        train_refiner(predictor, cache, replace(CONFIG, steps=8, **{option: value}), whole)
    assert contents(whole) == before


@pytest.mark.parametrize(("option", "value"), [("accumulate", 2), ("keep", 1), ("checkpoint_every", 1)])
def test_options_that_leave_the_training_as_it_is(
    tmp_path: Path, whole: Path, predictor: SiT, cache: LatentCache, option: str, value: int
) -> None:
    folder = tmp_path / "parts"
    train_refiner(predictor, cache, replace(CONFIG, steps=3), folder)
    path = train_refiner(predictor, cache, replace(CONFIG, **{option: value}), folder)
    assert steps_recorded(folder) == [1, 2, 3, 4, 5, 6]
    found, expected = load_file(path), load_file(whole / "refiner.safetensors")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5)


def test_other_data_are_refused(whole: Path, predictor: SiT, cache: LatentCache) -> None:
    class Other(LatentCache):
        provenance = {"data": "another hash"}  # noqa: RUF012  # as a property would be

    other = Other(cache.mean, cache.std, cache.label)
    with pytest.raises(TrainingError, match="was trained with data=None, now another hash"):
        train_refiner(predictor, other, replace(CONFIG, steps=8), whole)


def test_guided_training_of_other_channels_is_refused(
    tmp_path: Path, predictor: SiT, cache: LatentCache
) -> None:
    config = replace(CONFIG, guidance_high=2.0, steps=1)
    train_refiner(predictor, cache, config, tmp_path, guided_channels=2)
    with pytest.raises(TrainingError, match="was trained with guided_channels=2, now 1"):
        train_refiner(predictor, cache, replace(config, steps=2), tmp_path, guided_channels=1)


def test_checkpoint_of_another_predictor(whole: Path, predictor: SiT) -> None:
    other = SiT(replace(predictor.config, num_classes=7))
    cache = LatentCache(torch.randn(8, 2, 4, 4), torch.ones(8, 2, 4, 4), torch.arange(8) % 7)
    with pytest.raises(TrainingError, match=r"was trained with num_classes=\d+, now 7"):
        train_refiner(other, cache, CONFIG, whole)
