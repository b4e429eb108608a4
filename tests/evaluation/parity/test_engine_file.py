"""Engine files looked into: faults that outputs in half precision do not show."""

import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest

from flowturbo_trt.bundle.manifest import Engine
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.parity.build_side import faults_in_files
from flowturbo_trt.evaluation.parity.engine_file import find_fault
from flowturbo_trt.evaluation.parity.thresholds import thresholds
from flowturbo_trt.tests.bundles import edit_manifest
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
    assert find(half, "predictor_conditioner", None) is None
    assert find(half, "refiner_conditioner", None) is None
    assert find(half, "decoder", None) is None


@pytest.mark.parametrize(
    ("network", "variant", "count"), [("predictor", "guided", 14), ("predictor_conditioner", None, 6)]
)
def test_any_weight_off_by_a_percent(
    half: Path, tmp_path: Path, network: str, variant: str | None, count: int
) -> None:
    """Outputs in fp16 show it in few of these matrices."""
    manifest = Bundle.open(half).manifest
    engine = manifest.engine(network, variant, "onnxruntime")
    (graph,) = (half / g.file for g in manifest.graphs if (g.network, g.variant) == (network, variant))
    names = list(product_weights(onnx.load(half / engine.file)))
    assert len(names) == count
    for index, name in enumerate(names):
        model = onnx.load(half / engine.file)
        scale_product(index, 1.01)(model)
        onnx.save(model, tmp_path / "engine.onnx")
        fault = find_fault(tmp_path / "engine.onnx", graph, thresholds(engine.precision))
        weight = name.removesuffix("_float16").removesuffix("_bfloat16")
        assert str(fault).startswith(f"its weight {weight} is off by ")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(
    ("bundle", "network", "variant"),
    [("golden_bundle", "predictor_conditioner", None), ("golden_fused_bundle", "predictor", "guided")],
)
def test_time_embedding(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    bundle: str,
    network: str,
    variant: str | None,
    precision: str,
) -> None:
    half = copy_in(precision, request.getfixturevalue(bundle), tmp_path)
    plant(half, network, half_precision_time, variant)
    found = find(half, network, variant)
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


def test_what_is_lowered_on_loading_lies_there_in_float32(tiny_copy: Path) -> None:
    """An engine of OpenVINO in bf16: rounding explains no difference in its file."""
    plant(tiny_copy, "predictor", scale_weight("network.final_layer.linear.weight", 1 + 1e-4))

    def change(manifest: dict[str, Any]) -> None:
        for engine in manifest["engines"]:
            engine.update(backend="openvino", precision="bf16")

    edit_manifest(tiny_copy, change)
    faults, notes = faults_in_files(Bundle.open(tiny_copy))
    assert (len(faults), notes) == (1, ())
    assert "final_layer.linear.weight is off by 0.0001" in next(iter(faults.values()))
