"""Checkpoints: the last few, whole or not at all, and what is not resumed from."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flowturbo_trt.bundle.lock import held
from flowturbo_trt.models.sit import SiT
from flowturbo_trt.tests.training.runs import (
    assert_same_run,
    checkpoint_steps,
    contents,
    newest,
    steps_recorded,
)
from flowturbo_trt.training.config import TrainingConfig, TrainingError
from flowturbo_trt.training.data import LatentCache
from flowturbo_trt.training.train_refiner import train_refiner

CONFIG = TrainingConfig(steps=6, batch=4, learning_rate=1e-2, checkpoint_every=1)


@pytest.fixture
def whole(tmp_path: Path, predictor: SiT, cache: LatentCache) -> Path:
    """A run of six steps with checkpoints of the last three."""
    train_refiner(predictor, cache, CONFIG, tmp_path / "whole")
    return tmp_path / "whole"


def test_the_last_ones_are_kept(whole: Path, predictor: SiT, cache: LatentCache) -> None:
    assert checkpoint_steps(whole) == [4, 5, 6]
    train_refiner(predictor, cache, replace(CONFIG, steps=8, keep=1), whole)
    assert checkpoint_steps(whole) == [8]


def test_checkpoint_says_where_it_stands(whole: Path) -> None:
    with safe_open(newest(whole), "pt") as file:
        about = json.loads(file.metadata()["run"])
    assert about["step"] == 6
    assert about["config"]["learning_rate"] == 1e-2


def test_one_before_is_gone_on_from(tmp_path: Path, whole: Path, predictor: SiT, cache: LatentCache) -> None:
    """What later steps left is taken back: rows, and the averaged weights."""
    folder = tmp_path / "again"
    train_refiner(predictor, cache, CONFIG, folder)
    for step in (5, 6):
        (folder / "checkpoints" / f"step-{step:08}.safetensors").unlink()
    train_refiner(predictor, cache, replace(CONFIG, steps=4), folder)
    assert steps_recorded(folder) == [1, 2, 3, 4]
    short = tmp_path / "short"
    train_refiner(predictor, cache, replace(CONFIG, steps=4), short)
    assert_same_run(folder, short)
    train_refiner(predictor, cache, CONFIG, folder)
    assert_same_run(folder, whole)


def assert_not_resumed(folder: Path, predictor: SiT, cache: LatentCache, remedy: str) -> None:
    before = contents(folder)
    with pytest.raises(
        TrainingError, match=rf"step-00000006\.safetensors: cannot be resumed, .*{remedy}"
    ) as caught:
        train_refiner(predictor, cache, replace(CONFIG, steps=8), folder)
    assert "\n" not in str(caught.value)
    assert contents(folder) == before


@pytest.mark.parametrize("damage", [0, 5, 100, "half", -1, "a byte"])
def test_damaged_checkpoint(whole: Path, predictor: SiT, cache: LatentCache, damage: Any) -> None:
    """It is named, with the step that deleting it goes back to; a changed byte counts as well."""
    path = newest(whole)
    content = bytearray(path.read_bytes())
    if damage == "a byte":
        content[-1000] ^= 1
    else:
        content = content[: len(content) // 2 if damage == "half" else damage]
    path.write_bytes(content)
    assert_not_resumed(whole, predictor, cache, "delete it to go on from step 5")
    path.unlink()
    train_refiner(predictor, cache, CONFIG, whole)
    assert steps_recorded(whole) == [1, 2, 3, 4, 5, 6]


def test_damaged_only_checkpoint(whole: Path, predictor: SiT, cache: LatentCache) -> None:
    for step in (4, 5):
        (whole / "checkpoints" / f"step-{step:08}.safetensors").unlink()
    newest(whole).write_bytes(b"")
    assert_not_resumed(whole, predictor, cache, "train into another folder")
    newest(whole).unlink()
    with pytest.raises(
        TrainingError, match=r"whole: holds refiner\.safetensors but no checkpoint; train into"
    ):
        train_refiner(predictor, cache, CONFIG, whole)


def test_file_of_tensors_that_is_no_checkpoint(whole: Path, predictor: SiT, cache: LatentCache) -> None:
    state = load_file(newest(whole))
    save_file(state, newest(whole))
    assert_not_resumed(whole, predictor, cache, "delete it")


@pytest.mark.parametrize(
    "name", ["weights/pos_embed", "average/pos_embed", "adam/x_embedder.proj.bias/exp_avg"]
)
def test_state_with_a_part_missing(
    whole: Path, predictor: SiT, cache: LatentCache, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    state = load_file(newest(whole))
    with safe_open(newest(whole), "pt") as file:
        header = file.metadata()
    del state[name]
    save_file(state, newest(whole), header)
    # As if it had been saved so.
    monkeypatch.setattr(
        "flowturbo_trt.training.checkpoints._digest", lambda state: json.loads(header["run"])["sha256"]
    )
    assert_not_resumed(whole, predictor, cache, "delete it")


def test_what_is_renamed_is_on_the_disk(
    tmp_path: Path, predictor: SiT, cache: LatentCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are synchronised under their temporary names, and then the folders that got the names."""
    events: list[tuple[str, str]] = []

    def record(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*args: Any) -> Any:
            subject = os.readlink(f"/proc/self/fd/{args[0]}") if name == "fsync" else str(args[1])
            events.append((name, Path(subject).name))
            return original(*args)

        return recorded

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, record(name, getattr(os, name)))
    train_refiner(predictor, cache, replace(CONFIG, steps=1), tmp_path)
    step = "step-00000001.safetensors"
    written, of_folder = ("fsync", f"{step}.partial"), ("fsync", "checkpoints")
    assert events[-5:] == [written, of_folder, ("replace", step), ("fsync", step), of_folder]


def test_one_training_at_a_time(whole: Path, predictor: SiT, cache: LatentCache) -> None:
    """The other is told before it reads or writes anything; of the lock nothing stays."""
    before = contents(whole)
    assert ".lock" not in before
    with (
        held(whole / ".lock"),
        pytest.raises(TrainingError, match="whole: another training is at work there; wait for it, or give"),
    ):
        train_refiner(predictor, cache, replace(CONFIG, steps=12), whole)
    assert contents(whole) == before
    train_refiner(predictor, cache, replace(CONFIG, steps=12), whole)
    assert steps_recorded(whole)[-1] == 12


def test_leftovers_are_no_checkpoints(whole: Path, predictor: SiT, cache: LatentCache) -> None:
    """A process that was killed leaves a file half written, which goes; other programs' files stay."""
    half = "step-00000009.safetensors.partial"
    for name in (half, "step-best.safetensors", ".DS_Store"):
        (whole / "checkpoints" / name).write_bytes(b"")
    seen: list[int] = []
    train_refiner(predictor, cache, replace(CONFIG, steps=8), whole, lambda step, _: seen.append(step))
    assert seen == [7, 8]
    left = {path.name for path in (whole / "checkpoints").iterdir()}
    assert half not in left
    assert {"step-best.safetensors", ".DS_Store"} <= left


def test_files_are_as_readable_as_others(whole: Path) -> None:
    """Weights are for whoever may read the folder; temporary files would be for their owner alone."""
    plain = whole / "plain"
    plain.touch()
    for path in (whole / "refiner.safetensors", newest(whole)):
        assert path.stat().st_mode == plain.stat().st_mode
