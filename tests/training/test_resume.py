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
from safetensors.torch import load_file, save_file

from flowturbo_trt.models.sit import SiT
from flowturbo_trt.training import train_refiner as training
from flowturbo_trt.training.data import LatentCache
from flowturbo_trt.training.train_refiner import TrainingConfig, TrainingError, train_refiner

BeforeCall = Callable[[Any, str, int, Callable[[], None]], None]
CONFIG = TrainingConfig(steps=6, batch=4, learning_rate=1e-2, weight_decay=0.01, checkpoint_every=100)


@pytest.fixture
def whole(tmp_path: Path, predictor: SiT, cache: LatentCache) -> Path:
    """A run of six steps that nothing interrupted."""
    train_refiner(predictor, cache, CONFIG, tmp_path / "whole")
    return tmp_path / "whole"


def steps_recorded(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(folder: Path, whole: Path) -> None:
    """Every tensor of the state and the result, and every row of the metrics, are equal."""
    for name in ("checkpoint.safetensors", "refiner.safetensors"):
        found, expected = load_file(folder / name), load_file(whole / name)
        assert found.keys() == expected.keys()
        assert [key for key in expected if not torch.equal(found[key], expected[key])] == []
    assert (folder / "refiner.safetensors").read_bytes() == (whole / "refiner.safetensors").read_bytes()
    assert (folder / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()


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


def test_a_finished_run_takes_no_more_steps(whole: Path, predictor: SiT, cache: LatentCache) -> None:
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    seen: list[int] = []
    train_refiner(predictor, cache, CONFIG, whole, lambda n, _: seen.append(n))
    assert not seen
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == before


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
    before_call(training, "refiner_objective", step, press_ctrl_c)
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
    before_call(training, "save_file", write, press_ctrl_c)
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
    before_call(training, "save_file", write, fill_the_disk)
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
        ("depth", 2),
        ("precision", "bf16"),
        ("seed", 3),
    ],
)
def test_other_options_are_refused(
    whole: Path, predictor: SiT, cache: LatentCache, option: str, value: Any
) -> None:
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    was = getattr(CONFIG, option)
    message = rf"was trained with {option}={was}, now {value}; use the same options or another folder"
    with pytest.raises(TrainingError, match=message):
        train_refiner(predictor, cache, replace(CONFIG, steps=8, **{option: value}), whole)
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == before


def assert_not_resumed(folder: Path, predictor: SiT, cache: LatentCache) -> None:
    with pytest.raises(TrainingError, match=r"checkpoint\.safetensors: cannot be resumed") as caught:
        train_refiner(predictor, cache, replace(CONFIG, steps=8), folder)
    assert "\n" not in str(caught.value)


def test_truncated_checkpoint(whole: Path, predictor: SiT, cache: LatentCache) -> None:
    path = whole / "checkpoint.safetensors"
    content = path.read_bytes()
    for size in (0, 5, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        assert_not_resumed(whole, predictor, cache)


def test_checkpoint_that_is_none(whole: Path, predictor: SiT, cache: LatentCache) -> None:
    """A file of tensors without what a run needs, and a state with a part missing."""
    path = whole / "checkpoint.safetensors"
    state = load_file(path)
    config = json.dumps({**vars(predictor.config), **vars(CONFIG)})
    save_file(state, path)
    assert_not_resumed(whole, predictor, cache)
    for name in ("weights/pos_embed", "average/pos_embed", "adam/x_embedder.proj.bias/exp_avg"):
        part = {key: tensor for key, tensor in state.items() if key != name}
        save_file(part, path, {"step": "6", "config": config})
        assert_not_resumed(whole, predictor, cache)
    save_file(state, path, {"step": "six", "config": config})
    assert_not_resumed(whole, predictor, cache)


def test_checkpoint_of_another_predictor(whole: Path, predictor: SiT) -> None:
    other = SiT(replace(predictor.config, num_classes=7))
    cache = LatentCache(torch.randn(8, 2, 4, 4), torch.ones(8, 2, 4, 4), torch.arange(8) % 7)
    with pytest.raises(TrainingError, match=r"was trained with num_classes=\d+, now 7"):
        train_refiner(other, cache, CONFIG, whole)
