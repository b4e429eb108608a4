"""`generate`: what it says, counts and refuses."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from flowturbo_trt.generation import run as generation_run
from flowturbo_trt.generation.shards import ShardedImages
from flowturbo_trt.runtime.pipeline import Pipeline

Run = Callable[..., Result]
Document = Callable[..., dict[str, Any]]
SMALL = ("--num", 7, "--schedule", "E2", "--shard-size", 3)


def test_images_and_words(run: Run, tiny_bundle: Path, here: Path) -> None:
    result = run("generate", tiny_bundle, "set", *SMALL)
    assert re.fullmatch(r"7 images with E2 in .* s \(.* images/s\): set\n", result.stdout)
    first, *_, last = result.stderr.splitlines()
    assert first == "[0/7] starting"
    assert re.fullmatch(r"\[7/7\] .* images/s", last)
    assert len(ShardedImages.open("set")) == 7
    again = run("generate", tiny_bundle, "set", *SMALL)
    assert again.stdout == "set: all 7 images were there\n"
    assert again.stderr == ""


def test_all_options(run: Run, tiny_bundle: Path, tiny_pipeline: Pipeline, here: Path) -> None:
    np.save("labels.npy", np.array([2, 0]))
    words = ["--guidance", 3, "--labels", "labels.npy", "--seed", 9, "--format", "png", "--batch", 2]
    run("generate", tiny_bundle, "set", *SMALL, *words, "--backend", "onnxruntime", "--device", "cpu", "-q")
    found = ShardedImages.open("set")
    plan = found.plan
    assert found.labels.tolist() == [2, 0, 2, 0, 2, 0, 2]
    assert (plan.guidance, plan.seed, plan.format, plan.batch, plan.shard_size) == (3, 9, "png", 2, 3)
    expected = tiny_pipeline([2, 0], seeds=[plan.seed_of(0), plan.seed_of(1)], guidance=3, schedule="E2")
    np.testing.assert_array_equal(next(found.batches(2)), expected)


@pytest.mark.parametrize(
    ("labels", "expected"), [("balanced", "balanced"), ("random", "random"), ("1-2,0", (1, 2, 0))]
)
def test_labels(run: Run, tiny_bundle: Path, here: Path, labels: str, expected: object) -> None:
    run("generate", tiny_bundle, "set", *SMALL, "--labels", labels)
    assert ShardedImages.open("set").plan.labels == expected


def test_labels_in_a_configuration_file(run: Run, tiny_bundle: Path, here: Path) -> None:
    Path("c.toml").write_text('labels = [0, 2]\nnum = 4\nschedule = "E1"\n')
    run("generate", tiny_bundle, "set", "--config-file", "c.toml")
    assert ShardedImages.open("set").labels.tolist() == [0, 2, 0, 2]


def stop_writing(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt the run when some shards have been written."""
    write = generation_run.write_files
    left = after

    def counted(folder: Path, files: dict[str, bytes]) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        write(folder, files)

    monkeypatch.setattr("flowturbo_trt.generation.run.write_files", counted)


def test_interrupt_says_how_to_go_on(
    run: Run, document: Document, tiny_bundle: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_writing(2, monkeypatch)
    result = run("generate", tiny_bundle, "set", *SMALL, status=130)
    assert result.stdout == ""
    assert result.stderr.splitlines()[-2:] == [
        "set: 6 of 7 images are there; the same command goes on from them",
        "interrupted",
    ]
    monkeypatch.undo()
    monkeypatch.chdir(here)
    found = document("generate", tiny_bundle, "set", *SMALL)
    assert (found["images"], found["images_made"], found["images_found"]) == (7, 1, 6)
    assert (found["shards"], found["shards_found"]) == (3, 2)
    assert list(found["shards_by_worker"].values()) == [1]
    assert found["images_per_second"] == pytest.approx(1 / found["seconds"])
    assert (found["schedule"], found["evaluations"]) == ("E2", {"predictor": 2})


def test_resuming_says_what_was_there(
    run: Run, tiny_bundle: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_writing(1, monkeypatch)
    run("generate", tiny_bundle, "set", *SMALL, status=130)
    monkeypatch.undo()
    monkeypatch.chdir(here)
    result = run("generate", tiny_bundle, "set", *SMALL)
    assert re.fullmatch(r"4 images with E2 in .* \(.*\), 3 were there: set\n", result.stdout)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--labels", "0,3"], "label 3 is out of range; the model knows 0 to 2"),
        (["--schedule", "R2"], "starts with R"),
        (["--backend", "openvino"], "the bundle has no guided predictor engine for openvino"),
        (["--guidance", "nan"], "guidance is nan"),
        (["--device", "tpu"], "unknown device 'tpu'"),
    ],
)
def test_mistakes(
    fails: Callable[..., str], tiny_bundle: Path, here: Path, words: list[str], message: str
) -> None:
    assert message in fails("generate", tiny_bundle, "set", *SMALL, *words)


@pytest.mark.parametrize(
    "words",
    [
        ["--num", "0"],
        ["--labels", "some"],
        ["--format", "jpg"],
        ["--seed", "-1"],
        ["--seed", str(2**64)],
        ["--gpus-per-worker", "1"],
    ],
)
def test_wrong_usage(run: Run, tiny_bundle: Path, here: Path, words: list[str]) -> None:
    run("generate", tiny_bundle, "set", *words, status=2)
    assert list(here.iterdir()) == []


def test_missing_ray_is_named(
    fails: Callable[..., str], tiny_bundle: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "flowturbo_trt.generation.ray_pool", raising=False)
    message = fails("generate", tiny_bundle, "set", *SMALL, "--ray")
    assert message == ("--ray needs ray, which the base install leaves out; pip install 'flowturbo_trt[ray]'")
    assert list(here.iterdir()) == []
