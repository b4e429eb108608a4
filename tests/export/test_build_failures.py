"""Builds that cannot be: said before long work where it can be known, and nothing lost otherwise."""

import errno
import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import onnxruntime
import pytest

from flowturbo_trt.bundle.manifest import BundleError, Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.export.build import build
from flowturbo_trt.export.compile import CompileError, Compiler, EngineRequest
from flowturbo_trt.export.options import BuildError, BuildOptions
from flowturbo_trt.tests.bundles import save_autoencoder


@pytest.fixture
def old(tiny_copy: Path) -> Manifest:
    """What the bundle at `tiny_copy` says before a build."""
    return Bundle.open(tiny_copy).manifest


def assert_untouched(path: Path, old: Manifest) -> None:
    bundle = Bundle.open(path)
    bundle.check_all()
    assert bundle.manifest == old


@pytest.fixture
def other_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that was built before can be reused."""
    monkeypatch.setattr("flowturbo_trt.export.keys.code_hash", lambda: "other")


def failing_compiler(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let the second engine fail."""
    done: list[str] = []

    def compile_engine(request: EngineRequest, folder: Path) -> tuple[Path, ...]:
        if done:
            raise error
        done.append(request.name)
        (folder / "engine").write_text("engine")
        return (folder / "engine",)

    compiler = Compiler("a compiler", compile_engine)
    monkeypatch.setattr("flowturbo_trt.export.build.load_compiler", lambda backend, targets: compiler)


@pytest.mark.parametrize(
    "error",
    [CompileError("midway"), RuntimeError("midway"), KeyboardInterrupt("midway"), MemoryError("midway")],
)
def test_failure_midway(
    tiny_options: BuildOptions,
    tiny_copy: Path,
    old: Manifest,
    instant_export: list[str],
    other_code: None,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    failing_compiler(monkeypatch, error)
    with pytest.raises(type(error), match="midway"):
        build(replace(tiny_options, schedules=("H5",), precisions=("fp16",)), tiny_copy)
    assert len(instant_export) == 5
    assert_untouched(tiny_copy, old)


def test_failure_in_a_new_place_is_gone_on_from(
    tiny_options: BuildOptions, tmp_path: Path, instant_export: list[str]
) -> None:
    told: list[str] = []
    options = replace(tiny_options, precisions=("fp16",))
    with pytest.MonkeyPatch.context() as monkeypatch:
        failing_compiler(monkeypatch, RuntimeError("midway"))
        with pytest.raises(RuntimeError):
            build(options, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    build(options, tmp_path / "bundle", say=told.append).check_all()
    assert len(instant_export) == 5
    conditioners = ("predictor_conditioner", "refiner_conditioner")
    names, version = ("predictor guided", "refiner guided", *conditioners, "decoder"), onnxruntime.__version__
    assert told == [
        *(f"onnx {name}: reused, finished by the build before" for name in names),
        f"onnxruntime predictor guided: made anew, for builder a compiler → onnxruntime {version}",
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "bundle.build.log"}


@pytest.mark.parametrize("function", ["export_one", "load_sources", "describe"])
def test_disk_full(
    tiny_options: BuildOptions,
    tiny_copy: Path,
    old: Manifest,
    instant_export: list[str],
    other_code: None,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"flowturbo_trt.export.build.{function}", full)
    with pytest.raises(BundleError, match=f"^{tiny_copy}: the disk is full; nothing there was changed, "):
        build(tiny_options, tiny_copy)
    assert_untouched(tiny_copy, old)


@pytest.fixture
def refused(tiny_options: BuildOptions, instant_export: list[str]) -> Callable[..., None]:
    """Give a function that expects a refusal before a checkpoint is read or anything is exported."""
    told: list[str] = []

    def check(out: Path, words: str, **changes: Any) -> None:
        with pytest.raises((BundleError, CompileError), match=words):
            build(replace(tiny_options, **changes), out, lambda what, done, total: told.append(what))
        assert told == []
        assert instant_export == []

    return check


def test_folder_that_is_no_bundle(refused: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("text")
    refused(tmp_path / "thesis", "thesis: exists and is no bundle; give a new path")
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "text"


def test_file_in_the_way(refused: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("text")
    refused(tmp_path / "notes", "notes: exists and is no bundle")
    assert (tmp_path / "notes").read_text() == "text"


def test_parent_that_is_a_file(refused: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("text")
    refused(tmp_path / "notes" / "bundle", r"cannot be written \(.*\); give a path you may write to")


@pytest.mark.parametrize(("backend", "package"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx")])
def test_missing_package_is_told_first(
    refused: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    package: str,
) -> None:
    """A backend that is not installed is found before minutes of export."""
    found = importlib.import_module

    def import_module(name: str, *arguments: Any) -> ModuleType:
        if name == package:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return found(name, *arguments)

    monkeypatch.setattr("importlib.import_module", import_module)
    words = rf"{backend} is not installed .*flowturbo_trt\[{backend}\]"
    refused(tmp_path / "bundle", words, backends=("onnxruntime", backend))


def test_unknown_target_is_told_first(refused: Callable[..., None], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    refused(tmp_path / "bundle", "unknown target '9.9'", backends=("tensorrt-rtx",), targets=("8.9", "9.9"))


def test_decoder_of_other_channels(
    tiny_options: BuildOptions, tmp_path: Path, instant_export: list[str]
) -> None:
    decoder = save_autoencoder(tmp_path / "autoencoder", 4, 3, spread=1)
    with pytest.raises(BuildError, match="decodes 4 latent channels, the predictor has 2"):
        build(replace(tiny_options, decoder=decoder), tmp_path / "bundle")
    assert instant_export == []
    assert [path.name for path in tmp_path.iterdir()] == ["autoencoder"]
