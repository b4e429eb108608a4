"""The rewrite that names weights: every parameter of a module is an initializer of its graph."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from flowturbo_trt.export.graphs import exportables
from flowturbo_trt.export.onnx_graph import export_graph, load_graph
from flowturbo_trt.export.onnx_rewrites import SCOPES, RewriteError, is_transposed, name_weights
from flowturbo_trt.export.options import BuildOptions
from flowturbo_trt.export.sources import load_sources
from flowturbo_trt.sampling.program import VARIANTS

SHAPES = {"layer.weight": (3, 2), "layer.bias": (3,)}


def make_model(scopes: str = "['', 'layer', 'linear']", weight_shape: tuple[int, int] = (2, 3)) -> ir.Model:
    """One linear layer as the exporter leaves it: a nameless weight, transposed, and a bias."""
    x = ir.Value(name="x", shape=ir.Shape(["batch", 2]), type=ir.TensorType(ir.DataType.FLOAT))
    weight = make_initializer("val_48", np.ones(weight_shape, np.float32))
    bias = make_initializer("other.bias", np.zeros(3, np.float32))
    product = ir.node("MatMul", [x, weight])
    total = ir.node("Add", [product.outputs[0], bias])
    for node in (product, total):
        node.metadata_props[SCOPES] = scopes
    graph = ir.Graph(
        [x], total.outputs, nodes=[product, total], initializers=[weight, bias], opset_imports={"": 22}
    )
    return ir.Model(graph, ir_version=10)


def make_initializer(name: str, array: "np.typing.NDArray[np.float32]") -> ir.Value:
    type_ = ir.TensorType(ir.DataType.FLOAT)
    return ir.Value(
        name=name, shape=ir.Shape(array.shape), type=type_, const_value=ir.tensor(array, name=name)
    )


def names(model: ir.Model) -> list[list[str | None]]:
    return [[value.name if value is not None else None for value in node.inputs[1:]] for node in model.graph]


def test_weight_and_bias_get_their_names() -> None:
    model = make_model()
    assert name_weights(SHAPES)(model) == 2
    assert names(model) == [["layer.weight"], ["layer.bias"]]
    assert set(model.graph.initializers) == {"layer.weight", "layer.bias"}
    assert [is_transposed(node) for node in model.graph] == [True, False]
    assert name_weights(SHAPES)(model) == 0


def test_shared_initializer_stays_with_the_others() -> None:
    """Equal parameters are one initializer in what the exporter writes."""
    model = make_model()
    bias = model.graph.initializers["other.bias"]
    model.graph.append(ir.node("Add", [model.graph[1].outputs[0], bias]))
    assert name_weights(SHAPES)(model) == 2
    assert names(model) == [["layer.weight"], ["layer.bias"], ["other.bias"]]


def test_shape_of_another_parameter_is_refused() -> None:
    with pytest.raises(RewriteError, match=r"^val_48 of shape \[3, 2\] is in place of layer.weight \[3, 2\]"):
        name_weights(SHAPES)(make_model(weight_shape=(3, 2)))


@pytest.mark.parametrize("scopes", ["[]", "['']", "['', 'layer2', 'linear']"])
def test_weight_that_is_not_found_is_refused(scopes: str) -> None:
    with pytest.raises(RewriteError, match=r"the parameter layer.weight is nowhere in the graph"):
        name_weights(SHAPES)(make_model(scopes))


def test_every_parameter_is_an_initializer(
    graph: Path, conditioning: str, golden_options: BuildOptions
) -> None:
    items = exportables(load_sources(golden_options), VARIANTS, conditioning)
    check(load_graph(graph), next(item.module for item in items if item.file == graph.name))


class Untrained(nn.Module):
    """Layers with equal parameters, which the exporter merges, and a bias of zeros, which it leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        for layer in self.layers:
            nn.init.ones_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, state: Tensor) -> Tensor:
        for layer in self.layers:
            state = layer(state).sin()
        return state


@pytest.mark.parametrize("axes", [2, 3])
def test_equal_parameters_are_told_apart(axes: int) -> None:
    """A matrix is multiplied by a Gemm, anything larger by a MatMul."""
    module = Untrained().requires_grad_(False)
    model = export_graph(
        module, {"state": torch.randn(2, 4, 4)[:, 0] if axes == 2 else torch.randn(2, 4, 4)}, "y"
    )
    check(model, module)
    used = [value.name for node in model.graph for value in node.inputs if value and value.is_initializer()]
    assert [name for name in used if str(name).endswith("weight")] == [
        f"layers.{index}.weight" for index in range(3)
    ]


def check(model: ir.Model, module: nn.Module) -> None:
    """Hold initializers against parameters, both ways."""
    held = model.graph.initializers
    for name, parameter in module.named_parameters():
        if name not in held:
            assert name.endswith(".bias")
            assert not parameter.any()
            continue
        tensor = held[name].const_value
        assert tensor is not None
        transpose: Callable[[Tensor], Tensor] = (
            torch.t if any(is_transposed(use.node) for use in held[name].uses()) else torch.as_tensor
        )
        np.testing.assert_array_equal(tensor.numpy(), transpose(parameter).numpy())
    parameters = {name for name, _ in module.named_parameters()}
    floats = {name for name, value in held.items() if value.dtype == ir.DataType.FLOAT}
    assert not {name for name in floats - parameters if name.endswith((".weight", ".bias"))}
