"""How the C++ library divides requests: as Python does, so that both run the same batches."""

import subprocess
from pathlib import Path

import pytest

from flowturbo_trt.benchmarks.cpp_builds import SOURCE, Toolchain
from flowturbo_trt.runtime.batching import split

SIZES = ((1,), (8,), (1, 8), (1, 3), (3, 1), (2, 3, 7), (1, 2, 4, 8, 16), (5, 5))
PROGRAM = """
#include <cstdlib>
#include <iostream>
#include "batching.hpp"

int main(int count, char** arguments) {
  std::vector<std::int64_t> sizes;
  for (int index = 1; index < count; ++index) sizes.push_back(std::atoll(arguments[index]));
  for (std::size_t rows = 1; rows <= 60; ++rows) {
    for (const std::int64_t part : flowturbo::split(rows, sizes)) std::cout << part << ' ';
    std::cout << '\\n';
  }
}
"""


@pytest.fixture(scope="module")
def program(cpp_toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("batching")
    (folder / "main.cpp").write_text(PROGRAM)
    sources = [folder / "main.cpp", SOURCE / "src" / "batching.cpp"]
    command = ["c++", "-std=c++17", f"-I{SOURCE / 'src'}", *sources, "-o", folder / "main"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "main"


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_batches_are_pythons(program: Path, sizes: tuple[int, ...]) -> None:
    done = subprocess.run([program, *map(str, sizes)], capture_output=True, text=True, check=True)
    found = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert found == [split(rows, sizes) for rows in range(1, 61)]
