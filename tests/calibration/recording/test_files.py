"""The files of a recording: a folder is one when its description is there, and holds what was written."""

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.calibration.endpoints import CalibrationError
from flowturbo_trt.calibration.recording import files
from flowturbo_trt.calibration.recording.files import (
    DESCRIPTION,
    Shard,
    begin,
    finish,
    read_description,
    read_shard,
    write_shard,
)

TENSORS = {
    "guidance": np.array([1.5, 2.0], dtype=np.float32),
    "H1/0.state": np.ones((2, 3), dtype=np.float32),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished recording of one shard."""
    folder = tmp_path / "recording"
    begin(folder)
    finish(folder, [write_shard(folder, 0, 2, TENSORS)], {"rows": 2})
    return folder


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    """What `folder` is described with."""
    return write_shard(tmp_path, 0, 2, TENSORS)


def test_what_is_written_is_read(folder: Path, shard: Shard) -> None:
    found = read_shard(folder, shard)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(found[name], tensor)
    assert read_description(folder) == {"rows": 2}
    assert sorted(os.listdir(folder)) == [DESCRIPTION, "rows-00000.safetensors"]
    assert shard.rows == 2


def test_parts_of_larger_arrays(tmp_path: Path) -> None:
    """As they look, not as memory lies."""
    large = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    written = write_shard(tmp_path, 1, 2, {"every other": large[:, ::2], "turned": large.T})
    found = read_shard(tmp_path, written)
    np.testing.assert_array_equal(found["every other"], large[:, ::2])
    np.testing.assert_array_equal(found["turned"], large.T)


def test_beginning_empties_an_earlier_recording(folder: Path) -> None:
    """And what an interrupted one has left."""
    (folder / f".{DESCRIPTION}.123").touch()
    begin(folder)
    assert list(folder.iterdir()) == []


def test_description_goes_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is interrupted while shards are removed is no recording any more."""
    unlink, iterdir = Path.unlink, Path.iterdir

    def in_reverse(path: Path) -> list[Path]:
        return sorted(iterdir(path), reverse=True)

    def interrupted(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".safetensors":
            raise KeyboardInterrupt
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "iterdir", in_reverse)
    monkeypatch.setattr(Path, "unlink", interrupted)
    with pytest.raises(KeyboardInterrupt):
        begin(folder)
    with pytest.raises(CalibrationError, match="holds no finished recording"):
        read_description(folder)


def test_description_comes_last(tmp_path: Path, shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    """When all shards are on the disk, and as a whole."""
    synced: list[str] = []

    def sync(paths: Any) -> None:
        synced.extend(f"{path.name} {(tmp_path / DESCRIPTION).exists()}" for path in paths)

    monkeypatch.setattr(files, "sync", sync)
    finish(tmp_path, [shard], {})
    assert synced == [f"{shard.file} False", f"{DESCRIPTION} True"]

    def fail(source: Any, target: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / DESCRIPTION).unlink()
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(CalibrationError, match=r"cannot be written \(Input/output error\)"):
        finish(tmp_path, [shard], {})
    assert not (tmp_path / DESCRIPTION).exists()


@pytest.mark.parametrize("name", ["model.safetensors", "rows-1.safetensors", "notes.txt", "checkpoints"])
def test_folder_with_other_files(folder: Path, name: str) -> None:
    """Stays as it is, whatever they are called."""
    (folder / name).mkdir() if name == "checkpoints" else (folder / name).write_text("precious")
    before = sorted(os.listdir(folder))
    with pytest.raises(CalibrationError, match=f"holds {name}, which no recording made; give a new folder"):
        begin(folder)
    assert sorted(os.listdir(folder)) == before


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CalibrationError, match=r"cannot be written .*give a folder you may write to"):
        begin(tmp_path / "file")
    with pytest.raises(CalibrationError, match="file: holds no finished recording"):
        read_description(tmp_path / "file")


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(CalibrationError, match="the disk is full; free some space or give another folder"):
        write_shard(tmp_path, 0, 2, TENSORS)


def test_missing_shard(folder: Path, shard: Shard) -> None:
    (folder / shard.file).unlink()
    with pytest.raises(CalibrationError, match=r"rows-00000.safetensors: cannot be read \(No such file"):
        read_shard(folder, shard)


def test_altered_shard(folder: Path, shard: Shard) -> None:
    """Truncated, changed in one number, or of another shape."""
    file = folder / shard.file
    content = file.read_bytes()
    changes = {
        "truncated": content[:-8],
        "changed": content[:-1] + bytes([content[-1] ^ 1]),
        "empty": b"",
    }
    for changed in changes.values():
        file.write_bytes(changed)
        with pytest.raises(
            CalibrationError, match=r"is not what was recorded \(sha256 differs\); record again"
        ):
            read_shard(folder, shard)
    write_shard(folder, 0, 2, TENSORS | {"H1/0.state": np.ones((2, 4), dtype=np.float32)})
    with pytest.raises(CalibrationError, match="is not what was recorded"):
        read_shard(folder, shard)


def test_file_without_tensors(folder: Path) -> None:
    (folder / "rows-00007.safetensors").write_bytes(b"nothing")
    shard = Shard("rows-00007.safetensors", 2, hashlib.sha256(b"nothing").hexdigest())
    with pytest.raises(CalibrationError, match="holds no tensors"):
        read_shard(folder, shard)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"format": 3}', "\udcff"])
def test_damaged_description(folder: Path, text: str) -> None:
    (folder / DESCRIPTION).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CalibrationError, match=f"{DESCRIPTION}: cannot be read .*; record again"):
        read_description(folder)


def test_description_of_another_format(folder: Path) -> None:
    document = json.loads((folder / DESCRIPTION).read_text())
    for change, found in (({"version": 2}, "of version 2"), ({"format": "a bundle"}, "is 'a bundle'")):
        (folder / DESCRIPTION).write_text(json.dumps(document | change))
        with pytest.raises(CalibrationError, match=f"{found}.*expected .* of version 1; record again"):
            read_description(folder)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"holds no finished recording .* record trajectories"):
        read_description(tmp_path / "nowhere")
