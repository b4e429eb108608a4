"""The digits bundle that servers and C++ programs are tested with, and the server."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from flowturbo_trt.benchmarks.triton_server import Installation


@pytest.fixture(scope="session")
def digits_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits of the committed weights at batches 1 and 8, with guidance and without."""
    from dataclasses import replace

    from flowturbo_trt.examples.digits.bundle import digits_options
    from flowturbo_trt.export.build import build

    options = replace(
        digits_options(),
        batches=(1, 8),
        variants=("guided", "unguided"),
        schedules=("H1P5R3", "H1P1R1", "H25"),
    )
    return build(options, tmp_path_factory.mktemp("serving") / "digits").path


@pytest.fixture(scope="session")
def triton_server(pytestconfig: pytest.Config) -> "Installation":
    """A Triton server; without one the test is skipped, or fails where --serving asks for all."""
    from flowturbo_trt.benchmarks.triton_server import TritonServerError, find_server

    try:
        return find_server()
    except TritonServerError as error:
        if pytestconfig.getoption("--serving"):
            pytest.fail(str(error))
        pytest.skip(str(error))
