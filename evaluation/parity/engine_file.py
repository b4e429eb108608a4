"""What can be read off an engine's ONNX file, where its outputs tell too little.

A weight off by a percent, or a time embedding in half precision, moves an output less than the honest
rounding of fp16 does. In the file both are plain.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from flowturbo_trt.evaluation.metrics import relative_l2
from flowturbo_trt.evaluation.parity.quantized_weights import QuantizedWeight, quantized_weights
from flowturbo_trt.evaluation.parity.thresholds import Thresholds
from flowturbo_trt.export.onnx_rewrites import PARAMETER_ENDS

HALF = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
# What export/precision.py appends to the name of a converted constant.
SUFFIXES = tuple(f"_{dtype.name.lower()}" for dtype in HALF)


def find_fault(engine: Path, graph: Path, limits: Thresholds) -> str | None:
    """Hold an engine's file against the float32 graph's; return what is wrong with it."""
    found, expected = ir.load(engine), ir.load(graph)
    return _wrong_weight(found, expected, limits) or _half_precision_time(found)


def _wrong_weight(found: ir.Model, expected: ir.Model, limits: Thresholds) -> str | None:
    weights = {_base_name(name): value for name, value in found.graph.initializers.items()}
    quantized = quantized_weights(found.graph)
    for name, value in expected.graph.initializers.items():
        if not name.endswith(PARAMETER_ENDS) or value.const_value is None:
            continue
        right = value.const_value.numpy()
        if name in quantized:
            if fault := _wrong_rounding(name, quantized[name], right):
                return fault
            continue
        other = weights.get(name)
        if other is None or other.const_value is None:
            return f"its weight {name} is missing"
        array = other.const_value.numpy().astype(np.float32)
        if array.shape != right.shape:
            return f"its weight {name} is {list(array.shape)}, {list(right.shape)} in the float32 graph"
        error = relative_l2(array, right) if right.any() else float(np.abs(array).max())
        # Written so that NaN fails.
        if not error <= limits.weight_relative_l2:
            return (
                f"its weight {name} is off by {error:.2g} (relative L2), rounding allows "
                f"{limits.weight_relative_l2:.2g}"
            )
    return None


def _wrong_rounding(name: str, held: QuantizedWeight, right: NDArray[np.float32]) -> str | None:
    if held.steps.shape != right.shape:
        return f"its weight {name} is {list(held.steps.shape)}, {list(right.shape)} in the float32 graph"
    if share := held.unexplained(right):
        return f"its weight {name} is off in {share:.2g} of its values by more than rounding to {held.kind}"
    return None


def _base_name(name: str) -> str:
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)


def _half_precision_time(model: ir.Model) -> str | None:
    """Everything computed from the time alone stays float32 (export/precision.py)."""
    for node in _from_time_alone(model.graph):
        for value in node.inputs:
            if value is None:
                continue
            producer = value.producer()
            cast = producer is not None and producer.op_type == "Cast" and _casts_down(producer)
            constant = value.const_value is not None and value.const_value.dtype in HALF
            if node.op_type != "Cast" and (cast or constant):
                return f"computes the time embedding in half precision ({node.op_type} {node.name})"
    return None


def _from_time_alone(graph: ir.Graph) -> Iterator[ir.Node]:
    known = {value for value in graph.inputs if value.name == "time"}
    for node in graph:
        inputs = [value for value in node.inputs if value is not None and value.const_value is None]
        if inputs and all(value in known for value in inputs):
            known.update(node.outputs)
            yield node


def _casts_down(node: ir.Node) -> bool:
    to = node.attributes.get("to")
    return to is not None and ir.DataType(to.as_int()) in HALF
