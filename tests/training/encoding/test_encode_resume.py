"""Encoding that is stopped, killed or out of disk goes on, to the same files byte for byte."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from flowturbo_trt.bundle.lock import held
from flowturbo_trt.models.autoencoder import Encoder
from flowturbo_trt.models.checkpoints import Checkpoint
from flowturbo_trt.tests.training.caches import OPTIONS, encoded, files_of
from flowturbo_trt.training.encode import encode_images
from flowturbo_trt.training.image_encoder import EncodeError
from flowturbo_trt.training.images import find_images
from flowturbo_trt.training.latent_cache import ShardedCache
from flowturbo_trt.training.pixels import read_pixels
from flowturbo_trt.training.source import DataError

Made = tuple[Encoder, Checkpoint]


class Stopped(BaseException):
    """An end that nothing in the code expects."""


@pytest.mark.parametrize("image", range(0, 10))
def test_stopped_anywhere_it_goes_on(
    pictures: Path, made: Made, out: Path, tmp_path: Path, image: int
) -> None:
    """Within a shard or between two, and again in the next run: the files are those of a run in one go."""
    whole = tmp_path / "whole"
    encoded(pictures, made, whole, flip=True)

    def stop(what: str, done: int, total: int) -> None:
        assert total == 10
        if done == image:
            raise Stopped

    options = replace(OPTIONS, flip=True)
    for _ in range(2):
        with pytest.raises(Stopped):
            encode_images(find_images(pictures), *made, out, options, stop)
        assert not (out / "cache.json").exists()
        with pytest.raises(DataError, match="is not finished; run the same"):
            ShardedCache.load(out)
    # A progress of 4 is told when shard 0 is written and again when shard 1 begins.
    result = encoded(pictures, made, out, flip=True)
    assert result.shards_made == 3 - image // 4
    assert files_of(out) == files_of(whole)


KILLED = """
import os, signal, sys
from pathlib import Path
from flowturbo_trt.models.autoencoder import load_encoder
from flowturbo_trt.training import cache_writer
from flowturbo_trt.training.encode import EncodeOptions, encode_images
from flowturbo_trt.training.images import find_images

images, vae, out, number = sys.argv[1:]
save = cache_writer.save
def save_half(tensors):
    content = save(tensors)
    if len(list(Path(out).glob("*.safetensors"))) == int(number):
        Path(out, f"shard-0000{number}.safetensors.partial").write_bytes(content[:100])
        os.kill(os.getpid(), signal.SIGKILL)
    return content
cache_writer.save = save_half
options = EncodeOptions(size=16, dtype="fp32", shard_size=4, batch=3, workers=2)
encode_images(find_images(images), *load_encoder(vae), Path(out), options)
"""


def test_killed_while_writing(pictures: Path, vae: Path, made: Made, out: Path, tmp_path: Path) -> None:
    """What was half written is gone, and what was finished is not made again."""
    command = [sys.executable, "-c", KILLED, str(pictures), str(vae), str(out), "1"]
    root = Path(__file__).parents[3]
    result = subprocess.run(command, cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert result.returncode == -signal.SIGKILL
    assert (out / "shard-00001.safetensors.partial").exists()
    before = (out / "shard-00000.safetensors").stat().st_mtime_ns
    encoded(pictures, made, out)
    assert (out / "shard-00000.safetensors").stat().st_mtime_ns == before
    encoded(pictures, made, tmp_path / "whole")
    assert files_of(out) == files_of(tmp_path / "whole")


def test_finished_cache_is_left_alone(pictures: Path, made: Made, out: Path) -> None:
    encoded(pictures, made, out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    seen: list[tuple[int, int]] = []
    result = encode_images(
        find_images(pictures), *made, out, OPTIONS, lambda what, done, total: seen.append((done, total))
    )
    assert result.shards_made == 0
    assert seen == [(4, 10), (8, 10), (10, 10)]
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


@pytest.mark.parametrize("damage", ["missing", "cut", "altered", "index"])
def test_damaged_shards_are_made_anew(
    pictures: Path, made: Made, out: Path, tmp_path: Path, damage: str
) -> None:
    encoded(pictures, made, out)
    whole = files_of(out)
    shard = out / "shard-00001.safetensors"
    content = bytearray(shard.read_bytes())
    if damage == "missing":
        shard.unlink()
    elif damage == "cut":
        shard.write_bytes(content[:-4])
    elif damage == "index":
        (out / "shard-00001.json").write_text("{")
    else:
        content[-1] ^= 1
        shard.write_bytes(content)
        # Of its size: only a check sees it.
        assert encoded(pictures, made, out).shards_made == 0
    assert encoded(pictures, made, out, check=True).shards_made == 1
    assert files_of(out) == whole


def test_moved_images_and_another_batch_go_on(pictures: Path, made: Made, out: Path, tmp_path: Path) -> None:
    encoded(pictures, made, out)
    moved = Path(shutil.copytree(pictures, tmp_path / "moved"))
    assert encoded(moved, made, out, batch=8, workers=1).shards_made == 0


def test_disk_that_fails_is_not_the_images_fault(
    pictures: Path, made: Made, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> Tensor:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("flowturbo_trt.training.image_encoder.read_pixels", fail)
    with pytest.raises(DataError, match=r"ant/0\.png: cannot be read \(Input/output error\), by no fault"):
        encoded(pictures, made, out)
    monkeypatch.undo()
    assert encoded(pictures, made, out).cache.rows == 8


def test_full_disk(
    pictures: Path, made: Made, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shard that did not fit leaves nothing behind, the one before stays."""
    write_bytes = Path.write_bytes

    def write(path: Path, content: bytes) -> int:
        if path.name.startswith("shard-00001"):
            write_bytes(path, content[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(
        EncodeError, match="cache: the disk is full; free some space and encode again, finished"
    ):
        encoded(pictures, made, out)
    assert set(files_of(out)) == {"encoding.json", "shard-00000.safetensors", "shard-00000.json"}
    monkeypatch.undo()
    assert encoded(pictures, made, out).shards_made == 2
    encoded(pictures, made, tmp_path / "whole")
    assert files_of(out) == files_of(tmp_path / "whole")


def test_one_process_at_a_time(pictures: Path, made: Made, out: Path) -> None:
    out.mkdir()
    with (
        held(out / ".lock"),
        pytest.raises(EncodeError, match="cache: another process is encoding into it; wait for it"),
    ):
        encoded(pictures, made, out)
    assert encoded(pictures, made, out).shards_made == 3
    assert not (out / ".lock").exists()


def test_interrupt_ends_the_reading(
    pictures: Path, made: Made, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread goes on with images that nobody waits for."""
    reading: list[Path] = []
    asked = []

    def read(path: Path, size: int, channels: int) -> Tensor:
        asked.append(path)
        reading.append(path)
        time.sleep(0.05)
        reading.remove(path)
        return read_pixels(path, size, channels)

    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flowturbo_trt.training.image_encoder.read_pixels", read)
    with pytest.raises(KeyboardInterrupt):
        encode_images(find_images(pictures), *made, out, replace(OPTIONS, shard_size=10), interrupt)
    assert not reading
    assert len(asked) < 10
