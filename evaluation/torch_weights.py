"""From a bundle's float32 graph back to the torch module it was exported from."""

import warnings
from dataclasses import replace
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from flowturbo_trt.bundle.manifest import BundleError, Graph, Model, OlderBundleError
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.export.networks import with_guidance
from flowturbo_trt.export.onnx_graph import load_graph
from flowturbo_trt.export.onnx_rewrites import PARAMETER_ENDS, is_transposed
from flowturbo_trt.models.sit import SiT, SiTConfig


class TorchWeightsError(BundleError):
    """A graph whose weights do not make up the network that the manifest describes."""


def rebuild(bundle: Bundle, network: str, variant: str | None) -> nn.Module:
    """Rebuild a network variant in float32 on the CPU; raises TorchWeightsError, BundleError.

    Its weights are views of the graph's file where the layouts agree.
    """
    graph = next((g for g in bundle.manifest.graphs if (g.network, g.variant) == (network, variant)), None)
    if graph is None:
        wanted = f"{variant or ''} {network}".strip()
        raise TorchWeightsError(f"{bundle.path}: has no graph of the {wanted}; rebuild the bundle with it")
    for file in graph.data:
        bundle.file(file)
    model = load_graph(bundle.file(graph.file))
    module = _empty(bundle.manifest.model, graph)
    _load(module, _parameters(model), graph)
    return module.requires_grad_(False).eval()


def _empty(model: Model, graph: Graph) -> nn.Module:
    """Make the module of a graph without memory for its weights."""
    config = {
        "predictor": model.config,
        "refiner": model.refiner_config,
        "decoder": model.decoder_config,
    }[graph.network]
    if config is None:
        raise OlderBundleError(
            f"{graph.file}: the manifest does not tell the {graph.network}'s shape, as bundles of today do; "
            "rebuild the bundle"
        )
    try:
        with torch.device("meta"):
            return _decoder(config) if graph.network == "decoder" else _velocity_network(model, graph, config)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise TorchWeightsError(
            f"{graph.file}: no network can be made of the shape {config} ({error})"
        ) from error


def _velocity_network(model: Model, graph: Graph, config: dict[str, Any]) -> nn.Module:
    # Graphs hold the velocity's channels only (export.networks.velocity_outputs_only).
    network = SiT(replace(SiTConfig(**config), learn_sigma=False), refines=graph.network == "refiner")
    return with_guidance(network, graph.variant or "unguided", model.guidance.channels)


def _decoder(config: dict[str, Any]) -> nn.Module:
    # Here, because diffusers takes seconds to import and only decoders need it.
    from diffusers import AutoencoderKL

    from flowturbo_trt.models.autoencoder import Decoder

    return Decoder(AutoencoderKL.from_config(config))


def _parameters(model: ir.Model) -> dict[str, Tensor]:
    """Return a graph's parameters by name, in torch's layout."""
    parameters = {}
    with warnings.catch_warnings():
        # The file is mapped read-only, and nothing here writes to weights.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        for name, value in model.graph.initializers.items():
            if name.endswith(PARAMETER_ENDS) and value.const_value is not None:
                tensor = torch.from_numpy(value.const_value.numpy())
                transposed = any(is_transposed(node) for node in value.consumers())
                parameters[name] = tensor.t().contiguous() if transposed else tensor
    return parameters


def _load(module: nn.Module, weights: dict[str, Tensor], graph: Graph) -> None:
    file = graph.file
    expected = dict(module.named_parameters())
    for name, parameter in expected.items():
        if name not in weights and name.endswith(".bias"):
            # A bias of zeros may be left out of a graph (FORMAT.md, Engines).
            weights[name] = torch.zeros(parameter.shape, dtype=parameter.dtype)
    if missing := sorted(expected.keys() - weights.keys()):
        if not graph.key:
            raise OlderBundleError(f"{file}: does not name its weights, as bundles of today do; rebuild it")
        raise TorchWeightsError(
            f"{file}: has no {missing[0]}, which the manifest's configuration asks for; rebuild the bundle"
        )
    if unexpected := sorted(weights.keys() - expected.keys()):
        raise TorchWeightsError(
            f"{file}: has {unexpected[0]}, which the manifest's configuration leaves no place for; rebuild "
            "the bundle"
        )
    for name, parameter in expected.items():
        if weights[name].shape != parameter.shape:
            raise TorchWeightsError(
                f"{file}: its {name} is {list(weights[name].shape)}, {list(parameter.shape)} by the "
                "manifest's configuration; rebuild the bundle"
            )
    module.load_state_dict(weights, assign=True)
    for part in module.modules():
        if isinstance(part, SiT):
            part.t_embedder.reset_frequencies()
