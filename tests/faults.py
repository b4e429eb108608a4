"""Faults planted in a bundle's engines, the float32 graphs left as they are: what `verify` is for."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from flowturbo_trt.bundle.store import sha256
from flowturbo_trt.export.precision import lower_precision
from flowturbo_trt.tests.bundles import edit_manifest

Fault = Callable[[ModelProto], object]


def plant(
    bundle: Path, network: str, fault: Fault, variant: str | None = "guided", *, external: bool = False
) -> Path:
    """Give a bundle's ONNX Runtime engine a file of its own with a fault in it; returns the bundle.

    `external` keeps the weights in a file beside it, as large networks do.
    """
    engines = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["engines"]
    (position,) = (
        index
        for index, engine in enumerate(engines)
        if (engine["network"], engine["variant"], engine["backend"]) == (network, variant, "onnxruntime")
    )
    model = onnx.load(bundle / engines[position]["file"])
    fault(model)
    name = f"engines/onnxruntime/{network}.{variant or 'images'}.faulty.onnx"
    (bundle / name).parent.mkdir(parents=True, exist_ok=True)
    data = [f"{name}.data"] if external else []
    # Not what shapes are computed from: ONNX Runtime wants that in the file itself.
    location = Path(name).name + ".data"
    onnx.save(model, bundle / name, save_as_external_data=external, location=location, size_threshold=512)

    def change(manifest: dict[str, Any]) -> None:
        manifest["engines"][position] |= {"file": name, "data": data}
        for file in (name, *data):
            size = (bundle / file).stat().st_size
            manifest["files"][file] = {"bytes": size, "sha256": sha256(bundle / file)}

    edit_manifest(bundle, change)
    return bundle


def scale_weight(name: str, factor: float) -> Fault:
    """Multiply one weight tensor; a factor of NaN fills it with NaN."""

    def fault(model: ModelProto) -> None:
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array((array * factor).astype(array.dtype), name))

    return fault


def scale_row(name: str, row: int, factor: float) -> Fault:
    """Multiply one row of a weight matrix."""

    def fault(model: ModelProto) -> None:
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
        array = numpy_helper.to_array(tensor).copy()
        array[row] *= factor
        tensor.CopyFrom(numpy_helper.from_array(array, name))

    return fault


def product_weights(model: ModelProto) -> dict[str, NodeProto]:
    """Return the weight matrices of all products and convolutions, in order, with the nodes that use them."""
    held = {tensor.name for tensor in model.graph.initializer}
    return {
        node.input[1]: node
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm", "Conv") and node.input[1] in held
    }


def scale_product(index: int, factor: float) -> Fault:
    """Multiply the weight matrix of one product."""

    def fault(model: ModelProto) -> None:
        scale_weight(list(product_weights(model))[index], factor)(model)

    return fault


def swap_halves(model: ModelProto) -> None:
    """Exchange the halves of a velocity (B,2,C,H,W)."""
    (output,) = model.graph.output
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name == output.name:
                node.output[index] = "unswapped"
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 0]), "swapped"))
    model.graph.node.append(helper.make_node("Gather", ["unswapped", "swapped"], [output.name], axis=1))


def swap_modulations(model: ModelProto) -> None:
    """Give the conditional half the modulation of none and the other one the label's."""
    exchanged = {"modulation": "null_modulation", "null_modulation": "modulation"}
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = exchanged.get(name, name)


def swap_conditions(model: ModelProto) -> None:
    """Do in a fused network what `swap_modulations` does: u + s·(c − u) is turned round."""
    first, second = (node for node in model.graph.node if node.op_type == "Gather" and _embeds(model, node))
    first.input[1], second.input[1] = second.input[1], first.input[1]


def _embeds(model: ModelProto, node: NodeProto) -> bool:
    return any(tensor.name == node.input[0] and len(tensor.dims) == 2 for tensor in model.graph.initializer)


def half_precision_time(model: ModelProto) -> None:
    """Compute everything that the time alone decides, angles to embedding, in float16."""
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    held = {tensor.name for tensor in graph.initializer}
    known = {"time"}
    inside = []
    for node in graph.node:
        if {name for name in node.input if name not in held} - known == set() and known & set(node.input):
            inside.append(node)
            known.update(node.output)
    for node in inside:
        for index, name in enumerate(node.input):
            if name in weights:
                half = numpy_helper.to_array(weights[name]).astype(np.float16)
                graph.initializer.append(numpy_helper.from_array(half, f"{node.name}_{index}_half"))
                node.input[index] = f"{node.name}_{index}_half"
            elif name == "time":
                node.input[index] = "time_half"
    names = {id(node) for node in inside}
    leaving = {name for node in graph.node if id(node) not in names for name in node.input} & known - {"time"}
    for name in leaving:
        _cast_back(model, inside, name)
    graph.node.insert(0, helper.make_node("Cast", ["time"], ["time_half"], to=TensorProto.FLOAT16))
    del graph.value_info[:]


def _cast_back(model: ModelProto, inside: list[NodeProto], name: str) -> None:
    """Let the nodes inside use a tensor in float16, all others the same tensor cast to float32."""
    for node in inside:
        for names in (node.input, node.output):
            for index, found in enumerate(names):
                if found == name:
                    names[index] = f"{name}_half"
    (position,) = (i for i, node in enumerate(model.graph.node) if f"{name}_half" in node.output)
    cast = helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT)
    model.graph.node.insert(position + 1, cast)


def fix_batch(batch: int) -> Fault:
    """Let the file serve one batch size only."""

    def fault(model: ModelProto) -> None:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = batch

    return fault


def scale_decoder(factor: float) -> Fault:
    """Multiply a decoder's raw output: its last convolution, bias included."""

    def fault(model: ModelProto) -> None:
        last = list(product_weights(model).values())[-1]
        for name in last.input[1:]:
            scale_weight(name, factor)(model)

    return fault


def lower(precision: str) -> Fault:
    """Rewrite an engine for another precision, as `build` does."""

    def fault(model: ModelProto) -> None:
        model.CopyFrom(ir.to_proto(lower_precision(ir.from_proto(model), precision)))

    return fault


def copy_in(precision: str, bundle: Path, folder: Path) -> Path:
    """Copy a bundle into a folder and rewrite all its ONNX Runtime engines for a precision."""
    copy = Path(shutil.copytree(bundle, folder / precision))
    engines = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))["engines"]
    for engine in engines:
        if engine["backend"] == "onnxruntime":
            plant(copy, engine["network"], lower(precision), engine["variant"])

    def change(manifest: dict[str, Any]) -> None:
        for engine in manifest["engines"]:
            engine["precision"] = precision

    edit_manifest(copy, change)
    return copy
