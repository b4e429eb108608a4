"""From a torch module to an ONNX graph with a symbolic batch, and onto disk."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor, nn

from flowturbo_trt.bundle.manifest import BATCH
from flowturbo_trt.export import onnx_rewrites
from flowturbo_trt.sampling.errors import FlowTurboError

# 20 has Gelu, 21 GroupNormalization, 22 a bfloat16 Conv that ONNX Runtime accepts.
OPSET = 22
# A file past this size keeps its weights beside it: protobuf ends at 2 GiB, and a mapped file loads faster.
EXTERNAL_DATA_BYTES = 256 * 2**20


class ExportError(FlowTurboError):
    """A network cannot be exported, or its graph breaks a promise of the bundle format."""


def export_graph(module: nn.Module, inputs: dict[str, Tensor], output: str) -> ir.Model:
    """Trace a module to an ONNX model whose batch axis (axis 0 of every tensor) is symbolic.

    `inputs` are sample tensors by the module's argument names; their batch must be at least 2, because
    tracing takes 1 for a constant.
    """
    batch = torch.export.Dim(BATCH)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            (),
            kwargs=inputs,
            dynamic_shapes={name: {0: batch} for name in inputs},
            input_names=list(inputs),
            output_names=[output],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise ExportError(f"torch exported nothing for {type(module).__name__}")
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    rewrites = (
        onnx_rewrites.name_weights(shapes),
        onnx_rewrites.strip_metadata,
        onnx_rewrites.check_batch,
    )
    onnx_rewrites.apply(program.model, rewrites)
    return program.model


def save_graph(model: ir.Model, path: Path) -> list[Path]:
    """Write a model and return the files it takes: itself and, past EXTERNAL_DATA_BYTES, its weights."""
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    if size <= EXTERNAL_DATA_BYTES:
        # Weights that were read from a file beside the source would still be looked for there.
        ir.save(ir.external_data.load_to_model(model), path)
        return [path]
    data = path.with_name(path.name + ".data")
    ir.save(model, path, external_data=data.name)
    return [path, data]


def load_graph(path: Path) -> ir.Model:
    """Read a model; its weights stay in the file until used."""
    return ir.load(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's remarks about packages this project does not use and its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
