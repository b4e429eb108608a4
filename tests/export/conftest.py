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
VELOCITY_NETWORKS = ("predictor.guided", "predictor.unguided", "refiner.guided", "refiner.unguided")
GRAPHS = (
    *(f"golden_bundle {name}" for name in VELOCITY_NETWORKS),
    "golden_bundle predictor_conditioner",
    "golden_bundle refiner_conditioner",
    "golden_bundle decoder",
    *(f"golden_fused_bundle {name}" for name in VELOCITY_NETWORKS),
)
# 3 blocks and 1, of 6 × 96 values each, and 2 × 96 of the final layer.
MODULATION_WIDTHS = {"predictor": 1920, "refiner": 768}


@pytest.fixture(params=GRAPHS)
def graph(request: pytest.FixtureRequest) -> Path:
    """Each ONNX file of the golden bundles in turn: trunks, conditioners, the decoder, whole networks."""
    bundle, name = request.param.split()
    folder: Path = request.getfixturevalue(bundle)
    return folder / "onnx" / f"{name}.onnx"


@pytest.fixture
def conditioning(request: pytest.FixtureRequest, graph: Path) -> str:
    """How the bundle of `graph` was built."""
    return "fused" if "fused" in request.node.callspec.params["graph"] else "hoisted"


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
    width = MODULATION_WIDTHS["refiner" if graph.name.startswith("refiner") else "predictor"]
    return {
        "state": random.standard_normal((5, 4, 8, 8), dtype=np.float32),
        "time": random.random(5, dtype=np.float32),
        "label": np.array([0, 9, 3, 3, 7]),
        "modulation": random.standard_normal((5, width), dtype=np.float32),
        "null_modulation": random.standard_normal((5, width), dtype=np.float32),
        "guidance": np.array([1.5, 0, 1, 4, -1], dtype=np.float32),
        "velocity": random.standard_normal((5, halves, 4, 8, 8), dtype=np.float32),
    }
