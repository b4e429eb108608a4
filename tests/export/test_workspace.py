"""Workspaces: pieces are made once, whatever happens in between, and by one build at a time."""

import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flowturbo_trt.bundle.manifest import BundleError
from flowturbo_trt.export.workspace import Piece, Workspace, open_workspace

KEY = {"weights": "1", "precision": "fp16"}


class Stopped(BaseException):
    """Ends a build as an interrupt does."""


def silent(text: str) -> None:
    pass


def make(
    work: Workspace, text: str = "plan", key: dict[str, str] = KEY, name: str = "predictor"
) -> tuple[Piece, bool]:
    """Ask for a piece of one file; return it with whether it was made."""
    made = []

    def write(folder: Path) -> list[Path]:
        made.append(folder)
        (folder / f"{name}.plan").write_text(text)
        return [folder / f"{name}.plan"]

    return work.piece(name, "engines", key, write), bool(made)


def stop_after(out: Path, action: Callable[[Workspace], object]) -> None:
    def act() -> None:
        with open_workspace(out, silent) as work:
            action(work)
            raise Stopped

    with pytest.raises(Stopped):
        act()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "bundle"


@pytest.fixture
def folder(out: Path) -> Path:
    """Where the workspace is."""
    return out.with_name(".bundle.build")


def test_piece_is_made_and_moved(out: Path) -> None:
    with open_workspace(out, silent) as work:
        piece, made = make(work)
        assert made
        assert list(piece.files) == ["engines/predictor.plan"]
        assert (work.draft / "engines/predictor.plan").read_text() == "plan"
        assert work.files == piece.files


def test_finished_piece_outlives_an_interruption(out: Path) -> None:
    told: list[str] = []
    stop_after(out, make)
    with open_workspace(out, told.append) as work:
        piece, made = make(work)
        assert not made
        assert (work.draft / "engines/predictor.plan").read_text() == "plan"
        assert work.files == piece.files
    assert told == ["predictor: reused, finished by the build before"]


@pytest.mark.parametrize("part", KEY)
def test_another_key_is_another_piece(out: Path, part: str) -> None:
    told: list[str] = []
    stop_after(out, make)
    with open_workspace(out, told.append) as work:
        assert make(work, "other", {**KEY, part: "new"})[1]
        assert (work.draft / "engines/predictor.plan").read_text() == "other"
    assert told == [f"predictor: made anew, for {part} {KEY[part]} → new"]


def test_both_of_two_keys_with_one_file_name(out: Path) -> None:
    """The second took the name, so the first is no longer there to be reused."""
    other = {**KEY, "precision": "bf16"}
    stop_after(out, make)
    stop_after(out, lambda work: make(work, "other", other))
    with open_workspace(out, silent) as work:
        assert not make(work, "other", other)[1]
        assert make(work)[1]


def test_altered_file_is_made_anew(out: Path, folder: Path) -> None:
    told: list[str] = []
    stop_after(out, make)
    (folder / "bundle/engines/predictor.plan").write_text("plum")
    with open_workspace(out, told.append) as work:
        assert make(work)[1]
    assert told[0].startswith("predictor: not reused, a file of it in")


@pytest.mark.parametrize("text", ['{"name": ', "{}", '{"name": "x", "key": {}, "files": []}', "[1]"])
def test_damaged_record_is_made_anew(out: Path, folder: Path, text: str) -> None:
    told: list[str] = []
    stop_after(out, make)
    (record,) = (folder / "finished").iterdir()
    record.write_text(text)
    with open_workspace(out, told.append) as work:
        assert make(work)[1]
    assert "not readable" in told[0]


def test_unfinished_piece_leaves_no_trace(out: Path) -> None:
    def fail(folder: Path) -> list[Path]:
        (folder / "half").write_text("half")
        raise Stopped

    stop_after(out, make)
    stop_after(out, lambda work: work.piece("decoder", "engines", {"weights": "2"}, fail))
    with open_workspace(out, silent) as work:
        make(work, name="decoder", key={"weights": "2"})
        assert sorted(path.name for path in work.draft.rglob("*.*")) == ["decoder.plan", "predictor.plan"]


def test_older_bundle_lends_its_pieces(out: Path, tiny_bundle: Path) -> None:
    shutil.copytree(tiny_bundle, out)
    graph = json.loads((out / "manifest.json").read_text())["graphs"][0]
    told: list[str] = []
    with open_workspace(out, told.append) as work:
        piece = work.piece("onnx predictor guided", "onnx", graph["key"], lambda folder: pytest.fail("made"))
        assert (work.draft / graph["file"]).read_bytes() == (out / graph["file"]).read_bytes()
        assert list(piece.files) == [graph["file"]]
    assert told == [f"onnx predictor guided: reused, finished in {out}"]


def test_older_bundle_is_not_written_through_a_link(out: Path, tiny_bundle: Path) -> None:
    """A piece that was lent, then made for another key under its name."""
    shutil.copytree(tiny_bundle, out)
    graph = json.loads((out / "manifest.json").read_text())["graphs"][0]
    before = (out / graph["file"]).read_bytes()

    def write(folder: Path) -> list[Path]:
        (folder / Path(graph["file"]).name).write_text("other")
        return [folder / Path(graph["file"]).name]

    with open_workspace(out, silent) as work:
        work.piece("onnx predictor guided", "onnx", graph["key"], write)
        work.piece("onnx predictor guided", "onnx", {"weights": "new"}, write)
        assert (work.draft / graph["file"]).read_text() == "other"
    assert (out / graph["file"]).read_bytes() == before


def test_one_damaged_file_of_the_older_bundle(out: Path, tiny_bundle: Path) -> None:
    """The others are still lent."""
    shutil.copytree(tiny_bundle, out)
    first, second, *_ = json.loads((out / "manifest.json").read_text())["graphs"]
    (out / first["file"]).write_bytes(b"damaged")
    told: list[str] = []

    def write(folder: Path) -> list[Path]:
        (folder / Path(first["file"]).name).write_text("anew")
        return [folder / Path(first["file"]).name]

    with open_workspace(out, told.append) as work:
        work.piece("first", "onnx", first["key"], write)
        work.piece("second", "onnx", second["key"], lambda folder: pytest.fail("made"))
        assert (work.draft / first["file"]).read_text() == "anew"
    assert "not reused, a file of it" in told[0]
    assert told[1].startswith("second: reused")


def test_older_bundle_that_names_files_elsewhere(out: Path, tiny_bundle: Path) -> None:
    shutil.copytree(tiny_bundle, out)
    text = (out / "manifest.json").read_text()
    graph = json.loads(text)["graphs"][0]
    (out / "manifest.json").write_text(text.replace(graph["file"], "../elsewhere"))
    shutil.move(out / graph["file"], out.parent / "elsewhere")
    told: list[str] = []
    with open_workspace(out, told.append):
        pass
    assert "which leaves the bundle" in told[0]


def test_reason_is_told_of_the_closest_piece(out: Path) -> None:
    """Plans for one batch size each: the new size is what is new, not another size's plan."""
    keys = [{"weights": "1", "batches": "1"}, {"weights": "1", "batches": "8"}]
    for key in keys:
        stop_after(out, lambda work, key=key: make(work, key=key))
    told: list[str] = []
    with open_workspace(out, told.append) as work:
        make(work, key={"weights": "2", "batches": "8"})
    assert told == ["predictor: made anew, for weights 1 → 2"]


def test_folder_that_no_build_made(out: Path, folder: Path) -> None:
    (folder / "src").mkdir(parents=True)
    with (
        pytest.raises(BundleError, match="is in the way, and no build made it; move it elsewhere"),
        open_workspace(out, silent),
    ):
        pytest.fail("began")
    assert (folder / "src").is_dir()


def test_nothing_stays_where_nothing_was_finished(out: Path, tmp_path: Path) -> None:
    stop_after(out, lambda work: None)
    assert list(tmp_path.iterdir()) == []


def test_nothing_stays_but_the_log_when_done(out: Path, tmp_path: Path) -> None:
    with open_workspace(out, silent) as work:
        make(work)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.build.log"]


def test_log_tells_what_was_done_and_what_failed(out: Path, tmp_path: Path) -> None:
    stop_after(out, make)
    lines = (tmp_path / "bundle.build.log").read_text().strip().splitlines()
    said = [re.fullmatch(r"[-\d]+ [:\d]+  [\d.]+ GiB resident, [\d.]+ at most  (.*)", line) for line in lines]
    assert [match and re.sub(r"[\d.]+ s$", "… s", match[1]) for match in said] == [
        "predictor: made for the first time",
        "predictor: took … s",
        "failed: Stopped:",
    ]


def test_disk_full(out: Path) -> None:
    words = rf"^{out}: the disk is full; nothing there was changed, free some space and build again$"
    with pytest.raises(BundleError, match=words), open_workspace(out, silent):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_other_errors_of_the_system_pass(out: Path) -> None:
    with pytest.raises(OSError, match="Input/output error"), open_workspace(out, silent):
        raise OSError(errno.EIO, "Input/output error")
