"""The networks of a bundle as float32 ONNX graphs, each checked against torch as it is written."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from flowturbo_trt.bundle.manifest import BATCH, Tensor
from flowturbo_trt.export.networks import velocity_halves, velocity_outputs_only, with_guidance
from flowturbo_trt.export.onnx_graph import ExportError, export_graph, save_graph
from flowturbo_trt.export.sources import Sources

_TORCH_DTYPES = {"float32": torch.float32, "int64": torch.int64}
# Traced with at least 2, see export_graph; checked with another, lest the traced one has been built in.
TRACED_BATCH, CHECKED_BATCH = 2, 3
# Of a decoder one image is checked: it has no rows that differ in kind, and at full size costs seconds each.
CHECKED_IMAGES = 1
# Float32 against float32: what remains is the order of summation. Images may differ by a rounding.
MAX_RELATIVE_ERROR = 1e-4
MAX_LEVEL_ERROR = 1


@dataclass(frozen=True)
class Exportable:
    """A module with the interface that bundle/FORMAT.md gives its engine; `shape` is all it was made with."""

    network: str
    variant: str | None
    module: nn.Module
    inputs: tuple[Tensor, ...]
    output: Tensor
    shape: dict[str, Any]
    labels: int = 1

    @property
    def name(self) -> str:
        """What people call it, as bundle.manifest.Graph.name."""
        return f"{self.network} {self.variant or ''}".rstrip()

    @property
    def weight_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.module.state_dict().values())

    @property
    def file(self) -> str:
        return ".".join(part for part in (self.network, self.variant, "onnx") if part)


def exportables(sources: Sources, variants: tuple[str, ...]) -> Iterator[Exportable]:
    """Yield predictor and refiner in every variant, then the decoder."""
    for variant in variants:
        yield _velocity_network(sources, "predictor", variant)
        if sources.refiner is not None:
            yield _velocity_network(sources, "refiner", variant)
    if sources.decoder is not None:
        config = sources.predictor.config
        side = config.input_size * sources.decoder.upsampling
        state = Tensor("state", "float32", (BATCH, config.in_channels, config.input_size, config.input_size))
        image = Tensor("image", "uint8", (BATCH, side, side, 3))
        yield Exportable("decoder", None, sources.decoder, (state,), image, sources.decoder.config)


def export_one(item: Exportable, folder: Path) -> list[Path]:
    """Export one network into `folder`, compare it with torch and return its files; raises ExportError."""
    model = export_graph(item.module, _sample(item, TRACED_BATCH), item.output.name)
    files = save_graph(model, folder / item.file)
    # The exporter's copies of the weights go before the comparison brings its own.
    del model
    rows = CHECKED_IMAGES if item.network == "decoder" else CHECKED_BATCH
    _check_against_torch(item, _sample(item, rows), files[0])
    return files


def _velocity_network(sources: Sources, name: str, variant: str) -> Exportable:
    network = sources.predictor if name == "predictor" else sources.refiner
    assert network is not None
    config = network.config
    C, side = config.in_channels, config.input_size
    guided = variant == "guided"
    G = velocity_halves(sources.guided_channels, C) if guided else 1
    inputs = [
        Tensor("state", "float32", (BATCH, C, side, side)),
        Tensor("time", "float32", (BATCH,)),
        Tensor("label", "int64", (BATCH,)),
    ]
    if guided:
        inputs.append(Tensor("guidance", "float32", (BATCH,)))
    if network.refines:
        inputs.append(Tensor("velocity", "float32", (BATCH, G, C, side, side)))
    output = Tensor("offset" if network.refines else "velocity", "float32", (BATCH, G, C, side, side))
    module = with_guidance(velocity_outputs_only(network), variant, sources.guided_channels)
    shape = asdict(config) | {"guided_channels": sources.guided_channels if guided else 0}
    return Exportable(name, variant, module, tuple(inputs), output, shape, config.num_classes)


def _sample(item: Exportable, batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sample = {}
    for tensor in item.inputs:
        shape = (batch, *(int(size) for size in tensor.shape[1:]))
        if tensor.dtype == "int64":
            sample[tensor.name] = torch.arange(batch) % item.labels
        elif tensor.name == "time":
            sample[tensor.name] = torch.rand(shape, generator=generator)
        else:
            sample[tensor.name] = torch.randn(shape, generator=generator)
    return sample


def _check_against_torch(item: Exportable, sample: dict[str, torch.Tensor], file: Path) -> None:
    with torch.no_grad():
        expected = item.module(**sample).numpy().astype(np.float32)
    options = onnxruntime.SessionOptions()
    # Packed weights are a second copy, which pays for itself only in many calls.
    options.add_session_config_entry("session.disable_prepacking", "1")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: value.numpy() for name, value in sample.items()})
    difference = np.asarray(found, dtype=np.float32) - expected
    if item.output.dtype == "uint8":
        error, limit = float(np.abs(difference).max()), float(MAX_LEVEL_ERROR)
    else:
        # An untrained refiner's output is zero, and so must the difference be.
        error, limit = float(np.linalg.norm(difference)), MAX_RELATIVE_ERROR * float(np.linalg.norm(expected))
    # Written so that NaN fails.
    if not error <= limit:
        raise ExportError(f"{item.file}: differs from torch by {error:.3g}, at most {limit:.3g} is allowed")
