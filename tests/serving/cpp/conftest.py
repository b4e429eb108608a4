"""The C++ library, built once for all tests of it."""

from pathlib import Path

import pytest

from flowturbo_trt.benchmarks.cpp_builds import Toolchain, ToolchainError, find_toolchain, library_build
from flowturbo_trt.tests.serving.cpp.library import Library


@pytest.fixture(scope="session")
def cpp_toolchain(pytestconfig: pytest.Config) -> Toolchain:
    """What builds C++; without it the test is skipped, or fails where --serving asks for all."""
    try:
        return find_toolchain()
    except ToolchainError as error:
        if pytestconfig.getoption("--serving"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def cpp_build(cpp_toolchain: Toolchain) -> Path:
    """The build folder of the library as it is deployed, which holds libflowturbo.so."""
    return library_build(cpp_toolchain, "release", "-DCMAKE_BUILD_TYPE=Release")


@pytest.fixture(scope="session")
def cpp_sanitized_build(cpp_toolchain: Toolchain) -> Path:
    """The build folder of the library under address and undefined-behaviour sanitizers."""
    # Compiled in a third of the time that more optimisation takes.
    optimised = ("-DCMAKE_BUILD_TYPE=RelWithDebInfo", "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -g")
    variables = (*optimised, "-DFLOWTURBO_SANITIZE=address,undefined")
    return library_build(cpp_toolchain, "sanitized", *variables)


@pytest.fixture(scope="session")
def cpp_library(cpp_build: Path) -> Library:
    """The C interface of the library."""
    return Library(cpp_build / "libflowturbo.so")
