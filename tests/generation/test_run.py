"""Generating sets: the same bytes whoever makes them, and whatever interrupts it."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flowturbo_trt.generation.plan import GenerationError
from flowturbo_trt.generation.run import Workers, generate_images
from flowturbo_trt.generation.shards import ShardedImages
from flowturbo_trt.generation.worker import WorkerError
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.tests.generation.sets import (
    Stopped,
    command,
    content,
    small_plan,
    stop_after,
    wait_for_shards,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "workers", [Workers(threads=1), Workers(1, threads=2), Workers(2, threads=2, device="cpu")], ids=str
)
def test_same_bytes_whoever_makes_them(golden_bundle: Path, tmp_path: Path, workers: Workers) -> None:
    plan = small_plan(golden_bundle, schedule="H1P0R2", num=11, shard_size=3)
    generate_images(plan, golden_bundle, tmp_path / "a")
    summary = generate_images(plan, golden_bundle, tmp_path / "b", workers)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert sum(summary.workers.values()) == 4
    own = [name for name in summary.workers if name.endswith(f" {os.getpid()}")]
    assert bool(own) == (workers.count in (None, 1))


def test_seed_changes_all_images(tiny_bundle: Path, tmp_path: Path) -> None:
    sets = []
    for seed in (0, 1):
        generate_images(small_plan(tiny_bundle, seed=seed), tiny_bundle, tmp_path / str(seed))
        sets.append(np.concatenate(list(ShardedImages.open(tmp_path / str(seed)).batches(23))))
    assert len(np.unique(np.concatenate(sets), axis=0)) == 46


def test_finished_set_loads_nothing(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan(tiny_bundle)
    generate_images(plan, tiny_bundle, tmp_path / "set")
    before = content(tmp_path / "set")
    monkeypatch.setattr(Pipeline, "load", lambda *arguments, **options: pytest.fail("loaded"))
    summary = generate_images(plan, tiny_bundle, tmp_path / "set")
    assert (summary.images_made, summary.images_found, summary.shards_found) == (0, 23, 5)
    assert content(tmp_path / "set") == before


@pytest.mark.parametrize("file_format", ["npz", "png"])
def test_only_what_is_missing_is_made(tiny_bundle: Path, tmp_path: Path, file_format: str) -> None:
    plan = small_plan(tiny_bundle, format=file_format)
    generate_images(plan, tiny_bundle, tmp_path / "whole")
    with pytest.raises(Stopped):
        generate_images(plan, tiny_bundle, tmp_path / "set", on_shard=stop_after(2))
    made: list[int] = []
    told: list[tuple[str, int, int]] = []
    summary = generate_images(
        plan,
        tiny_bundle,
        tmp_path / "set",
        progress=lambda *what: told.append(what),
        on_shard=lambda shard: made.append(shard.shard),
    )
    assert made == [2, 3, 4]
    assert (summary.images_found, summary.images_made, summary.shards_found) == (10, 13, 2)
    assert [done for _, done, _ in told] == [0, 2, 4, 5, 7, 9, 10, 12, 13]
    assert {total for _, _, total in told} == {13}
    assert told[-1][0].endswith(" images/s")
    assert content(tmp_path / "set") == content(tmp_path / "whole")


@pytest.mark.parametrize(
    "words", [("--format", "npz"), ("--format", "png", "--workers", "2")], ids=["npz", "png by workers"]
)
def test_killed_and_resumed(tiny_bundle: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    """Killed at two moments; what is there in the end is what one run makes."""
    out = tmp_path / "set"
    for count in (3, 12):
        process = command(tiny_bundle, out, *words)
        wait_for_shards(out, count)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert len(list((out / "shards").iterdir())) < 50
    assert command(tiny_bundle, out, *words).wait() == 0
    plan = small_plan(tiny_bundle, num=500, shard_size=10, batch=None, format=words[1])
    generate_images(plan, tiny_bundle, tmp_path / "whole")
    assert content(out) == content(tmp_path / "whole")


def test_disk_that_becomes_full(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan(tiny_bundle)
    generate_images(plan, tiny_bundle, tmp_path / "whole")
    write = Path.write_bytes

    def fill(path: Path, data: bytes) -> int:
        if path.name == "00002.npz":
            write(path, data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(
        GenerationError, match=r"the disk is full, with 10 of 23 images there; free some space"
    ):
        generate_images(plan, tiny_bundle, tmp_path / "set")
    monkeypatch.undo()
    generate_images(plan, tiny_bundle, tmp_path / "set")
    assert content(tmp_path / "set") == content(tmp_path / "whole")


def test_device_of_another_kind(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="device cuda:1 is not the plan's, cpu"):
        generate_images(small_plan(tiny_bundle), tiny_bundle, tmp_path / "set", Workers(device="cuda:1"))


PROBE = """
import sys
from pathlib import Path
from flowturbo_trt.generation.options import GenerationOptions, make_plan
from flowturbo_trt.generation.run import generate_images
bundle, out = map(Path, sys.argv[1:])
generate_images(make_plan(bundle, GenerationOptions(num=2)), bundle, out)
print([name for name in ("torch", "onnx", "ray", "PIL") if name in sys.modules])
"""


def test_generating_takes_the_base_install_alone(tiny_bundle: Path, tmp_path: Path) -> None:
    probe = [sys.executable, "-c", PROBE, str(tiny_bundle), str(tmp_path / "set")]
    done = subprocess.run(probe, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
