"""Workers: the images of the pipeline, on machines that are alike."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from flowturbo_trt.generation.run import Workers, generate_images
from flowturbo_trt.generation.shards import ShardedImages
from flowturbo_trt.generation.worker import WorkerError
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.tests.bundles import edit_manifest
from flowturbo_trt.tests.generation.sets import small_plan


@pytest.mark.parametrize("file_format", ["npz", "png"])
def test_images_are_those_of_the_pipeline(
    tiny_bundle: Path, tiny_pipeline: Pipeline, tmp_path: Path, file_format: str
) -> None:
    plan = small_plan(tiny_bundle, labels="random", guidance=3, format=file_format)
    summary = generate_images(plan, tiny_bundle, tmp_path / "set")
    found = ShardedImages.open(tmp_path / "set")
    assert (summary.images, summary.images_made, summary.images_found) == (23, 23, 0)
    assert (summary.shards, summary.shards_found) == (5, 0)
    assert len(set(found.labels)) == 3
    images = np.concatenate(list(found.batches(10)))
    for shard in range(plan.shards):
        for batch in plan.batches(shard):
            expected = tiny_pipeline(
                found.labels[batch.start : batch.stop],
                seeds=[plan.seed_of(i) for i in batch],
                guidance=3,
                schedule="E2",
            )
            np.testing.assert_array_equal(images[batch.start : batch.stop], expected)
    assert len(np.unique(images, axis=0)) == 23


def test_error_in_a_worker_is_raised_as_it_is(tiny_bundle: Path, tmp_path: Path) -> None:
    plan = small_plan(tiny_bundle)
    moved = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    edit_manifest(moved, lambda manifest: manifest.update(licence="another"))
    for workers in (Workers(1), Workers(2)):
        with pytest.raises(WorkerError, match=r"another bundle \(.*\), expected that of the plan"):
            generate_images(plan, moved, tmp_path / "set", workers)
    (moved / "manifest.json").unlink()
    with pytest.raises(WorkerError, match=r"no bundle to make them from .*, expected that of the plan"):
        generate_images(plan, moved, tmp_path / "set")


def test_other_software_in_a_worker(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan(tiny_bundle)
    monkeypatch.setattr(
        "flowturbo_trt.generation.worker.installed_software", lambda *names: plan.software | {"numpy": "1.0"}
    )
    with pytest.raises(
        WorkerError, match=r"has numpy 1.0, the plan has .*; install the same version on every"
    ):
        generate_images(plan, tiny_bundle, tmp_path / "set")
