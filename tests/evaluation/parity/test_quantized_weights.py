"""Files of 8-bit engines looked into: what rounding explains, and what it does not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.parity.engine_file import find_fault
from flowturbo_trt.evaluation.parity.options import ParityOptions
from flowturbo_trt.evaluation.parity.thresholds import thresholds
from flowturbo_trt.evaluation.parity.verification import verify
from flowturbo_trt.export.build import build
from flowturbo_trt.export.onnx_graph import load_graph, save_graph
from flowturbo_trt.export.options import BuildOptions
from flowturbo_trt.export.quantization import quantize
from flowturbo_trt.tests.export.recipes import quantized_layers, random_inputs, recipe_for, saved
from flowturbo_trt.tests.faults import Fault, plant, scale_weight

LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
ENDING = {"int8": "int8", "fp8": "float8e4m3fn"}


def weight(layer: str) -> str:
    return f"network.blocks.0.{layer}.weight"


@pytest.fixture
def graph(tiny_bundle: Path) -> Path:
    return tiny_bundle / "onnx" / "predictor.guided.onnx"


@pytest.fixture(params=["int8", "fp8"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def find(graph: Path, tmp_path: Path, kind: str) -> Callable[..., str | None]:
    """Give a function that plants a fault in a quantised graph and looks for it."""

    def look(fault: Fault = lambda model: None, *, smooth: bool = True) -> str | None:
        layers = quantized_layers(graph, random_inputs(graph), kind, smooth=smooth)
        (file,) = save_graph(quantize(load_graph(graph), layers, kind), tmp_path / "engine.onnx")
        model = onnx.load(file)
        fault(model)
        onnx.save(model, file)
        return find_fault(file, graph, thresholds(kind))

    return look


@pytest.mark.parametrize("smooth", [False, True])
def test_honest_engines(find: Callable[..., str | None], smooth: bool) -> None:
    assert find(smooth=smooth) is None


@pytest.mark.parametrize("layer", LAYERS)
def test_any_scale_off_by_two_percent(find: Callable[..., str | None], layer: str, kind: str) -> None:
    """Outputs would not show it. FP8 has numbers this far apart: there it takes a little more."""
    factor = {"int8": 1.02, "fp8": 1.1}[kind]
    fault = find(scale_weight(f"{weight(layer)}_scale", factor))
    assert str(fault).startswith(f"its weight {weight(layer)} is off in ")
    assert str(fault).endswith(f"more than rounding to {kind}")


def test_one_wrong_step(find: Callable[..., str | None], kind: str) -> None:
    def fault(model: onnx.ModelProto) -> None:
        name = f"{weight('mlp.fc1')}_{ENDING[kind]}"
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
        content = bytearray(tensor.raw_data)
        content[5] ^= 0x10
        tensor.raw_data = bytes(content)

    assert f"off in {1 / (16 * 64):.2g} of its values" in str(find(fault))


def test_smoothing_that_is_not_undone(find: Callable[..., str | None]) -> None:
    assert "is off in" in str(find(scale_weight("network.blocks.0.attn.proj.smoothing", 1.3)))


def test_nan_is_a_fault(find: Callable[..., str | None]) -> None:
    assert "is off in" in str(find(scale_weight(f"{weight('attn.qkv')}_scale", float("nan"))))


def test_what_is_not_quantised_is_float32(find: Callable[..., str | None]) -> None:
    fault = find(scale_weight("network.final_layer.linear.weight", 1 + 1e-6))
    assert "final_layer.linear.weight is off by" in str(fault)


def test_other_shape(find: Callable[..., str | None], kind: str) -> None:
    def fault(model: onnx.ModelProto) -> None:
        name = f"{weight('attn.proj')}_{ENDING[kind]}"
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
        del tensor.dims[:]
        tensor.dims.extend([8, 32])

    assert "is [8, 32], [16, 16] in the float32 graph" in str(find(fault))


def test_missing_scale(find: Callable[..., str | None]) -> None:
    def fault(model: onnx.ModelProto) -> None:
        (tensor,) = (t for t in model.graph.initializer if t.name == f"{weight('attn.qkv')}_scale")
        tensor.CopyFrom(numpy_helper.from_array(np.ones(48, np.float32), "elsewhere"))

    with pytest.raises(ValueError, match=r"attn\.qkv\.weight_scale is missing"):
        find(fault)


def test_verify(
    tiny_options: BuildOptions, tiny_bundle: Path, instant_export: list[str], tmp_path: Path, kind: str
) -> None:
    """A bundle with an 8-bit predictor holds; with a weight that is not what was rounded it does not."""
    recipe = saved(recipe_for(tiny_bundle, kind), tmp_path / "recipe.json")
    options = replace(tiny_options, precisions=(kind,), recipes=(recipe,), force=kind == "fp8")
    bundle = build(options, tmp_path / "bundle")
    report = verify(bundle, ParityOptions())
    results: dict[str, Any] = {result.engine.name: result for result in report.engines}
    assert {result.status for result in results.values()} == {"passed"}
    assert results["predictor guided"].limits == thresholds(kind)
    assert results["decoder"].limits == thresholds("fp32")
    assert not any("float32 graphs themselves" in note for note in report.notes)
    plant(bundle.path, "predictor", scale_weight(f"{weight('mlp.fc2')}_scale", 1.1))
    report = verify(Bundle.open(bundle.path), ParityOptions())
    (failed,) = (result for result in report.engines if result.status == "failed")
    assert failed.engine.name == "predictor guided"
    assert "mlp.fc2.weight is off in" in str(failed.file_fault)
