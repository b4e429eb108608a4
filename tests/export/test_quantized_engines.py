"""8-bit engines as backends take them: one graph for all, types that fit, and plans that are really built."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.metrics import relative_l2
from flowturbo_trt.export.compile import EngineRequest, Quantization, load_compiler
from flowturbo_trt.export.onnx_graph import load_graph, save_graph
from flowturbo_trt.export.precision import PrecisionError, engine_graph, lower_precision
from flowturbo_trt.export.quantization import quantize
from flowturbo_trt.tests.export.recipes import quantized_layers, random_inputs

FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16
EIGHT = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}


def request_of(bundle: Path, kind: str, base: str) -> EngineRequest:
    graph = next(graph for graph in Bundle.open(bundle).manifest.graphs if graph.network == "predictor")
    file = bundle / graph.file
    layers = quantized_layers(file, random_inputs(file), kind)
    quantization = Quantization(layers, base)
    return EngineRequest(
        "predictor", "guided", file, graph.inputs, graph.outputs, kind, (1, 3), quantization=quantization
    )


@pytest.fixture(params=["int8", "fp8"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_types_on_a_half_precision_base(tiny_bundle: Path, tmp_path: Path, kind: str) -> None:
    """Q reads what is there, and DQ gives what the product computes in: no casts between them."""
    request = request_of(tiny_bundle, kind, "fp16")
    assert request.quantization is not None
    model = quantize(load_graph(request.graph), request.quantization.layers, kind)
    (file,) = save_graph(lower_precision(model, "fp16"), tmp_path / "engine.onnx")
    onnx.checker.check_model(file, full_check=True)
    graph = onnx.shape_inference.infer_shapes(onnx.load(file), strict_mode=True).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    types |= {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input)}
    made_by = {name: node for node in graph.node for name in node.output}
    held = {name for name, dtype in types.items() if dtype == EIGHT[kind] and ".weight_" in name}
    products = [n for n in graph.node if n.op_type == "MatMul" and held & {*made_by.get(n.input[1], n).input}]
    assert len(products) == len(held) == 4
    read = set()
    for node in products:
        x, weight = (made_by[name] for name in node.input)
        q = made_by[x.input[0]]
        assert [n.op_type for n in (q, x, weight)] == ["QuantizeLinear", *["DequantizeLinear"] * 2]
        assert {types[name] for name in (*node.input, x.input[1], weight.input[1])} == {FLOAT16}
        assert {types[q.output[0]], types[weight.input[0]]} == {EIGHT[kind]}
        assert types[q.input[0]] == types[q.input[1]]
        read.add(types[q.input[0]])
    # What comes of the float32 stream is quantised from it, not from its rounding.
    assert read == {FLOAT, FLOAT16}
    final = next(node for node in graph.node if "final_layer.linear.weight" in str(node.input))
    assert types[final.input[1]] == FLOAT16


def test_same_numbers_on_a_half_precision_base(tiny_bundle: Path, tmp_path: Path, kind: str) -> None:
    arrays: Mapping[str, NDArray[Any]] = random_inputs(tiny_bundle / "onnx" / "predictor.guided.onnx")
    found = {}
    for base in ("fp32", "fp16"):
        request = request_of(tiny_bundle, kind, base)
        (file,) = load_compiler("onnxruntime").compile(request, tmp_path)
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        found[base] = np.asarray(session.run(None, dict(arrays))[0])
    assert relative_l2(found["fp16"], found["fp32"]) < {"int8": 1e-2, "fp8": 2e-2}[kind]


def test_nothing_is_lowered_twice(tiny_bundle: Path, tmp_path: Path) -> None:
    """Float32 is a base as well: then nothing but Q/DQ is new."""
    request = request_of(tiny_bundle, "int8", "fp32")
    (file,) = load_compiler("onnxruntime").compile(request, tmp_path)
    before, after = ({node.op_type for node in onnx.load(path).graph.node} for path in (request.graph, file))
    assert after - before == {"QuantizeLinear", "DequantizeLinear"}


def test_one_file_for_both_backends_on_the_cpu(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    request = request_of(tiny_bundle, "int8", "fp32")
    content = []
    for backend in ("onnxruntime", "openvino"):
        (tmp_path / backend).mkdir()
        (file,) = load_compiler(backend).compile(request, tmp_path / backend)
        content.append(file.read_bytes())
    assert content[0] == content[1]


def test_weights_that_the_base_cannot_hold(tiny_bundle: Path, tmp_path: Path, kind: str) -> None:
    """The base is the backend's own, so that another one is no remedy."""
    request = request_of(tiny_bundle, kind, "fp16")
    model = load_graph(request.graph)
    model.graph.initializers["network.final_layer.linear.weight"].const_value = ir.tensor(
        np.full((16, 8), 1e6, np.float32)
    )
    (large,) = save_graph(model, tmp_path / "large.onnx")
    with pytest.raises(PrecisionError) as caught:
        engine_graph(replace(request, graph=large))
    assert str(caught.value) == (
        "network.final_layer.linear.weight has values that FLOAT16 cannot hold; the rest of "
        f"{kind} engines is fp16 here, so use bf16 or fp32 instead of {kind}"
    )
    with pytest.raises(PrecisionError, match=r"FLOAT16 cannot hold; use bf16 or fp32$"):
        engine_graph(replace(request, graph=large, precision="fp16", quantization=None))


@pytest.mark.parametrize("targets", [(), ("8.9",), ("8.9", "12.0")])
@pytest.mark.parametrize("base", ["fp16", "fp32"])
def test_rtx_plan(tiny_bundle: Path, tmp_path: Path, kind: str, base: str, targets: tuple[str, ...]) -> None:
    """The very graph that ONNX Runtime runs (base fp32) is one that TensorRT builds."""
    pytest.importorskip("tensorrt_rtx")
    request = request_of(tiny_bundle, kind, base)
    (plan,) = load_compiler("tensorrt-rtx", targets).compile(request, tmp_path)
    assert plan.name == f"predictor.guided.{kind}.plan"
    assert plan.stat().st_size > 10_000


def test_rtx_products_take_8_bits(tiny_bundle: Path, tmp_path: Path, kind: str) -> None:
    """What the builder lists: both sides of every quantised product, and of no other."""
    trt = pytest.importorskip("tensorrt_rtx")
    from flowturbo_trt.benchmarks.plan_layers import plan_products

    request = replace(request_of(tiny_bundle, kind, "fp16"), batches=(3,))
    size, products = plan_products(trt, request, tmp_path)
    low = {"int8": "Int8 × Int8", "fp8": "FP8 × FP8"}[kind]
    assert products == {low: 4, "Half × Half": 1}
    assert size > 10_000
    assert list(tmp_path.iterdir()) == []


def test_rtx_products_of_the_file_that_runs_on_the_cpu(tiny_bundle: Path, tmp_path: Path, kind: str) -> None:
    """Its base is float32, and TensorRT finds the same 8-bit products in it."""
    trt = pytest.importorskip("tensorrt_rtx")
    from flowturbo_trt.benchmarks.plan_layers import plan_products

    request = replace(request_of(tiny_bundle, kind, "fp32"), batches=(3,))
    (file,) = load_compiler("onnxruntime").compile(request, tmp_path)
    of_file = replace(request, graph=file, precision="fp32", quantization=None)
    _, products = plan_products(trt, of_file, tmp_path)
    low = {"int8": "Int8 × Int8", "fp8": "FP8 × FP8"}[kind]
    assert products == {low: 4, "Float × Float": 1}
