"""Shards: their bytes, whole or not at all, and reading them back."""

import os
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from flowturbo_trt.generation.plan import PLAN, GenerationError, GenerationPlan, plan_json
from flowturbo_trt.generation.shards import (
    ShardedImages,
    encode_shard,
    finished_shards,
    remove_partial,
    shard_name,
    write_files,
)
from flowturbo_trt.tests.generation.sets import content
from flowturbo_trt.tests.generation.test_plan import BALANCED

NPZ = replace(BALANCED, num=12, shard_size=5, image=(3, 4), labels="random")
PNG = replace(NPZ, format="png")
PLANS = pytest.mark.parametrize("plan", [NPZ, PNG], ids=["npz", "png"])


@pytest.fixture
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (12, 3, 4, 3), dtype=np.uint8)


def write_all(folder: Path, plan: GenerationPlan, images: NDArray[np.uint8]) -> Path:
    write_files(folder, {PLAN: plan_json(plan).encode()})
    for shard in range(plan.shards):
        rows = plan.indices(shard)
        write_files(folder, encode_shard(plan, shard, images[rows.start : rows.stop]))
    remove_partial(folder)
    return folder


def test_npz_as_adm_tools_read_it(tmp_path: Path, images: NDArray[np.uint8]) -> None:
    write_all(tmp_path, NPZ, images)
    assert set(content(tmp_path)) == {PLAN, *(f"shards/0000{i}.npz" for i in range(3))}
    with np.load(tmp_path / "shards/00002.npz", allow_pickle=False) as shard:
        assert list(shard) == ["arr_0", "label", "seed"]
        np.testing.assert_array_equal(shard["arr_0"], images[10:])
        assert shard["arr_0"].dtype == np.uint8
        assert (shard["label"].dtype, shard["seed"].dtype) == (np.int64, np.uint64)
        assert shard["label"].tolist() == [NPZ.label_of(10), NPZ.label_of(11)]
        assert shard["seed"].tolist() == [NPZ.seed_of(10), NPZ.seed_of(11)]


def test_npz_does_not_tell_when_it_was_made(
    tmp_path: Path, images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = encode_shard(NPZ, 0, images[:5])
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert encode_shard(NPZ, 0, images[:5]) == before
    write_files(tmp_path, before)
    with zipfile.ZipFile(tmp_path / "shards/00000.npz") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}


def test_png_is_one_file_for_each_image(tmp_path: Path, images: NDArray[np.uint8]) -> None:
    write_all(tmp_path, PNG, images)
    names = [f"images/{i:06}.png" for i in range(12)]
    assert set(content(tmp_path)) == {PLAN, *names, *(f"shards/0000{i}.json" for i in range(3))}
    with Image.open(tmp_path / names[7]) as image:
        np.testing.assert_array_equal(np.asarray(image), images[7])
        assert image.info == {"label": str(PNG.label_of(7)), "seed": str(PNG.seed_of(7))}


def test_png_names_are_in_order_past_a_million() -> None:
    plan = replace(PNG, num=1_000_001, shard_size=1)
    assert next(iter(encode_shard(plan, 12, np.zeros((1, 3, 4, 3), np.uint8)))) == "images/0000012.png"


@PLANS
def test_reading_in_batches_across_shards(
    tmp_path: Path, plan: GenerationPlan, images: NDArray[np.uint8]
) -> None:
    found = ShardedImages.open(write_all(tmp_path, plan, images))
    assert len(found) == 12
    assert found.plan == plan
    assert found.labels.tolist() == [plan.label_of(i) for i in range(12)]
    assert found.labels.dtype == np.int64
    for size in (1, 4, 7, 100):
        batches = list(found.batches(size))
        assert [len(batch) for batch in batches] == [min(size, 12 - i) for i in range(0, 12, size)]
        np.testing.assert_array_equal(np.concatenate(batches), images)


@PLANS
def test_unfinished_set_is_refused(tmp_path: Path, plan: GenerationPlan, images: NDArray[np.uint8]) -> None:
    write_all(tmp_path, plan, images)
    (tmp_path / shard_name(plan, 1)).unlink()
    with pytest.raises(GenerationError, match=r"5 of 12 images are missing; run `generate` again"):
        ShardedImages.open(tmp_path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def flip(path: Path) -> None:
    """Change one bit of a pixel."""
    data = bytearray(path.read_bytes())
    data[len(data) // 4 if path.suffix == ".npz" else data.index(b"IDAT") + 8] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, Path.unlink])
@pytest.mark.parametrize(("plan", "name"), [(NPZ, "shards/00001.npz"), (PNG, "images/000007.png")])
def test_missing_pieces_are_not_whole(
    tmp_path: Path, images: NDArray[np.uint8], plan: GenerationPlan, name: str, damage: Any
) -> None:
    write_all(tmp_path, plan, images)
    assert finished_shards(tmp_path, plan) == {0, 1, 2}
    damage(tmp_path / name)
    # A PNG file that is there appeared under its name when it was whole.
    assert finished_shards(tmp_path, plan) == ({0, 1, 2} if plan is PNG and damage is truncate else {0, 2})


@pytest.mark.parametrize(("plan", "name"), [(NPZ, "shards/00001.npz"), (PNG, "images/000007.png")])
@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(b"")])
def test_damage_is_found_when_read(
    tmp_path: Path, images: NDArray[np.uint8], plan: GenerationPlan, name: str, damage: Any
) -> None:
    found = ShardedImages.open(write_all(tmp_path, plan, images))
    damage(tmp_path / name)
    with pytest.raises(GenerationError, match=rf"{name}: is damaged \(.*\); delete it, and `generate`"):
        list(found.batches(5))


def test_image_of_another_size_is_found(tmp_path: Path, images: NDArray[np.uint8]) -> None:
    found = ShardedImages.open(write_all(tmp_path, PNG, images))
    Image.new("RGB", (9, 9)).save(tmp_path / "images/000007.png")
    with pytest.raises(GenerationError, match=r"uint8 of shape \(9, 9, 3\), expected uint8 of shape \(3, 4"):
        list(found.batches(5))


def test_shard_of_another_size_is_not_whole(tmp_path: Path, images: NDArray[np.uint8]) -> None:
    write_all(tmp_path, NPZ, images)
    os.replace(tmp_path / shard_name(NPZ, 0), tmp_path / shard_name(NPZ, 2))
    assert finished_shards(tmp_path, NPZ) == {1}


@pytest.mark.parametrize("moment", range(13))
def test_whatever_the_moment_of_the_end(
    tmp_path: Path, images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """The record of a PNG shard is there only when all of its images are, each as a whole."""
    files = encode_shard(PNG, 0, images[:5])
    left = moment
    replace, write = os.replace, Path.write_bytes

    def is_over() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    def replace_or_end(source: Path, target: Path) -> None:
        if is_over():
            raise KeyboardInterrupt
        replace(source, target)

    def write_or_end(path: Path, data: bytes) -> None:
        if is_over():
            write(path, data[:10])
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr("os.replace", replace_or_end)
    monkeypatch.setattr(Path, "write_bytes", write_or_end)
    if moment < 2 * len(files):
        with pytest.raises(KeyboardInterrupt):
            write_files(tmp_path, files)
    else:
        write_files(tmp_path, files)
    there = {name: data for name, data in content(tmp_path).items() if not name.startswith(".partial")}
    assert there.items() <= files.items()
    assert (shard_name(PNG, 0) in there) == (there == files)
    assert (finished_shards(tmp_path, PNG) == {0}) == (there == files)
