"""Q/DQ in graphs: what stands where, and that it computes what 8 bits would."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from torch import nn

from flowturbo_trt.evaluation.metrics import relative_l2
from flowturbo_trt.export.networks import velocity_outputs_only, with_guidance
from flowturbo_trt.export.onnx_graph import load_graph, save_graph
from flowturbo_trt.export.quantization import (
    KINDS,
    LARGEST,
    QuantizedLinear,
    RecipeError,
    linear_layers,
    quantize,
)
from flowturbo_trt.models.checkpoints import load_checkpoint, load_predictor
from flowturbo_trt.tests.bundles import TINY_CONFIG
from flowturbo_trt.tests.export.recipes import quantized_layers, random_inputs

if TYPE_CHECKING:
    from flowturbo_trt.export.options import BuildOptions

Arrays = Mapping[str, NDArray[Any]]
ELEMENT = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
ENDING = {"int8": "int8", "fp8": "float8e4m3fn"}
NUMPY = {"int8": np.int8, "fp8": ml_dtypes.float8_e4m3fn}
LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def run(path: Path, arrays: Arrays, *, optimised: bool = False) -> NDArray[np.float32]:
    """Compute a graph as it is written, Q and DQ one by one, or as ONNX Runtime likes it best."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    output: NDArray[np.float32] = session.run(None, {i.name: arrays[i.name] for i in session.get_inputs()})[0]
    return output


def product(folder: Path, weight: NDArray[np.float32]) -> Path:
    """A graph of one linear layer: y = x·w + b."""
    n, m = weight.shape
    x = onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", n])
    y = onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", m])
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "network.layer.weight"], ["p"]),
        onnx.helper.make_node("Add", ["p", "network.layer.bias"], ["y"]),
    ]
    bias = np.linspace(-1, 1, m, dtype=np.float32)
    weights = [
        numpy_helper.from_array(weight, "network.layer.weight"),
        numpy_helper.from_array(bias, "network.layer.bias"),
    ]
    graph = onnx.helper.make_graph(nodes, "product", [x], [y], weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 22)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model), folder / "product.onnx")
    return folder / "product.onnx"


def write(source: Path, layers: Mapping[str, QuantizedLinear], kind: str, folder: Path) -> Path:
    return save_graph(quantize(load_graph(source), layers, kind), folder / f"{kind}.onnx")[0]


def rounded(values: Any, scale: Any, kind: str) -> NDArray[np.float32]:
    """What the 8-bit numbers of a kind give back, by definition."""
    steps = np.asarray(values / scale, dtype=np.float32)
    if kind == "int8":
        return np.clip(np.round(steps), -128, 127) * np.float32(scale)
    return np.clip(steps, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale


@pytest.fixture(params=["int8", "fp8"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("smooth", [False, True])
def test_product_by_definition(tmp_path: Path, kind: str, smooth: bool) -> None:
    """Of one layer: scales that float16 has, inputs beyond the range cut off, a channel of zeros."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((24, 10), dtype=np.float32) * np.logspace(-4, 1, 10, dtype=np.float32)
    weight[:, 4] = 0
    x = random.standard_normal((50, 24), dtype=np.float32)
    s = np.linspace(0.3, 4, 24, dtype=np.float32) if smooth else np.ones(24, dtype=np.float32)
    scale = np.float32(np.float16(2.5 / LARGEST[kind]))
    layer = QuantizedLinear(float(scale), tuple(map(float, s)) if smooth else ())
    found = run(write(product(tmp_path, weight), {"layer": layer}, kind, tmp_path), {"x": x})
    scaled = weight * s[:, None]
    exact = np.maximum(np.abs(scaled).max(axis=0), 1e-9) / LARGEST[kind]
    of_outputs = np.where(exact > 1e-9, exact, 1).astype(np.float16)
    above = np.nextafter(of_outputs, np.float16(np.inf))
    held = np.where(of_outputs < exact, above, of_outputs).astype(np.float32)
    expected = rounded(x * (1 / s), scale, kind) @ rounded(scaled, held, kind)
    assert relative_l2(found, expected + np.linspace(-1, 1, 10, dtype=np.float32)) < 1e-6
    assert relative_l2(found, x @ weight + np.linspace(-1, 1, 10, dtype=np.float32)) > 1e-3


def test_whole_network_by_definition(
    tiny_options: "BuildOptions", tiny_bundle: Path, tmp_path: Path, kind: str, one_thread: None
) -> None:
    """The engine's graph against the torch network with fake-quantised linear layers."""
    graph = tiny_bundle / "onnx" / "predictor.guided.onnx"
    arrays = random_inputs(graph)
    layers = quantized_layers(graph, arrays, kind)
    path = write(graph, layers, kind, tmp_path)
    network = load_predictor(load_checkpoint(tiny_options.predictor), TINY_CONFIG)
    module = with_guidance(velocity_outputs_only(network), "guided", 2, "hoisted")
    for name, layer in layers.items():
        owner, _, last = f"network.{name}".rpartition(".")
        parent = module.get_submodule(owner)
        setattr(parent, last, Rounding(parent.get_submodule(last), layer, kind))
    with torch.no_grad():
        expected = module(**{name: torch.from_numpy(array) for name, array in arrays.items()}).numpy()
    # Here and there float32 falls to the other side of a rounding.
    assert relative_l2(run(path, arrays), expected) < 1e-3
    assert relative_l2(run(graph, arrays), expected) > 5e-3


class Rounding(nn.Module):
    """A linear layer on 8-bit numbers, in float32."""

    def __init__(self, linear: nn.Module, layer: QuantizedLinear, kind: str) -> None:
        super().__init__()
        assert isinstance(linear, nn.Linear)
        self.s = torch.tensor(layer.smooth)
        self.kind, self.bias = kind, linear.bias
        self.scale = self.above(torch.tensor(layer.scale))
        weight = linear.weight * self.s
        self.weight = self.round(weight, self.above(weight.abs().amax(dim=1, keepdim=True) / LARGEST[kind]))

    def above(self, scale: torch.Tensor) -> torch.Tensor:
        half = scale.half()
        up = torch.from_numpy(np.asarray(np.nextafter(half.numpy(), np.float16(np.inf))))
        return torch.where(half.float() < scale, up, half).float()

    def round(self, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        steps = values / scale
        if self.kind == "int8":
            return steps.round().clamp(-128, 127) * scale
        return steps.clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.round(x * (1 / self.s), self.scale), self.weight, self.bias)


def test_form(tiny_bundle: Path, tmp_path: Path, kind: str) -> None:
    """Symmetric, weights as 8 bits with a scale for each output, inputs with one; no bias in integers."""
    graph = tiny_bundle / "onnx" / "predictor.guided.onnx"
    layers = quantized_layers(graph, random_inputs(graph), kind)
    model = onnx.load(write(graph, layers, kind, tmp_path))
    onnx.checker.check_model(model, full_check=True)
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = Counter(node.op_type for node in model.graph.node)
    assert nodes["QuantizeLinear"] == len(layers) == 4
    assert nodes["DequantizeLinear"] == 8
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in held:
            weight, scale = (held[name] for name in node.input)
            assert weight.data_type == ELEMENT[kind]
            assert list(scale.dims) == [weight.dims[1]]
            assert node.attribute[0].name == "axis"
            assert node.attribute[0].i == 1
        if node.op_type == "QuantizeLinear":
            _, scale, zero = (held.get(name) for name in node.input)
            assert scale is not None
            assert zero is not None
            assert (list(scale.dims), zero.data_type) == ([], ELEMENT[kind])
            assert float(numpy_helper.to_array(zero).astype(np.float32)) == 0
    for name in layers:
        assert f"network.{name}.weight" not in held
    # What is not named stays as it was.
    before = {tensor.name: tensor for tensor in onnx.load(graph).graph.initializer}
    assert held["network.final_layer.linear.weight"] == before["network.final_layer.linear.weight"]
    assert {t.data_type for n, t in held.items() if n.endswith(".bias")} == {TensorProto.FLOAT}
    sizes = {tensor.name: len(tensor.raw_data) for tensor in model.graph.initializer}
    assert sizes[f"network.blocks.0.mlp.fc1.weight_{ENDING[kind]}"] == 16 * 64


def test_scales_are_those_of_half_precision(tiny_bundle: Path, tmp_path: Path, kind: str) -> None:
    graph = tiny_bundle / "onnx" / "refiner.guided.onnx"
    model = onnx.load(write(graph, quantized_layers(graph, random_inputs(graph), kind), kind, tmp_path))
    for tensor in model.graph.initializer:
        if tensor.name.endswith("_scale"):
            scale = numpy_helper.to_array(tensor)
            assert (scale == scale.astype(np.float16)).all()
            assert (scale > 0).all()


def test_scale_far_below_half_precision(tmp_path: Path) -> None:
    """A layer of nearly nothing is still a product, not a division by zero."""
    weight = np.full((4, 4), 1e-12, dtype=np.float32)
    path = write(product(tmp_path, weight), {"layer": QuantizedLinear(1e-12)}, "int8", tmp_path)
    assert np.isfinite(run(path, {"x": np.ones((2, 4), np.float32)})).all()


def test_scale_beyond_half_precision(tmp_path: Path) -> None:
    graph = product(tmp_path, np.ones((4, 4), np.float32))
    with pytest.raises(RecipeError, match=r"^layer: a scale of 1e\+05 is more than float16 holds"):
        quantize(load_graph(graph), {"layer": QuantizedLinear(1e5)}, "int8")


def test_onnxruntime_takes_integer_products(tiny_bundle: Path, tmp_path: Path) -> None:
    """Q/DQ in the form that its optimiser knows: else they only cost time."""
    graph = tiny_bundle / "onnx" / "predictor.guided.onnx"
    arrays = random_inputs(graph)
    path = write(graph, quantized_layers(graph, arrays), "int8", tmp_path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    nodes = Counter(node.op_type for node in ir.load(tmp_path / "optimised.onnx").graph)
    assert nodes["MatMulIntegerToFloat"] == 4
    assert nodes["DequantizeLinear"] == 0
    assert relative_l2(run(path, arrays, optimised=True), run(path, arrays)) < 2e-2


@pytest.mark.parametrize("bundle", ["tiny_bundle", "tiny_fused_bundle"])
def test_linear_layers(request: pytest.FixtureRequest, bundle: str) -> None:
    """Those of tokens, in the graph's order; attention and what time and label alone decide are none."""
    model = load_graph(request.getfixturevalue(bundle) / "onnx" / "predictor.guided.onnx")
    blocks = [f"blocks.0.{layer}" for layer in LAYERS]
    names = [name for name in linear_layers(model) if "adaLN" not in name and "t_embedder" not in name]
    assert names == [*blocks, "final_layer.linear"]


def test_unknown_layer(tiny_bundle: Path) -> None:
    model = load_graph(tiny_bundle / "onnx" / "refiner.guided.onnx")
    layers = {"blocks.1.mlp.fc1": QuantizedLinear(0.1), "blocks.0.mlp.fc1": QuantizedLinear(0.1)}
    with pytest.raises(RecipeError, match=r"no linear layer blocks\.1\.mlp\.fc1 in float32; calibrate"):
        quantize(model, layers, "int8")


def test_layer_that_is_quantised_already(tmp_path: Path) -> None:
    layers = {"layer": QuantizedLinear(0.1)}
    model = quantize(load_graph(product(tmp_path, np.ones((4, 4), np.float32))), layers, "int8")
    with pytest.raises(RecipeError, match="no linear layer layer in float32"):
        quantize(model, layers, "int8")


def test_smoothing_of_other_channels(tmp_path: Path) -> None:
    graph = product(tmp_path, np.ones((4, 3), np.float32))
    with pytest.raises(RecipeError, match=r"^layer: 3 channels are smoothed, the layer has 4"):
        quantize(load_graph(graph), {"layer": QuantizedLinear(0.1, (1.0, 1.0, 1.0))}, "int8")


def test_same_recipe_same_file(tiny_bundle: Path, tmp_path: Path, kind: str) -> None:
    graph = tiny_bundle / "onnx" / "refiner.guided.onnx"
    layers = quantized_layers(graph, random_inputs(graph), kind)
    first = write(graph, layers, kind, tmp_path).read_bytes()
    assert write(graph, layers, kind, tmp_path).read_bytes() == first


def test_kinds() -> None:
    for kind, dtype in KINDS.items():
        assert float(np.array(LARGEST[kind]).astype(NUMPY[kind])) == LARGEST[kind]
        assert dtype.numpy() == NUMPY[kind]
