"""The project that `flowturbo_trt cpp` writes: built and run by its own README, away from the tree."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from flowturbo_trt.benchmarks.cpp_builds import Toolchain, exclusive, onnxruntime_library
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.serving.cpp_project import SOURCES, write_project

README = (SOURCES / "example" / "README.md").read_text(encoding="utf-8")
(COMMANDS,) = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
SCHEDULE = "H1P1R1"
STRICT = "-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror"


@pytest.fixture(scope="module")
def archive(cpp_toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ONNX Runtime laid out as in Microsoft's archive."""
    folder = tmp_path_factory.mktemp("onnxruntime")
    (headers,) = (word.partition("=")[2] for word in cpp_toolchain.variables if "INCLUDE" in word)
    (folder / "include").symlink_to(headers)
    (folder / "lib").mkdir()
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / "lib" / name).symlink_to(onnxruntime_library())
    return folder


@pytest.fixture(scope="module")
def project(archive: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, after its README's commands, with what the README's table says of the archive."""
    folder = tmp_path_factory.mktemp("projects") / "my project"
    write_project(tiny_bundle, folder, schedule=SCHEDULE)
    for line in COMMANDS.splitlines():
        words = shlex.split(line)
        if "--build" not in words and words[0] == "cmake":
            (told,) = re.findall(r"`(\S+=ARCHIVE)`", README)
            words.append(told.replace("ARCHIVE", str(archive)))
        if "--build" in words:
            words += ["--parallel", "2"]
        done = run(folder, *words)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"CXXFLAGS": STRICT}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)


def strip_of(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Put images (N,H,W,3) side by side."""
    return np.concatenate(list(images), axis=1)


def read(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        assert image.format == "PPM"
        return np.asarray(image)


def test_images_are_pythons(project: Path, tiny_pipeline: Pipeline) -> None:
    found = read(project / "images.ppm").astype(int)
    expected = strip_of(tiny_pipeline([0, 1, 2], schedule=SCHEDULE))
    assert expected.std() > 10
    assert np.abs(found - expected).max() <= 1
    assert np.mean(found == expected) >= 0.99
    done = run(project, "build/generate", "bundle", "one.ppm", "2")
    assert re.fullmatch(
        rf"one.ppm: 1 images of 8x8, {SCHEDULE} on onnxruntime; loaded in [\d.]+ ms, "
        r"generated in [\d.]+ ms\n",
        done.stdout,
    )
    first = strip_of(tiny_pipeline([2], seeds=[0], schedule=SCHEDULE))
    assert np.abs(read(project / "one.ppm").astype(int) - first).max() <= 1


def test_library_is_built_along(project: Path) -> None:
    cache = (project / "build" / "CMakeCache.txt").read_text(encoding="utf-8")
    assert "flowturbo_trt_DIR:PATH=flowturbo_trt_DIR-NOTFOUND" in cache
    assert (project / "build" / "library" / "libflowturbo.so").exists()


def test_installed_library_is_taken(
    cpp_build: Path, tiny_bundle: Path, tmp_path: Path, tiny_pipeline: Pipeline
) -> None:
    """Where it is installed, its sources are not needed."""
    write_project(tiny_bundle, tmp_path / "project")
    shutil.rmtree(tmp_path / "project" / "library")
    with exclusive(cpp_build):
        done = run(cpp_build, "cmake", "--install", ".", "--prefix", str(tmp_path / "prefix"))
    assert done.returncode == 0, done.stderr
    for words in (
        ["cmake", "--preset", "onnxruntime", f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'}"],
        ["cmake", "--build", "--preset", "onnxruntime"],
        ["build/generate", "bundle", "images.ppm", "1"],
    ):
        done = run(tmp_path / "project", *words)
        assert done.returncode == 0, done.stdout + done.stderr
    found = read(tmp_path / "project" / "images.ppm").astype(int)
    assert np.abs(found - strip_of(tiny_pipeline([1]))).max() <= 1


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        ([], 2, "usage: generate BUNDLE IMAGES.ppm LABEL..."),
        (["bundle", "x.ppm"], 2, "usage: generate BUNDLE IMAGES.ppm LABEL..."),
        (["bundle", "x.ppm", "1x"], 1, "error: label '1x' is no number"),
        (["bundle", "x.ppm", ""], 1, "error: label '' is no number"),
        (["bundle", "x.ppm", "3"], 1, "error: label 3 is out of range; the model knows 0 to 2"),
        (["build", "x.ppm", "1"], 1, "error: build: no bundle here"),
        (["bundle", "build/none/x.ppm", "1"], 1, "error: build/none/x.ppm: cannot be written"),
    ],
)
def test_mistakes(project: Path, words: list[str], status: int, complaint: str) -> None:
    done = run(project, "build/generate", *words)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(complaint)
    assert done.stderr.count("\n") == 1
    assert not (project / "x.ppm").exists()
