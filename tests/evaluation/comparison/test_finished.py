"""Results of earlier runs: taken in the same settings only, and never when damaged."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.evaluation.comparison.errors import ComparisonError
from flowturbo_trt.evaluation.comparison.finished import (
    FOLDER,
    Finished,
    check_place,
    code_sha256,
    write_text,
)

SETTINGS = {"plan": {"seed": 3, "labels": ("a", 1)}, "count": 5}
FIGURES = {"fid": 1.25, "notes": ["é"]}
ARRAYS = {"shown": np.arange(6, dtype=np.uint8)}


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def finished(tmp_path: Path, said: list[str]) -> Finished:
    store = Finished(tmp_path, said.append)
    store.write("H8", SETTINGS, FIGURES, ARRAYS)
    return store


def file(folder: Path, suffix: str) -> Path:
    (found,) = (folder / FOLDER).glob(f"*{suffix}")
    return found


def test_what_is_written_is_read(finished: Finished, tmp_path: Path, said: list[str]) -> None:
    found = finished.read("H8", SETTINGS)
    assert found is not None
    assert found[0] == FIGURES
    assert found[1]["shown"].tolist() == [0, 1, 2, 3, 4, 5]
    assert said == []
    record = json.loads(file(tmp_path, ".json").read_text(encoding="utf-8"))
    assert record["settings"] == {"plan": {"seed": 3, "labels": ["a", 1]}, "count": 5}
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == [
        file(tmp_path, ".json").name,
        file(tmp_path, ".npz").name,
    ]


@pytest.mark.parametrize(
    ("name", "settings"),
    [("H9", SETTINGS), ("H8", SETTINGS | {"count": 6}), ("H8", SETTINGS | {"new": None})],
)
def test_other_settings_are_another_result(
    finished: Finished, said: list[str], name: str, settings: dict[str, Any]
) -> None:
    assert finished.read(name, settings) is None
    assert said == []
    finished.write(name, settings, {"fid": 2.5}, ARRAYS)
    assert finished.read("H8", SETTINGS) is not None


def test_damage_is_said_and_mended(finished: Finished, tmp_path: Path, said: list[str]) -> None:
    arrays, record = file(tmp_path, ".npz"), file(tmp_path, ".json")
    content, text = arrays.read_bytes(), record.read_text(encoding="utf-8")

    def damage(path: Path, changed: bytes) -> None:
        said.clear()
        path.write_bytes(changed)
        assert finished.read("H8", SETTINGS) is None
        assert said == [f"{record}: damaged; H8 is measured again"]
        finished.write("H8", SETTINGS, FIGURES, ARRAYS)

    damage(arrays, content[:-1] + bytes([content[-1] ^ 1]))
    damage(arrays, b"")
    damage(record, text[:40].encode())
    damage(record, b"[]")
    damage(record, text.replace('"seed": 3', '"seed": 4').encode())
    said.clear()
    assert finished.read("H8", SETTINGS) is not None
    arrays.unlink()
    assert finished.read("H8", SETTINGS) is None


def test_without_its_record_a_result_does_not_count(finished: Finished, tmp_path: Path) -> None:
    file(tmp_path, ".json").unlink()
    assert finished.read("H8", SETTINGS) is None


def test_any_schedule_makes_a_file_name(finished: Finished, tmp_path: Path) -> None:
    name = "AB2x20:guided=0.1..0.8@" + ",".join(f"{i / 20:g}" for i in range(21))
    finished.write(name, SETTINGS, FIGURES, ARRAYS)
    assert finished.read(name, SETTINGS) is not None
    assert finished.read(name.replace("0.05", "0.06"), SETTINGS) is None
    for path in (tmp_path / FOLDER).iterdir():
        assert len(path.name) < 70
        assert set(path.name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")


def test_writing_replaces_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a", "old")
    monkeypatch.setattr(os, "replace", lambda a, b: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"


def test_places(tmp_path: Path) -> None:
    check_place(tmp_path / "new" / "report")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(ComparisonError, match="file: is a file; give a folder"):
        check_place(tmp_path / "file")
    with pytest.raises(ComparisonError, match="out: cannot be written; give a folder you may write to"):
        check_place(tmp_path / "file" / "out")
    (tmp_path / "mine").mkdir()
    check_place(tmp_path / "mine")
    (tmp_path / "mine" / "index.html").touch()
    with pytest.raises(ComparisonError, match="mine: holds files of another kind; give a new folder"):
        check_place(tmp_path / "mine")
    (tmp_path / "mine" / FOLDER).mkdir()
    check_place(tmp_path / "mine")


def test_a_folder_that_nobody_may_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(ComparisonError, match="report: cannot be written"):
        check_place(tmp_path / "report")


def test_code_is_known_by_its_content(tmp_path: Path) -> None:
    file = tmp_path / "evaluation" / "quality" / "judge.py"
    file.parent.mkdir(parents=True)
    seen = set()
    for text in ("a = 1", "a = 2"):
        file.write_text(text)
        seen.add(code_sha256(tmp_path))
        assert code_sha256(tmp_path) in seen
    file.rename(file.with_name("judges.py"))
    seen.add(code_sha256(tmp_path))
    (tmp_path / "sampling").mkdir()
    (tmp_path / "sampling" / "steps.py").touch()
    seen.add(code_sha256(tmp_path))
    (tmp_path / "notes.txt").touch()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "sit.py").touch()
    seen.add(code_sha256(tmp_path))
    assert len(seen) == 4
    assert code_sha256() == code_sha256()
