"""The golden numbers of the reference implementation, and the networks that made them."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

if TYPE_CHECKING:
    from flowturbo_trt.models.sit import SiT

Arrays = Mapping[str, NDArray[Any]]
pytest_plugins = ("flowturbo_trt.tests.bundles",)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--serving",
        action="store_true",
        help="fail, rather than skip, where a Triton server or what builds C++ is missing",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest file, so that one process does not work at it when all others are done."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    return Path(__file__).parent / "golden" / "sit-tiny"


@pytest.fixture(scope="session")
def golden_config(golden_folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((golden_folder / "config.json").read_text())
    return config


@pytest.fixture(scope="session")
def golden(golden_folder: Path) -> Arrays:
    """The arrays of trajectories.npz: inputs, raw forward passes, trajectories and one training step."""
    with np.load(golden_folder / "trajectories.npz", allow_pickle=False) as arrays:
        return dict(arrays)


# torch is imported only by the fixtures that need it: the tests of `sampling` run without it.


@pytest.fixture(scope="session")
def golden_predictor(golden_folder: Path, golden_config: dict[str, Any]) -> "SiT":
    from flowturbo_trt.models.checkpoints import load_checkpoint, load_predictor

    return load_predictor(load_checkpoint(golden_folder / "predictor.pt"), golden_config)


@pytest.fixture(scope="session")
def golden_refiner(golden_folder: Path, golden_predictor: "SiT") -> "SiT":
    from flowturbo_trt.models.checkpoints import load_checkpoint, load_refiner

    return load_refiner(load_checkpoint(golden_folder / "refiner.pt"), golden_predictor.config)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads cost more than they bring on networks of this size."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
