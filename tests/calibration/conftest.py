"""Recordings that several tests of calibration look at, and a bundle to calibrate in vain."""

from pathlib import Path

import onnx
import pytest

from flowturbo_trt.bundle.store import Bundle, sha256
from flowturbo_trt.calibration.precision.activations import find_graph
from flowturbo_trt.calibration.recording.trajectories import Recording, record
from flowturbo_trt.tests.bundles import edit_manifest
from flowturbo_trt.tests.faults import scale_weight

# Guided, unguided within a schedule, and refined; one row more than batches of two hold.
GOLDEN_SCHEDULES = ("H1P1R1", "H2:guided=0.2..0.6")
GOLDEN_ROWS = 5


@pytest.fixture(scope="session")
def golden_recording(golden_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Trajectories of the golden networks: two halves where guided, conditioning hoisted."""
    folder = tmp_path_factory.mktemp("recordings") / "golden"
    return record(
        Bundle.open(golden_bundle),
        GOLDEN_SCHEDULES,
        folder,
        rows=GOLDEN_ROWS,
        seed=3,
        guidance=(1.5, 3.0),
        threads=1,
    )


@pytest.fixture(scope="session")
def tiny_recording(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Trajectories of the tiny networks: one half."""
    folder = tmp_path_factory.mktemp("recordings") / "tiny"
    return record(Bundle.open(tiny_bundle), ("H1P1R1",), folder, rows=4, threads=1)


@pytest.fixture
def broken_bundle(tiny_copy: Path) -> Bundle:
    """The tiny networks with a predictor that gives NaN."""
    return scale_weights(tiny_copy, float("nan"), "network.blocks.0.attn.proj.weight")


@pytest.fixture
def still_bundle(tiny_copy: Path) -> Bundle:
    """The tiny networks with a predictor that gives zeros, as untrained ones do."""
    last = "network.final_layer.linear"
    return scale_weights(tiny_copy, 0.0, f"{last}.weight", f"{last}.bias")


def scale_weights(bundle: Path, factor: float, *weights: str) -> Bundle:
    """Scale weights of a bundle's predictor in its float32 graph."""
    file = find_graph(Bundle.open(bundle).manifest, "predictor", "guided").file
    model = onnx.load(bundle / file)
    for weight in weights:
        scale_weight(weight, factor)(model)
    onnx.save(model, bundle / file)
    record = {"bytes": (bundle / file).stat().st_size, "sha256": sha256(bundle / file)}
    edit_manifest(bundle, lambda manifest: manifest["files"].update({file: record}))
    return Bundle.open(bundle)
