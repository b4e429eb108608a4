"""Quantisation recipes, and 8-bit Q/DQ in a float32 graph as a recipe says.

A linear layer that is quantised reads QuantizeLinear → DequantizeLinear on its input, one scale for the
tensor, and DequantizeLinear on 8-bit weights, one scale for each output channel. All is symmetric, and
biases stay in float: a form that ONNX Runtime fuses into integer products, and TensorRT into INT8 and FP8
ones. Q and DQ say what 8-bit arithmetic would give wherever they are run.

Smoothing (SmoothQuant, arXiv:2211.10438) moves what makes activations hard to quantise into the weights:
input channel j is divided by s_j, and row j of the weights multiplied by it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from flowturbo_trt.sampling.errors import FlowTurboError

RECIPE_FORMAT = "flowturbo_trt quantisation recipe"
RECIPE_VERSION = 1
KINDS = {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}
# The largest number of each kind, in steps of its scale.
LARGEST = {"int8": 127.0, "fp8": 448.0}
# What the exported module is called within its graph.
PREFIX = "network."


class RecipeError(FlowTurboError):
    """A recipe that cannot be read, or is for other networks."""


@dataclass(frozen=True)
class QuantizedLinear:
    """How a linear layer is quantised: the scale of its input, and what input channels are divided by."""

    scale: float
    smooth: tuple[float, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """What `calibrate precision` found and `build` applies.

    `layers` are by network ("predictor guided") and layer ("blocks.0.attn.qkv"); `sources` are the sha256
    of the checkpoints, by network, that it was made for. `passed` is the gate's verdict, on `findings`.
    """

    kind: str
    layers: Mapping[str, Mapping[str, QuantizedLinear]]
    sources: Mapping[str, str]
    passed: bool
    findings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise RecipeError(f"recipe of kind {self.kind!r}, expected {' or '.join(KINDS)}")
        for network, layers in self.layers.items():
            for name, layer in layers.items():
                values = np.array([layer.scale, *layer.smooth])
                if not (np.isfinite(values).all() and (values > 0).all()):
                    raise RecipeError(f"{network}, {name}: scales are to be positive numbers")


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe as JSON."""
    document = {"format": RECIPE_FORMAT, "version": RECIPE_VERSION, **asdict(recipe)}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def load_recipe(path: Path) -> Recipe:
    """Read a recipe; raises RecipeError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: cannot be read ({error})") from error
    if not isinstance(data, dict) or data.get("format") != RECIPE_FORMAT:
        raise RecipeError(f"{path}: is no recipe of `flowturbo_trt calibrate precision`")
    if data.get("version") != RECIPE_VERSION:
        raise RecipeError(
            f"{path}: recipe version {data.get('version')}, this reader knows {RECIPE_VERSION}; "
            "calibrate again"
        )
    try:
        layers = {
            network: {
                name: QuantizedLinear(float(layer["scale"]), tuple(map(float, layer["smooth"])))
                for name, layer in of_network.items()
            }
            for network, of_network in data["layers"].items()
        }
        return Recipe(data["kind"], layers, data["sources"], data["passed"] is True, data["findings"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecipeError(f"{path}: not a recipe ({type(error).__name__} {error})") from error


def linear_layers(model: ir.Model) -> dict[str, ir.Node]:
    """Return the products of a graph with a weight of two axes, by layer, in the graph's order."""
    layers = {}
    for node in model.graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is not None and weight.is_initializer() and (weight.name or "").endswith(".weight"):
            layers[str(weight.name).removeprefix(PREFIX).removesuffix(".weight")] = node
    return layers


def quantize(model: ir.Model, layers: Mapping[str, QuantizedLinear], kind: str) -> ir.Model:
    """Put Q/DQ around linear layers of a float32 model, in place; raises RecipeError."""
    found = linear_layers(model)
    if unknown := sorted(layers.keys() - found.keys()):
        raise RecipeError(f"the graph has no linear layer {unknown[0]}; calibrate the bundle it was built as")
    writer = _Writer(model.graph, kind)
    for name, layer in layers.items():
        writer.quantize(found[name], name, layer)
    return model


class _Writer:
    """Writes Q/DQ of one kind into a graph."""

    def __init__(self, graph: ir.Graph, kind: str) -> None:
        self._graph = graph
        self._dtype = KINDS[kind]
        self._largest = LARGEST[kind]

    def quantize(self, node: ir.Node, name: str, layer: QuantizedLinear) -> None:
        x, weight = node.inputs
        assert x is not None
        assert weight is not None
        assert weight.const_value is not None
        values = weight.const_value.numpy().astype(np.float32)
        if layer.smooth:
            smooth = np.array(layer.smooth, dtype=np.float32)
            if len(smooth) != len(values):
                raise RecipeError(f"{name}: {len(smooth)} channels are smoothed, the layer has {len(values)}")
            values = values * smooth[:, None]
            x = self._insert("Mul", node, [x, self._constant(f"{name}.smooth", 1 / smooth)], x)
        scale = self._constant(f"{name}.input_scale", np.float32(layer.scale))
        zero = self._constant(f"{name}.zero", np.zeros((), dtype=np.int8), self._dtype)
        q = self._insert("QuantizeLinear", node, [x, scale, zero], x, self._dtype)
        node.replace_input_with(0, self._insert("DequantizeLinear", node, [q, scale, zero], x))
        node.replace_input_with(1, self._weight(node, weight, name, values))
        if not weight.uses():
            del self._graph.initializers[str(weight.name)]

    def _weight(self, node: ir.Node, weight: ir.Value, name: str, values: NDArray[np.float32]) -> ir.Value:
        """Quantise weights (in,out), one scale for each output."""
        largest = np.abs(values).max(axis=0)
        # A channel of zeros is zero with any scale.
        scales = np.where(largest > 0, largest, self._largest).astype(np.float32) / np.float32(self._largest)
        steps = values / scales
        if self._dtype == ir.DataType.INT8:
            steps = np.clip(np.round(steps), -self._largest, self._largest)
        held = self._constant(f"{name}.weight_{self._dtype.name.lower()}", steps, self._dtype)
        of_outputs = self._constant(f"{name}.weight_scale", scales)
        return self._insert("DequantizeLinear", node, [held, of_outputs], weight, axis=1)

    def _insert(
        self,
        operator: str,
        before: ir.Node,
        inputs: list[ir.Value],
        like: ir.Value,
        dtype: ir.DataType = ir.DataType.FLOAT,
        **attributes: int,
    ) -> ir.Value:
        node = ir.node(operator, inputs, attributes)
        (out,) = node.outputs
        out.dtype, out.shape = dtype, like.shape
        self._graph.insert_before(before, node)
        return out

    def _constant(
        self, name: str, values: NDArray[Any] | np.float32, dtype: ir.DataType = ir.DataType.FLOAT
    ) -> ir.Value:
        array = np.asarray(values).astype(dtype.numpy())
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(dtype))
        value.const_value = ir.tensor(array, dtype=dtype, name=name)
        self._graph.register_initializer(value)
        return value
