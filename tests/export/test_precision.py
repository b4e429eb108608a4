"""Precision policies: which values are half precision and which are not, and what that costs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from flowturbo_trt.evaluation.metrics import relative_l2
from flowturbo_trt.export.compile import PRECISIONS
from flowturbo_trt.export.onnx_graph import load_graph, save_graph
from flowturbo_trt.export.precision import PrecisionError, lower_precision

Arrays = Mapping[str, NDArray[Any]]
Call = Callable[[Path, Arrays], NDArray[Any]]
FLOAT = TensorProto.FLOAT
LOW = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
PRODUCTS = {"MatMul", "Gemm", "Conv"}
# Relative to float32: two to three decimal digits are lost, not more.
FP16_ERROR = 5e-3


class Types:
    """A lowered file, its nodes, and the element type of every value in it."""

    def __init__(self, path: Path) -> None:
        model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
        self.graph = model.graph
        self.nodes = list(model.graph.node)
        self.of = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
            self.of[value.name] = value.type.tensor_type.elem_type

    def floats(self, node: onnx.NodeProto) -> set[int]:
        """The types of a node's inputs that are no integers (shapes, indices)."""
        return {self.of[name] for name in node.input if name} - {TensorProto.INT64}

    def named(self, *operators: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type in operators]


def lower(source: Path, precision: str, folder: Path) -> Path:
    return save_graph(lower_precision(load_graph(source), precision), folder / f"{precision}.onnx")[0]


@pytest.fixture(params=["fp16", "bf16"])
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def lowered(graph: Path, precision: str, tmp_path: Path) -> Path:
    return lower(graph, precision, tmp_path)


def test_standard(lowered: Path) -> None:
    onnx.checker.check_model(lowered, full_check=True)


def test_interface_stays(graph: Path, lowered: Path) -> None:
    before, after = onnx.load(graph).graph, onnx.load(lowered).graph
    assert list(after.input) == list(before.input)
    assert list(after.output) == list(before.output)


def test_products_are_half_precision(lowered: Path, precision: str) -> None:
    """All but those of the time embedding, weights and activations both."""
    types = Types(lowered)
    for node in types.named(*PRODUCTS):
        expected = FLOAT if any("t_embedder" in name for name in node.input) else LOW[precision]
        assert types.floats(node) == {expected}, node.name
    weights = [t for t in types.graph.initializer if len(t.dims) > 1 and "t_embedder" not in t.name]
    low = sum(int(np.prod(t.dims)) for t in weights if t.data_type == LOW[precision])
    kept = sum(int(np.prod(t.dims)) for t in weights if t.data_type == FLOAT)
    assert low > 20 * kept


def test_range_and_resolution_stay_float32(lowered: Path) -> None:
    types = Types(lowered)
    for node in types.named("LayerNormalization", "Softmax", "Cos", "Sin", "Clip", "Div"):
        assert types.floats(node) == {FLOAT}, node.name
    for node in types.named("GroupNormalization"):
        assert [a.i for a in node.attribute if a.name == "stash_type"] in ([], [FLOAT])
    for node in types.named("Resize"):
        assert types.of[node.input[2]] == FLOAT


def test_what_follows_the_last_product_stays_float32(lowered: Path) -> None:
    """Guidance, and the conversion of pixels to levels."""
    types = Types(lowered)
    producer = {name: node for node in types.nodes for name in node.output}
    pending, seen = [output.name for output in types.graph.output], 0
    while pending:
        node = producer.get(pending.pop())
        # The bias of the last product belongs to it, the casts mark the border.
        if node is None or (node.op_type == "Cast" and types.floats(node) != {FLOAT}):
            continue
        assert node.op_type not in PRODUCTS
        assert types.floats(node) <= {FLOAT}, node.name
        pending += [name for name in node.input if name in producer]
        seen += 1
    assert seen > 0


def test_residual_stream_stays_float32(golden_bundle: Path, precision: str, tmp_path: Path) -> None:
    """What the layer normalisations read comes in float32 from sums, not from casts."""
    types = Types(lower(golden_bundle / "onnx" / "predictor.guided.onnx", precision, tmp_path))
    producer = {name: node for node in types.nodes for name in node.output}
    normalisations = types.named("LayerNormalization")
    assert len(normalisations) == 7
    for node in normalisations[1:]:
        assert producer[node.input[0]].op_type == "Add"


def test_no_leftovers(lowered: Path) -> None:
    """Nothing unused is stored, no value is cast to a type twice, and no name is taken twice."""
    types = Types(lowered)
    used = {name for node in types.nodes for name in node.input}
    assert {tensor.name for tensor in types.graph.initializer} <= used
    casts = [(node.input[0], node.attribute[0].i) for node in types.named("Cast")]
    assert len(casts) == len(set(casts))
    made = [name for node in types.nodes for name in node.output if name]
    made += [tensor.name for tensor in types.graph.initializer] + [v.name for v in types.graph.input]
    assert len(made) == len(set(made))


def test_lowering_again_gives_the_same(graph: Path, lowered: Path, precision: str, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    assert lower(graph, precision, tmp_path / "again").read_bytes() == lowered.read_bytes()
    # And what is lowered already has nothing left to lower.
    twice = lower(lowered, precision, tmp_path / "again")
    assert len(onnx.load(twice).graph.node) == len(onnx.load(lowered).graph.node)


def test_value_is_raised_once(tmp_path: Path, precision: str) -> None:
    """A product that two float32 nodes read is cast for both."""
    x, y = (onnx.helper.make_tensor_value_info(name, FLOAT, ["batch", 4]) for name in ("x", "y"))
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["product"]),
        onnx.helper.make_node("Softmax", ["product"], ["rows"], axis=1),
        onnx.helper.make_node("Softmax", ["product"], ["columns"], axis=0),
        onnx.helper.make_node("Sub", ["rows", "columns"], ["y"]),
    ]
    weight = onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    graph = onnx.helper.make_graph(nodes, "two_readers", [x], [y], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 22)])
    onnx.save(onnx.shape_inference.infer_shapes(model), tmp_path / "two_readers.onnx")
    types = Types(lower(tmp_path / "two_readers.onnx", precision, tmp_path))
    assert [node.op_type for node in types.nodes] == ["Cast", "MatMul", "Cast", "Softmax", "Softmax", "Sub"]


def test_weights_take_half_the_space(golden_bundle: Path, precision: str, tmp_path: Path) -> None:
    source = golden_bundle / "onnx" / "predictor.guided.onnx"
    assert lower(source, precision, tmp_path).stat().st_size < 0.65 * source.stat().st_size


def test_fp16_error(graph: Path, arrays: Arrays, tmp_path: Path, call: Call) -> None:
    """It computes in half precision (some error) and computes well (little error)."""
    expected, found = call(graph, arrays), call(lower(graph, "fp16", tmp_path), arrays)
    assert found.dtype == expected.dtype
    if graph.stem == "decoder":
        assert 0 < np.abs(found.astype(int) - expected.astype(int)).max() <= 2
    else:
        assert 1e-5 < relative_l2(found, expected) <= FP16_ERROR


def test_fp32_changes_nothing(graph: Path, tmp_path: Path) -> None:
    before, after = onnx.load(graph), onnx.load(lower(graph, "fp32", tmp_path))
    assert after.graph == before.graph


@pytest.mark.parametrize("name", ["fp8", "FP16", "half", ""])
def test_unknown_precision(golden_bundle: Path, name: str) -> None:
    with pytest.raises(PrecisionError, match=rf"unknown precision '{name}'; known are fp32, fp16, bf16"):
        lower_precision(load_graph(golden_bundle / "onnx" / "decoder.onnx"), name)
    assert name not in PRECISIONS
