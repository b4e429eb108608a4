"""The installed library: another project finds it, and builds against it in C and C++."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from flowturbo_trt.benchmarks.cpp_builds import SOURCE
from flowturbo_trt.runtime.pipeline import Pipeline

CONSUMER = Path(__file__).parent / "consumer"
# Of an interface that others compile against, everything counts.
STRICT = "-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror"


def run(*words: object, folder: Path | None = None) -> str:
    """Run a program in an environment that knows nothing of where libraries are."""
    environment = {"PATH": os.environ["PATH"], "CFLAGS": STRICT, "CXXFLAGS": STRICT}
    done = subprocess.run(list(map(str, words)), cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def prefix(cpp_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the library was installed, and then moved to: a package does not say where it was built."""
    folder = tmp_path_factory.mktemp("installed")
    run("cmake", "--install", cpp_build, "--prefix", folder / "first")
    return (folder / "first").rename(folder / "prefix")


@pytest.fixture(scope="module")
def consumer(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("consumer")
    run("cmake", "-S", CONSUMER, "-B", folder, f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", folder, "--parallel", "2")
    return folder


def test_headers_are_the_public_ones(prefix: Path) -> None:
    found = {path.name for path in (prefix / "include" / "flowturbo").iterdir()}
    assert found == {path.name for path in (SOURCE / "include" / "flowturbo").iterdir()}
    assert not list(prefix.rglob("*.cpp"))


@pytest.mark.parametrize("program", ["c_program", "cpp_program"])
def test_consumer_runs(consumer: Path, tiny_bundle: Path, tiny_pipeline: Pipeline, program: str) -> None:
    first, second = run(consumer / program, tiny_bundle).splitlines()
    total, schedule = first.split()
    image = tiny_pipeline([1], seeds=[7])
    # A value in a thousand may be rounded to the next level.
    assert abs(int(total) - int(image.sum())) <= image.size / 1000
    assert schedule == "H1P1R1"
    assert second.startswith("3 ")
    assert "H99" in second


def test_newer_version_is_not_found(prefix: Path, tmp_path: Path) -> None:
    """A package of another minor version may have another interface."""
    shutil.copytree(CONSUMER, tmp_path / "consumer")
    project = tmp_path / "consumer" / "CMakeLists.txt"
    project.write_text(project.read_text().replace("flowturbo_trt 0.1", "flowturbo_trt 0.99"))
    command = ["cmake", "-S", project.parent, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode != 0
    assert "flowturbo_trtConfig.cmake, version: 0.1" in done.stderr
