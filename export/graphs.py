"""The networks of a bundle as float32 ONNX graphs, each checked against torch as it is written."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from flowturbo_trt.bundle.manifest import BATCH, Tensor, conditioner_of
from flowturbo_trt.export.networks import (
    conditioner,
    padded_modulation_width,
    velocity_halves,
    velocity_outputs_only,
    with_guidance,
)
from flowturbo_trt.export.onnx_graph import ExportError, export_graph, save_graph
from flowturbo_trt.export.sources import Sources
from flowturbo_trt.models.sit import SiT

_TIME_AND_LABEL = (Tensor("time", "float32", (BATCH,)), Tensor("label", "int64", (BATCH,)))
# Traced with at least 2, see export_graph; checked with another, lest the traced one has been built in.
TRACED_BATCH, CHECKED_BATCH = 2, 3
# Of a decoder one image is checked: it has no rows that differ in kind, and at full size costs seconds each.
CHECKED_IMAGES = 1
# Float32 against float32: what remains is the order of summation. Images may differ by a rounding.
MAX_RELATIVE_ERROR = 1e-4
MAX_LEVEL_ERROR = 1


@dataclass(frozen=True)
class Exportable:
    """A module with the interface that bundle/FORMAT.md gives its engine; `shape` is all it was made with.

    `checkpoint` names the source of its weights: predictor, refiner or decoder.
    """

    network: str
    variant: str | None
    checkpoint: str
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


def exportables(sources: Sources, variants: tuple[str, ...], conditioning: str) -> Iterator[Exportable]:
    """Yield predictor and refiner in every variant, their conditioners where hoisted, then the decoder."""
    networks = {"predictor": sources.predictor, "refiner": sources.refiner}
    given = {
        name: velocity_outputs_only(network) for name, network in networks.items() if network is not None
    }
    for variant in variants:
        for name, network in given.items():
            yield _velocity_network(name, network, variant, sources.guided_channels, conditioning)
    if conditioning == "hoisted":
        for name, network in given.items():
            yield _conditioner(name, network)
    if sources.decoder is not None:
        config = sources.predictor.config
        side = config.input_size * sources.decoder.upsampling
        state = Tensor("state", "float32", (BATCH, config.in_channels, config.input_size, config.input_size))
        image = Tensor("image", "uint8", (BATCH, side, side, 3))
        shape = sources.decoder.config
        yield Exportable("decoder", None, "decoder", sources.decoder, (state,), image, shape)


def export_one(item: Exportable, folder: Path) -> list[Path]:
    """Export one network into `folder`, compare it with torch and return its files; raises ExportError."""
    model = export_graph(item.module, _sample(item, TRACED_BATCH), item.output.name)
    files = save_graph(model, folder / item.file)
    # The exporter's copies of the weights go before the comparison brings its own.
    del model
    rows = CHECKED_IMAGES if item.network == "decoder" else CHECKED_BATCH
    _check_against_torch(item, _sample(item, rows), files[0])
    return files


def _velocity_network(
    name: str, network: SiT, variant: str, guided_channels: int, conditioning: str
) -> Exportable:
    config, guided = network.config, variant == "guided"
    C, side = config.in_channels, config.input_size
    G = velocity_halves(guided_channels, C) if guided else 1
    inputs = [Tensor("state", "float32", (BATCH, C, side, side))]
    if conditioning == "hoisted":
        M = padded_modulation_width(config)
        halves = ("modulation", "null_modulation") if guided else ("modulation",)
        inputs += [Tensor(half, "float32", (BATCH, M)) for half in halves]
    else:
        inputs += _TIME_AND_LABEL
    if guided:
        inputs.append(Tensor("guidance", "float32", (BATCH,)))
    if network.refines:
        inputs.append(Tensor("velocity", "float32", (BATCH, G, C, side, side)))
    output = Tensor("offset" if network.refines else "velocity", "float32", (BATCH, G, C, side, side))
    module = with_guidance(network, variant, guided_channels, conditioning)
    shape = asdict(config) | {
        "guided_channels": guided_channels if guided else 0,
        "conditioning": conditioning,
    }
    return Exportable(name, variant, name, module, tuple(inputs), output, shape, config.num_classes)


def _conditioner(name: str, network: SiT) -> Exportable:
    config = network.config
    output = Tensor("modulation", "float32", (BATCH, padded_modulation_width(config)))
    return Exportable(
        conditioner_of(name),
        None,
        name,
        conditioner(network),
        _TIME_AND_LABEL,
        output,
        asdict(config),
        config.num_classes + 1,
    )


def _sample(item: Exportable, batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sample = {}
    for tensor in item.inputs:
        shape = (batch, *(int(size) for size in tensor.shape[1:]))
        if tensor.dtype == "int64":
            # From the last on, which for a conditioner is the null label.
            sample[tensor.name] = (item.labels - 1 + torch.arange(batch)) % item.labels
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
