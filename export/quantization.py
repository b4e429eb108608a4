"""Quantisation recipes, and 8-bit Q/DQ in a float32 graph as a recipe says.

A linear layer that is quantised reads QuantizeLinear → DequantizeLinear on its input, one scale for the
tensor, and DequantizeLinear on 8-bit weights, one scale for each output channel. All is symmetric, and
biases stay in float: a form that ONNX Runtime and OpenVINO fuse into integer products, and TensorRT into
INT8 and FP8 ones. Q and DQ say what 8-bit arithmetic gives wherever they are run.

Smoothing (SmoothQuant, arXiv:2211.10438) moves what makes activations hard to quantise into the weights:
input channel j is divided by s_j, and row j of the weights multiplied by it. The division is a Mul of its
own before Q: drawn into the modulation before it, where there is one, it saves 1 to 2 % at most (SiT-B/4).
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
WEIGHT, SCALE, SMOOTHING = ".weight", "_scale", ".smoothing"


class RecipeError(FlowTurboError):
    """A recipe that cannot be read, is for other networks, or did not pass its gate."""


@dataclass(frozen=True)
class QuantizedLinear:
    """How a linear layer is quantised: the scale of its input, and what input channels are divided by."""

    scale: float
    smooth: tuple[float, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """What `calibrate precision` found and `build` applies.

    `layers` are by network ("predictor guided") and layer ("blocks.0.attn.qkv"); `sources` are the sha256
    of the checkpoints, by network, that it was made for, with `guided_channels` of the latents guided.
    `passed` is the gate's verdict on trajectories of `schedules`, from `findings`; `timed` are the backends
    on which it was measured to be faster.
    """

    kind: str
    layers: Mapping[str, Mapping[str, QuantizedLinear]]
    sources: Mapping[str, str]
    passed: bool
    findings: Mapping[str, Any] = field(default_factory=dict)
    guided_channels: int = field(kw_only=True)
    schedules: tuple[str, ...] = field(kw_only=True)
    timed: tuple[str, ...] = field(kw_only=True)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise RecipeError(f"recipe of kind {self.kind!r}, expected {' or '.join(KINDS)}")
        for network, layers in self.layers.items():
            for name, layer in layers.items():
                values = np.array([layer.scale, *layer.smooth])
                if not (np.isfinite(values).all() and (values > 0).all()):
                    raise RecipeError(f"{network}, {name}: its scales are not all positive numbers")


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe as JSON."""
    document = {"format": RECIPE_FORMAT, "version": RECIPE_VERSION, **asdict(recipe)}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def load_recipe(path: Path) -> Recipe:
    """Read a recipe; raises RecipeError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: cannot be read ({error}); calibrate again") from error
    if not isinstance(data, dict) or data.get("format") != RECIPE_FORMAT:
        raise RecipeError(f"{path}: is no recipe; make one with `flowturbo_trt calibrate precision`")
    if data.get("version") != RECIPE_VERSION:
        raise RecipeError(
            f"{path}: recipe version {data.get('version')}, this reader knows {RECIPE_VERSION}; "
            "calibrate again"
        )
    try:
        return _recipe(data)
    except (KeyError, TypeError, ValueError, AttributeError, RecipeError) as error:
        what = str(error) if isinstance(error, RecipeError) else f"{type(error).__name__} {error}"
        raise RecipeError(f"{path}: is damaged ({what}); calibrate again") from error


def _recipe(data: Mapping[str, Any]) -> Recipe:
    layers = {
        network: {
            name: QuantizedLinear(float(layer["scale"]), tuple(map(float, layer["smooth"])))
            for name, layer in of_network.items()
        }
        for network, of_network in data["layers"].items()
    }
    sources = {network: str(sha256) for network, sha256 in data["sources"].items()}
    return Recipe(
        data["kind"],
        layers,
        sources,
        data["passed"] is True,
        dict(data["findings"]),
        guided_channels=int(data["guided_channels"]),
        schedules=_texts(data["schedules"]),
        timed=_texts(data["timed"]),
    )


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise TypeError(f"{values!r} is no list")
    return tuple(map(str, values))


def linear_layers(model: ir.Model) -> dict[str, ir.Node]:
    """Return the products of a graph with a weight of two axes, by layer, in the graph's order."""
    layers = {}
    for node in model.graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is not None and weight.is_initializer() and (weight.name or "").endswith(WEIGHT):
            layers[str(weight.name).removeprefix(PREFIX).removesuffix(WEIGHT)] = node
    return layers


def quantize(model: ir.Model, layers: Mapping[str, QuantizedLinear], kind: str) -> ir.Model:
    """Put Q/DQ of a kind of KINDS around linear layers of a float32 model, in place.

    Every scale is one that float16 has, the next above where the recipe's is none: what reads the graph
    in half precision then quantises to the same numbers. Raises RecipeError.
    """
    found = linear_layers(model)
    if unknown := sorted(layers.keys() - found.keys()):
        raise RecipeError(
            f"the graph has no linear layer {unknown[0]} in float32; calibrate a bundle of this model"
        )
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
        base = str(weight.name).removesuffix(WEIGHT)
        if layer.smooth:
            smooth = np.array(layer.smooth, dtype=np.float32)
            if len(smooth) != len(values):
                raise RecipeError(f"{name}: {len(smooth)} channels are smoothed, the layer has {len(values)}")
            values = values * smooth[:, None]
            x = self._insert("Mul", node, [x, self._constant(f"{base}{SMOOTHING}", 1 / smooth)], x)
        scale = self._constant(f"{base}.input_scale", _in_half(np.float32(layer.scale), name))
        zero = self._constant(f"{base}.input_zero", np.zeros((), dtype=np.int8), self._dtype)
        q = self._insert("QuantizeLinear", node, [x, scale, zero], x, self._dtype)
        node.replace_input_with(0, self._insert("DequantizeLinear", node, [q, scale, zero], x))
        node.replace_input_with(1, self._weight(node, weight, name, values))
        if not weight.uses():
            del self._graph.initializers[str(weight.name)]

    def _weight(self, node: ir.Node, weight: ir.Value, name: str, values: NDArray[np.float32]) -> ir.Value:
        """Quantise weights (in,out), one scale for each output."""
        largest = np.abs(values).max(axis=0)
        # A channel of zeros is zero with any scale.
        scales = _in_half(np.where(largest > 0, largest / np.float32(self._largest), 1), name)
        steps = values / scales
        if self._dtype == ir.DataType.INT8:
            steps = np.round(steps)
        held = self._constant(f"{weight.name}_{self._dtype.name.lower()}", steps, self._dtype)
        of_outputs = self._constant(f"{weight.name}{SCALE}", scales)
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


def _in_half(scales: NDArray[np.float32] | np.float32, name: str) -> NDArray[np.float32]:
    """Return the least numbers of float16 that are no smaller than scales; raises RecipeError."""
    with np.errstate(over="ignore"):
        half = np.asarray(scales).astype(np.float16)
        above = np.where(half.astype(np.float32) < scales, np.nextafter(half, np.float16(np.inf)), half)
    if not np.isfinite(above).all():
        raise RecipeError(f"{name}: a scale of {np.max(scales):.3g} is more than float16 holds")
    return above.astype(np.float32)
