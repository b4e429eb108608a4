"""Builds of the C++ library, kept in build/cpp: only what has changed is compiled again."""

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "serving" / "cpp"


class ToolchainError(Exception):
    """Something that C++ is built with is missing."""


@dataclass(frozen=True)
class Toolchain:
    """What every build takes: CMake's generator, and where ONNX Runtime's headers and library are."""

    generator: tuple[str, ...]
    variables: tuple[str, ...]

    def build(self, source: Path, folder: Path, *variables: str, targets: Sequence[str] = ()) -> Path:
        """Configure a source folder and build it; raises AssertionError with what the tools printed."""
        configure: list[str | Path] = ["cmake", *self.generator, "-S", source, "-B", folder]
        compile_: list[str | Path] = ["cmake", "--build", folder, "--parallel", "2"]
        chosen = ["--target", *targets] if targets else []
        for command in ([*configure, *self.variables, *variables], [*compile_, *chosen]):
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
        return folder


def find_toolchain() -> Toolchain:
    """Return what this machine builds C++ with; raises ToolchainError."""
    if not (shutil.which("cmake") and shutil.which("c++")):
        raise ToolchainError("CMake or a C++ compiler is missing: apt-get install cmake g++")
    for header, package in (("nlohmann/json.hpp", "nlohmann-json3-dev"), ("openssl/evp.h", "libssl-dev")):
        check = ("c++", "-fsyntax-only", "-x", "c++", "-include", header, "/dev/null")
        if subprocess.run(check, capture_output=True).returncode:
            raise ToolchainError(f"{header} is missing: apt-get install {package}")
    headers = Path(sys.prefix) / "onnxruntime" / "include" / "onnxruntime"
    if not (headers / "onnxruntime_cxx_api.h").is_file():
        raise ToolchainError(f"ONNX Runtime's headers are not in {headers}: make setup")
    generator = ("-G", "Ninja") if shutil.which("ninja") else ()
    variables = (f"-DONNXRUNTIME_INCLUDE_DIR={headers}", f"-DONNXRUNTIME_LIBRARY={onnxruntime_library()}")
    return Toolchain(generator, (*variables, "-DFLOWTURBO_WARNINGS_AS_ERRORS=ON"))


def onnxruntime_library() -> Path:
    """Return the shared library inside the installed package; raises ToolchainError."""
    spec = find_spec("onnxruntime")
    folders = spec.submodule_search_locations if spec and spec.submodule_search_locations else []
    found = [file for folder in folders for file in Path(folder).glob("capi/libonnxruntime.so.*")]
    if not found:
        raise ToolchainError("ONNX Runtime's shared library is not in the installed package: make setup")
    return found[0]


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep other test processes out of a build folder meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def library_build(toolchain: Toolchain, name: str, *variables: str) -> Path:
    """Build the library into build/cpp/NAME, and return the folder."""
    folder = ROOT / "build" / "cpp" / name
    with exclusive(folder):
        return toolchain.build(SOURCE, folder, *variables)
