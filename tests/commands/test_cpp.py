"""`flowturbo_trt cpp`: what it writes, what it refuses, and that a failure leaves nothing."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.trace import trace
from flowturbo_trt.serving import cpp_project
from flowturbo_trt.tests.bundles import changed_copy

Run = Callable[..., Result]
Document = Callable[..., dict[str, Any]]
Change = Callable[[dict[str, Any]], object]
SOURCES = Path(__file__).parents[2] / "serving" / "cpp"


def contents(folder: Path) -> dict[str, bytes]:
    """Return what the files of a folder hold, by their paths in it."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def with_backends(*names: str) -> Change:
    """Say that the bundle's engines are those of other backends as well; one file each is its own."""

    def change(manifest: dict[str, Any]) -> None:
        own = list(manifest["engines"])
        manifest["engines"] += [engine | {"backend": name} for name in names for engine in own]

    return change


def test_project(document: Document, tiny_bundle: Path, here: Path) -> None:
    told = document("cpp", tiny_bundle, "new/project")
    project = here / "new" / "project"
    assert told["project"] == str(project)
    assert (told["backend"], told["schedule"]) == ("onnxruntime", "H1P1R1")
    assert told["commands"] == [
        "cmake --preset onnxruntime",
        "cmake --build --preset onnxruntime",
        "build/generate bundle images.ppm 0",
    ]
    assert sorted(path.name for path in project.iterdir()) == sorted(
        [*contents(SOURCES / "example"), "bundle", "library"]
    )
    assert contents(SOURCES / "example").items() <= contents(project).items()
    library = contents(project / "library")
    assert library.items() <= contents(SOURCES).items()
    assert {"CMakeLists.txt", "include/flowturbo/flowturbo.hpp", "src/manifest.hpp"} <= library.keys()
    assert not any(name.startswith(("example/", "fuzz/")) for name in library)
    assert [path.name for path in project.parent.iterdir()] == ["project"]
    # Not private, as temporary folders are.
    assert project.stat().st_mode == (SOURCES / "example").stat().st_mode


def test_presets_are_those_of_the_example() -> None:
    presets = json.loads((SOURCES / "example" / "CMakePresets.json").read_text(encoding="utf-8"))
    for kind in ("configurePresets", "buildPresets"):
        assert {preset["name"] for preset in presets[kind]} == set(cpp_project.PRESETS.values())


def test_what_one_backend_runs(document: Document, tiny_bundle: Path, tmp_path: Path) -> None:
    """Graphs that only `verify` reads stay behind, and so do other backends' engines."""

    def change(manifest: dict[str, Any]) -> None:
        with_backends("tensorrt-rtx", "openvino")(manifest)
        for engine in manifest["engines"]:
            if engine["backend"] == "tensorrt-rtx":
                engine["file"] = engine["file"].replace("onnx/", "engines/")
                manifest["files"][engine["file"]] = dict(
                    manifest["files"][engine["file"].replace("engines/", "onnx/")]
                )

    (tmp_path / "in").mkdir()
    source = changed_copy(tiny_bundle, tmp_path / "in", change)
    shutil.copytree(source / "onnx", source / "engines")
    told = document("cpp", source, tmp_path / "project", "--backend", "tensorrt-rtx")
    assert told["commands"][0] == "cmake --preset tensorrt"
    bundle = Bundle.open(tmp_path / "project" / "bundle")
    bundle.check_all()
    assert {engine.backend for engine in bundle.manifest.engines} == {"tensorrt-rtx"}
    assert {name.partition("/")[0] for name in bundle.manifest.files} == {"engines"}
    assert bundle.manifest.graphs == ()
    assert told["bytes"] == sum(path.stat().st_size for path in (bundle.path / "engines").iterdir())


@pytest.mark.parametrize("schedule", ["H2", "H3", "P2R2"])
def test_schedule_becomes_the_default(run: Run, tiny_bundle: Path, tmp_path: Path, schedule: str) -> None:
    """Also one that the bundle has no program of: C++ runs programs, and reads no schedules."""
    run("cpp", tiny_bundle, tmp_path / "project", "--schedule", schedule)
    manifest = Bundle.open(tmp_path / "project" / "bundle").manifest
    assert manifest.default_schedule == schedule
    assert manifest.programs[schedule] == {"guided": trace(Schedule.parse(schedule), "guided")}
    assert set(manifest.programs) == {"H1P1R1", "H2", schedule}


def test_what_to_do_next_is_said(run: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "my project").mkdir()
    text = run("cpp", tiny_bundle, tmp_path / "my project").stdout
    first, second, *commands = text.splitlines()
    assert first.startswith(f"{tmp_path / 'my project'}: H1P1R1 on onnxruntime, 0.")
    assert second == f"cd '{tmp_path / 'my project'}'"
    assert commands[0] == "cmake --preset onnxruntime"


def only(backend: str) -> Change:
    return lambda manifest: [engine.update(backend=backend) for engine in manifest["engines"]]


def no_null(manifest: dict[str, Any]) -> None:
    manifest["model"]["conditions"][0]["null"] = None


def two_conditions(manifest: dict[str, Any]) -> None:
    manifest["model"]["conditions"].append(manifest["model"]["conditions"][0] | {"name": "style"})


def one_batch_without_decoder(manifest: dict[str, Any]) -> None:
    (decoder,) = (engine for engine in manifest["engines"] if engine["network"] == "decoder")
    decoder["batches"] = [1]


def no_refiner(manifest: dict[str, Any]) -> None:
    manifest["engines"] = [e for e in manifest["engines"] if not e["network"].startswith("refiner")]


@pytest.mark.parametrize(
    ("change", "words", "complaint"),
    [
        (
            None,
            ["--backend", "mosaic"],
            "backend 'mosaic': C++ runs onnxruntime, tensorrt-rtx, tensorrt; build",
        ),
        (
            None,
            ["--backend", "tensorrt"],
            "no engines for tensorrt (it has: onnxruntime); rebuild it with --back",
        ),
        (None, ["--schedule", "R1"], "R1: starts with R"),
        (None, ["--schedule", "H2:guided=0..0.1"], "needs the unguided predictor"),
        (only("openvino"), [], "backend 'openvino': C++ runs onnxruntime"),
        (lambda manifest: manifest.update(engines=[]), [], "no engines for onnxruntime (it has: none)"),
        (lambda manifest: manifest["model"].update(image=None), [], "no decoder, which the example needs"),
        (two_conditions, [], "the model's conditions are ['label', 'style'], C++ takes ['label'] alone"),
        (no_null, [], "does not say which label stands for none"),
        (one_batch_without_decoder, [], "has no decoder engine for onnxruntime"),
        (no_refiner, [], "has no guided refiner engine for onnxruntime"),
    ],
)
def test_bundles_that_cpp_cannot_run(
    fails: Callable[..., str],
    tiny_bundle: Path,
    tmp_path: Path,
    change: Change | None,
    words: list[str],
    complaint: str,
) -> None:
    source = changed_copy(tiny_bundle, tmp_path, change) if change else tiny_bundle
    assert complaint in fails("cpp", source, tmp_path / "new" / "project", *words)
    assert not (tmp_path / "new").exists()


def test_altered_file(fails: Callable[..., str], tiny_copy: Path, tmp_path: Path) -> None:
    file = next((tiny_copy / "onnx").iterdir())
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    assert "sha256 differs" in fails("cpp", tiny_copy, tmp_path / "project")
    assert not (tmp_path / "project").exists()


def test_places(fails: Callable[..., str], tiny_copy: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    full, file, link = (tmp_path / name for name in ("full", "file", "link"))
    full.mkdir()
    (full / "mine.cpp").write_text("mine")
    file.write_text("mine")
    link.symlink_to("nowhere")
    for place in (full, file, link):
        assert "exists already; give a new path" in fails("cpp", tiny_bundle, place)
    assert "is within the bundle" in fails("cpp", tiny_copy, tiny_copy / "project")
    assert "cannot be written (File exists)" in fails("cpp", tiny_bundle, file / "project")
    assert contents(full) == {"mine.cpp": b"mine"}
    Bundle.open(tiny_copy)


def test_empty_folder_is_taken(run: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    run("cpp", tiny_bundle, tmp_path / "project")
    assert (tmp_path / "project" / "main.cpp").is_file()


@pytest.mark.parametrize("failing", ["copy", "rename"])
def test_failure_leaves_nothing(
    fails: Callable[..., str],
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
) -> None:
    """A full disk, and a folder that somebody else fills before the project is put there."""

    def fail(source: Path, target: Path) -> None:
        number = errno.ENOSPC if failing == "copy" else errno.ENOTEMPTY
        raise OSError(number, os.strerror(number), str(target))

    monkeypatch.setattr("shutil.copy" if failing == "copy" else "os.rename", fail)
    line = fails("cpp", tiny_bundle, tmp_path / "project")
    reason = "No space left on device" if failing == "copy" else "Directory not empty"
    assert f"cannot be written ({reason})" in line
    assert list(tmp_path.iterdir()) == []
