"""The folder of a set: one plan, one run at a time, and nothing else."""

import os
import shutil
from pathlib import Path

import pytest

from flowturbo_trt.bundle.lock import hold
from flowturbo_trt.generation import shards
from flowturbo_trt.generation.plan import GenerationError
from flowturbo_trt.generation.run import generate_images
from flowturbo_trt.generation.shards import ShardedImages
from flowturbo_trt.generation.worker import FinishedShard, WorkerError
from flowturbo_trt.tests.generation.sets import Stopped, content, small_plan, stop_after


def test_two_runs_in_one_folder(tiny_bundle: Path, tmp_path: Path) -> None:
    plan = small_plan(tiny_bundle)

    def begin_another(shard: FinishedShard) -> None:
        with pytest.raises(
            GenerationError, match="another run is at work there; wait for it, or give another"
        ):
            generate_images(plan, tiny_bundle, tmp_path / "set")

    generate_images(plan, tiny_bundle, tmp_path / "set", on_shard=begin_another)
    lock = hold(tmp_path / "set" / ".lock")
    assert lock is not None
    os.close(lock)


def test_leftovers_are_removed(tiny_bundle: Path, tmp_path: Path) -> None:
    plan = small_plan(tiny_bundle)
    generate_images(plan, tiny_bundle, tmp_path / "whole")
    with pytest.raises(Stopped):
        generate_images(plan, tiny_bundle, tmp_path / "set", on_shard=stop_after(2))
    (tmp_path / "set" / shards.PARTIAL / "00009.npz").write_bytes(b"half")
    (tmp_path / "set" / "shards" / "00003.npz").write_bytes(b"damaged")
    generate_images(plan, tiny_bundle, tmp_path / "set")
    assert content(tmp_path / "set") == content(tmp_path / "whole")
    assert {path.name for path in (tmp_path / "set").iterdir()} == {"plan.json", "shards"}


def test_another_plan_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    generate_images(small_plan(tiny_bundle), tiny_bundle, tmp_path / "set")
    before = content(tmp_path / "set")
    other = small_plan(tiny_bundle, schedule="H2", seed=1)
    with pytest.raises(
        GenerationError, match=r"begun with another plan \(schedule E2 → H2; seed 0 → 1\); give"
    ):
        generate_images(other, tiny_bundle, tmp_path / "set")
    assert content(tmp_path / "set") == before


def test_plan_that_no_image_was_made_of_may_change(tiny_bundle: Path, tmp_path: Path) -> None:
    plan = small_plan(tiny_bundle)
    with pytest.raises(WorkerError):
        generate_images(plan, tmp_path / "missing", tmp_path / "set")
    generate_images(small_plan(tiny_bundle, seed=1), tiny_bundle, tmp_path / "set")
    assert ShardedImages.open(tmp_path / "set").plan.seed == 1


def test_foreign_folder_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(
        GenerationError, match=r"holds notes.txt and no plan.json, so no generated images; give"
    ):
        generate_images(small_plan(tiny_bundle), tiny_bundle, tmp_path)
    assert content(tmp_path) == {"notes.txt": b"notes"}


@pytest.mark.parametrize(("name", "reason"), [("notes", "is a file"), ("notes/set", r"cannot be written \(")])
def test_place_that_is_no_folder(tiny_bundle: Path, tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "notes").write_text("notes")
    with pytest.raises(GenerationError, match=f"{reason}.*; give a folder that you may write to"):
        generate_images(small_plan(tiny_bundle), tiny_bundle, tmp_path / name)


def test_too_little_disk_leaves_nothing(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(GenerationError, match="23 images take about"):
        generate_images(small_plan(tiny_bundle), tiny_bundle, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []
