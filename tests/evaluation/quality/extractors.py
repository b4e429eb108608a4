"""Tiny feature extractors whose outputs are known: pixels, rows of pixels, and colours as classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Shape = Sequence[int | str]
# How much surer of its colour an image is than its mean tells.
SHARPNESS = 8.0
ANY = ("batch", "height", "width", 3)
OUTPUTS = ("features", "spatial", "probabilities")


def write_extractor(
    path: Path,
    *,
    shape: Shape = ANY,
    dtype: int = TensorProto.UINT8,
    name: str = "image",
    outputs: Sequence[str] = OUTPUTS,
    scale: float = 255.0,
    softmax: bool = True,
) -> Path:
    """Write an ONNX extractor: pixels / scale, their means over rows, and softmax of the mean colour."""
    nodes = [
        helper.make_node("Cast", [name], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["floats", "scale"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "flat"], ["features"]),
        helper.make_node("ReduceMean", ["scaled", "columns"], ["rows"], keepdims=0),
        helper.make_node("Reshape", ["rows", "flat"], ["spatial"]),
        helper.make_node("ReduceMean", ["scaled", "sides"], ["colour"], keepdims=0),
        helper.make_node("Mul", ["colour", "sharpness"], ["logits"]),
        helper.make_node("Softmax" if softmax else "Identity", ["logits"], ["probabilities"]),
        # For those who ask for an output of another rank.
        helper.make_node("Identity", ["scaled"], ["unflattened"]),
    ]
    constants = {
        "scale": np.float32(scale),
        "flat": np.array([0, -1]),
        "columns": np.array([2]),
        "sides": np.array([1, 2]),
        "sharpness": np.float32(SHARPNESS),
    }
    graph = helper.make_graph(
        nodes,
        "extractor",
        [helper.make_tensor_value_info(name, dtype, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None) for output in outputs],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def features_of(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return what the extractor gives as features."""
    return (images.astype(np.float32) / 255).reshape(len(images), -1)


def spatial_of(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return (images.astype(np.float32) / 255).mean(axis=2).reshape(len(images), -1)


def random_images(
    count: int, seed: int, *, side: int = 2, low: int = 0, high: int = 256
) -> NDArray[np.uint8]:
    """Draw images (N,side,side,3) of independent pixels."""
    generator = np.random.default_rng(seed)
    return generator.integers(low, high, (count, side, side, 3)).astype(np.uint8)
