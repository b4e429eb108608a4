"""The graphs of the shared bundles, and calling them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
Call = Callable[[Path, Arrays], NDArray[Any]]
NAMES = (
    "predictor.guided",
    "predictor.unguided",
    "refiner.guided",
    "refiner.unguided",
    "decoder",
)


@pytest.fixture(params=NAMES)
def graph(request: pytest.FixtureRequest, golden_bundle: Path) -> Path:
    """Each ONNX file of the golden bundle in turn."""
    return golden_bundle / "onnx" / f"{request.param}.onnx"


@pytest.fixture(scope="session")
def call() -> Call:
    """Give a function that runs an ONNX file on arrays, of which it takes what it knows."""

    def run(path: Path, arrays: Arrays) -> NDArray[Any]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (output,) = session.run(None, {each.name: arrays[each.name] for each in session.get_inputs()})
        result: NDArray[Any] = output
        return result

    return run


@pytest.fixture
def arrays(graph: Path) -> Arrays:
    """Inputs of five rows, a batch that nothing was built for."""
    random = np.random.default_rng(7)
    halves = 2 if ".guided" in graph.name else 1
    return {
        "state": random.standard_normal((5, 4, 8, 8), dtype=np.float32),
        "time": random.random(5, dtype=np.float32),
        "label": np.array([0, 9, 3, 3, 7]),
        "guidance": np.array([1.5, 0, 1, 4, -1], dtype=np.float32),
        "velocity": random.standard_normal((5, halves, 4, 8, 8), dtype=np.float32),
    }
