"""How the C++ library is built: by CMake alone, as a shared or a static library, of the package's version."""

import re
import subprocess
from pathlib import Path

import pytest

import flowturbo_trt
from flowturbo_trt.benchmarks.cpp_builds import SOURCE, Toolchain, onnxruntime_library

FILES = sorted(
    file
    for folder in ("include", "src")
    for kind in ("*.hpp", "*.cpp", "*.h")
    for file in (SOURCE / folder).rglob(kind)
)


def test_version_is_the_packages() -> None:
    cmake = (SOURCE / "CMakeLists.txt").read_text()
    assert re.search(r"project\(flowturbo_trt VERSION (\S+)", cmake)[1] == flowturbo_trt.__version__  # type: ignore[index]


def test_library_finds_onnxruntime_by_itself(cpp_build: Path) -> None:
    """The library of the Python package has no name that a loader looks for."""
    listed = subprocess.run(
        ["ldd", cpp_build / "libflowturbo.so"], capture_output=True, text=True, check=True
    )
    (found,) = re.findall(r"libonnxruntime\S* => (\S+)", listed.stdout)
    assert Path(found).resolve() == onnxruntime_library().resolve()


def test_without_onnxruntime_the_remedy_is_named(tmp_path: Path, cpp_toolchain: Toolchain) -> None:
    command = ["cmake", *cpp_toolchain.generator, "-S", SOURCE, "-B", tmp_path]
    nowhere = ["-DONNXRUNTIME_LIBRARY=ONNXRUNTIME_LIBRARY-NOTFOUND", "-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF"]
    done = subprocess.run([*command, *nowhere], capture_output=True, text=True)
    assert done.returncode != 0
    assert "give ONNXRUNTIME_INCLUDE_DIR and ONNXRUNTIME_LIBRARY" in " ".join(done.stderr.split())


def test_archive_is_found_by_its_folder(tmp_path: Path, cpp_toolchain: Toolchain) -> None:
    """As Microsoft's is laid out: headers in include, the library beside its links in lib."""
    archive, build = tmp_path / "onnxruntime-linux", tmp_path / "build"
    (archive / "lib").mkdir(parents=True)
    headers = next(v for v in cpp_toolchain.variables if "INCLUDE" in v).split("=", 1)[1]
    (archive / "include").symlink_to(headers)
    for name in ("libonnxruntime.so.1", "libonnxruntime.so"):
        (archive / "lib" / name).symlink_to(onnxruntime_library())
    command = ["cmake", *cpp_toolchain.generator, "-S", SOURCE, "-B", build, f"-DCMAKE_PREFIX_PATH={archive}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cache = (build / "CMakeCache.txt").read_text()
    assert f"ONNXRUNTIME_LIBRARY:FILEPATH={archive}/lib/libonnxruntime.so" in cache
    assert f"ONNXRUNTIME_INCLUDE_DIR:PATH={archive}/include" in cache


@pytest.mark.parametrize("header", ["flowturbo.hpp", "pipeline.hpp", "error.hpp", "flowturbo.h"])
def test_headers_stand_alone(cpp_toolchain: Toolchain, header: str) -> None:
    language = ("c", "-std=c99") if header.endswith(".h") else ("c++", "-std=c++17")
    options = [
        "-Wall",
        "-Wextra",
        "-Wpedantic",
        "-Wconversion",
        "-Werror",
        "-fsyntax-only",
        f"-I{SOURCE / 'include'}",
    ]
    command = ["c++" if language[0] == "c++" else "cc", "-x", *language, *options, "-"]
    done = subprocess.run(command, input=f'#include "flowturbo/{header}"\n', capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_sources_keep_to_the_style() -> None:
    for file in FILES:
        code = file.read_text()
        lines = code.splitlines()
        assert len(lines) <= 300, file
        assert max(map(len, lines)) <= 110, file
        assert not re.search(r"(?<![\w.:\"])(new|delete)\s+\w|\bTODO\b", re.sub(r"//.*", "", code)), file
