"""Precision policies: which parts of a float32 graph run in half precision.

Matrix products and convolutions carry nearly all the work, and run in half precision with what lies
between them (bias, GELU, SiLU, reshapes). What needs range or resolution stays float32: inputs and
outputs, the residual stream, layer normalisation and softmax, everything computed from the time
alone, and what follows the last product (guidance, the conversion to uint8). Group normalisation
runs in half precision on float32 statistics (its `stash_type`).

Of a quantised graph (export/quantization.py) Q reads its input in whatever precision that is computed,
and DQ gives what its product computes in: a scale's type says which.
"""

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from flowturbo_trt.export.compile import PRECISIONS, EngineRequest
from flowturbo_trt.export.onnx_graph import load_graph
from flowturbo_trt.export.quantization import quantize
from flowturbo_trt.sampling.errors import FlowTurboError

_DTYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_PRODUCTS = {"MatMul", "Gemm", "Conv", "Attention"}
_ELEMENTWISE = {"Add", "Sub", "Mul", "Gelu", "Sigmoid", "Tanh", "GroupNormalization", "QuantizeLinear"}
_LAYOUT = {
    "Reshape",
    "Transpose",
    "Slice",
    "Split",
    "Squeeze",
    "Unsqueeze",
    "Concat",
    "Gather",
    "Resize",
    "Identity",
}


class PrecisionError(FlowTurboError):
    """A precision that does not exist or cannot be used here."""


def engine_graph(request: EngineRequest) -> ir.Model:
    """Return the graph of an engine in its precision."""
    model = load_graph(request.graph)
    if request.quantization is not None:
        quantize(model, request.quantization.layers, request.precision)
        # The base is not for the user to choose.
        remedy = (
            f"the rest of {request.precision} engines is {request.base} here, so use bf16 or fp32 instead of "
            f"{request.precision}"
        )
        return lower_precision(model, request.base, remedy)
    return lower_precision(model, request.base)


def lower_precision(model: ir.Model, precision: str, remedy: str = "use bf16 or fp32") -> ir.Model:
    """Apply a policy of PRECISIONS to a float32 model, in place; inputs and outputs keep their types.

    Raises PrecisionError, with the `remedy`, where a constant is too large for the precision.
    """
    if precision not in PRECISIONS:
        raise PrecisionError(f"unknown precision {precision!r}; known are {', '.join(PRECISIONS)}")
    if precision != "fp32":
        low = _choose_nodes(model.graph)
        _Lowering(model.graph, _DTYPES[precision], remedy).run(low)
    return model


def _choose_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Return the nodes to run in half precision."""
    low = {n for n in graph if n.op_type in _PRODUCTS} - _from_time_alone(graph)
    low |= {n for n in graph if n.op_type == "DequantizeLinear" and _leads_to(n, low)}
    for node in graph:
        if node.op_type in _ELEMENTWISE | _LAYOUT and _feeds_on(node, low):
            low.add(node)
    # Backwards, so that a chain which leads to no product falls whole; only a bias keeps to its product.
    for node in reversed(list(graph)):
        if node.op_type not in _PRODUCTS and not _leads_to(node, low) and not _is_bias(node):
            low.discard(node)
    return low


def _from_time_alone(graph: ir.Graph) -> set[ir.Node]:
    known = {value for value in graph.inputs if value.name == "time"}
    nodes = set()
    for node in graph:
        inputs = [v for v in node.inputs if v is not None and not _is_constant(v)]
        if inputs and all(v in known for v in inputs):
            nodes.add(node)
            known.update(node.outputs)
    return nodes


def _feeds_on(node: ir.Node, low: set[ir.Node]) -> bool:
    """Tell whether all float inputs are half precision results or constants, at least one a result."""
    computed = [v for _, v in _float_inputs(node) if not _is_constant(v)]
    return bool(computed) and all(v.producer() in low for v in computed)


def _leads_to(node: ir.Node, low: set[ir.Node]) -> bool:
    return any(user in low for output in node.outputs for user, _ in output.uses())


def _is_bias(node: ir.Node) -> bool:
    producers = [p for v in node.inputs if v is not None and (p := v.producer()) is not None]
    return node.op_type == "Add" and [p.op_type for p in producers] == ["MatMul"]


def _is_constant(value: ir.Value) -> bool:
    return value.const_value is not None


def _float_inputs(node: ir.Node) -> Iterable[tuple[int, ir.Value]]:
    """Return the inputs whose type follows the node's precision (Resize's scales are float32 always)."""
    inputs = node.inputs[:1] if node.op_type == "Resize" else node.inputs
    return ((i, v) for i, v in enumerate(inputs) if v is not None and v.dtype == ir.DataType.FLOAT)


class _Lowering:
    """Retypes chosen nodes and inserts the casts between the two precisions, one per value and direction."""

    def __init__(self, graph: ir.Graph, dtype: ir.DataType, remedy: str) -> None:
        self.graph = graph
        self.dtype = dtype
        self.remedy = remedy
        self.lowered: dict[ir.Value, ir.Value] = {}
        self.raised: dict[ir.Value, ir.Value] = {}
        self.in_low: set[ir.Value] = set()

    def run(self, low: set[ir.Node]) -> None:
        for node in list(self.graph):
            if node in low:
                self._lower(node)
            else:
                self._raise_inputs(node)
        for index, value in enumerate(self.graph.outputs):
            if value in self.in_low:
                self._raise_output(index, value)
        unused = [name for name, v in self.graph.initializers.items() if not v.uses()]
        for name in unused:
            del self.graph.initializers[name]

    def _lower(self, node: ir.Node) -> None:
        for index, value in list(_float_inputs(node)):
            if value not in self.lowered:
                constant = _is_constant(value)
                self.lowered[value] = (
                    self._convert(value) if constant else self._cast(value, node, self.dtype)
                )
            node.replace_input_with(index, self.lowered[value])
        for output in node.outputs:
            if output.dtype == ir.DataType.FLOAT:
                output.dtype = self.dtype
                self.in_low.add(output)

    def _raise_inputs(self, node: ir.Node) -> None:
        for index, value in enumerate(node.inputs):
            if value in self.in_low and value is not None:
                if value not in self.raised:
                    self.raised[value] = self._cast(value, node, ir.DataType.FLOAT)
                node.replace_input_with(index, self.raised[value])

    def _raise_output(self, index: int, value: ir.Value) -> None:
        cast = self._cast(value, None, ir.DataType.FLOAT)
        value.name, cast.name = f"{value.name}_half", value.name
        self.graph.outputs[index] = cast

    def _cast(self, value: ir.Value, before: ir.Node | None, dtype: ir.DataType) -> ir.Value:
        node = ir.node("Cast", [value], {"to": dtype.value})
        (out,) = node.outputs
        out.dtype, out.shape, out.name = dtype, value.shape, f"{value.name}_{dtype.name.lower()}"
        if before is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(before, node)
        return out

    def _convert(self, value: ir.Value) -> ir.Value:
        assert value.const_value is not None
        # What overflows is told below, in one line.
        with np.errstate(over="ignore"):
            array = value.const_value.numpy().astype(self.dtype.numpy())
        if not np.isfinite(array.astype(np.float32)).all():
            raise PrecisionError(f"{value.name} has values that {self.dtype.name} cannot hold; {self.remedy}")
        name = f"{value.name}_{self.dtype.name.lower()}"
        converted = ir.Value(name=name, shape=value.shape, type=ir.TensorType(self.dtype))
        converted.const_value = ir.tensor(array, dtype=self.dtype, name=name)
        self.graph.register_initializer(converted)
        return converted
