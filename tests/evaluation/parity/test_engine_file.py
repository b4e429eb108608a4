"""Engine files looked into: faults that outputs in half precision do not show."""

import shutil
from pathlib import Path

import onnx
import pytest

from flowturbo_trt.bundle.manifest import Engine
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.parity.engine_file import find_fault
from flowturbo_trt.evaluation.parity.thresholds import thresholds
from flowturbo_trt.tests.faults import (
    copy_in,
    half_precision_time,
    plant,
    product_weights,
    scale_product,
    scale_weight,
)


def find(bundle: Path, network: str, variant: str | None = "guided") -> str | None:
    """Look into the engine of a network."""
    opened = Bundle.open(bundle)
    engine: Engine = opened.manifest.engine(network, variant, "onnxruntime")
    (graph,) = (g for g in opened.manifest.graphs if (g.network, g.variant) == (network, variant))
    return find_fault(bundle / engine.file, bundle / graph.file, thresholds(engine.precision))


@pytest.fixture(params=["fp16", "bf16"])
def half(request: pytest.FixtureRequest, golden_bundle: Path, tmp_path: Path) -> Path:
    """The golden bundle with engines in half precision."""
    return copy_in(request.param, golden_bundle, tmp_path)


def test_honest_engines(half: Path) -> None:
    assert find(half, "predictor") is None
    assert find(half, "predictor", "unguided") is None
    assert find(half, "refiner") is None
    assert find(half, "decoder", None) is None


def test_any_weight_off_by_a_percent(half: Path, tmp_path: Path) -> None:
    """Outputs of this predictor in fp16 show it in 2 of its 20 matrices."""
    manifest = Bundle.open(half).manifest
    engine, graph = manifest.engine("predictor", "guided", "onnxruntime"), half / manifest.graphs[0].file
    names = list(product_weights(onnx.load(half / engine.file)))
    assert len(names) == 20
    for index, name in enumerate(names):
        model = onnx.load(half / engine.file)
        scale_product(index, 1.01)(model)
        onnx.save(model, tmp_path / "engine.onnx")
        fault = find_fault(tmp_path / "engine.onnx", graph, thresholds(engine.precision))
        weight = name.removesuffix("_float16").removesuffix("_bfloat16")
        assert str(fault).startswith(f"its weight {weight} is off by ")


def test_time_embedding(half: Path) -> None:
    plant(half, "predictor", half_precision_time)
    found = find(half, "predictor")
    assert found is not None
    assert found.startswith("computes the time embedding in half precision (")


def test_float32_allows_no_change_at_all(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    plant(copy, "predictor", scale_weight("network.final_layer.linear.weight", 1 + 1e-6))
    assert "final_layer.linear.weight is off by" in str(find(copy, "predictor"))


def test_nan_is_a_fault(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    plant(copy, "predictor", scale_weight("network.final_layer.linear.weight", float("nan")))
    assert "off by nan" in str(find(copy, "predictor"))


def test_limits_are_what_rounding_does() -> None:
    assert thresholds("fp16").weight_relative_l2 == 2**-11
    assert thresholds("fp32").weight_relative_l2 == 0
