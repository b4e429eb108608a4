"""From a bundle's float32 graph back to the torch module it was exported from."""

import warnings
from dataclasses import replace

import onnx_ir as ir
import torch
from torch import Tensor, nn

from flowturbo_trt.bundle.manifest import BundleError, Graph, Model, OlderBundleError, conditioner_of
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.empty_networks import UNFIT, configurations, empty_network
from flowturbo_trt.export.onnx_graph import load_graph
from flowturbo_trt.export.onnx_rewrites import PARAMETER_ENDS, is_transposed
from flowturbo_trt.models.sit import SiT


class TorchWeightsError(BundleError):
    """A graph whose weights do not make up the network that the manifest describes."""


def rebuild(bundle: Bundle, network: str, variant: str | None) -> nn.Module:
    """Rebuild a network variant in float32 on the CPU; raises TorchWeightsError, BundleError.

    Its weights are views of the graph's file where the layouts agree.
    """
    graph = _graph(bundle, network, variant)
    module = _empty(bundle.manifest.model, graph)
    _load(module, _read(bundle, graph), graph)
    return module.requires_grad_(False).eval()


def rebuild_whole(bundle: Bundle, network: str, variant: str | None) -> nn.Module:
    """Rebuild a network variant with its conditioning in it, as torch runs it; see `rebuild`."""
    graph = _graph(bundle, network, variant)
    if not graph.is_hoisted:
        return rebuild(bundle, network, variant)
    conditioner = _graph(bundle, conditioner_of(network), None)
    module = _empty(bundle.manifest.model, replace(graph, inputs=conditioner.inputs))
    _load(module, _read(bundle, graph) | _read(bundle, conditioner), graph)
    return module.requires_grad_(False).eval()


def _graph(bundle: Bundle, network: str, variant: str | None) -> Graph:
    for graph in bundle.manifest.graphs:
        if (graph.network, graph.variant) == (network, variant):
            return graph
    wanted = f"{variant or ''} {network}".strip()
    raise TorchWeightsError(f"{bundle.path}: has no graph of the {wanted}; rebuild the bundle with it")


def _read(bundle: Bundle, graph: Graph) -> dict[str, Tensor]:
    for file in graph.data:
        bundle.file(file)
    return _parameters(load_graph(bundle.file(graph.file)))


def _empty(model: Model, graph: Graph) -> nn.Module:
    """Make the module of a graph without memory for its weights."""
    config = configurations(model)[graph.network]
    if config is None:
        raise OlderBundleError(
            f"{graph.file}: the manifest does not tell the {graph.network}'s shape, as bundles of today do; "
            "rebuild the bundle"
        )
    conditioning = "hoisted" if graph.is_hoisted else "fused"
    try:
        return empty_network(model, graph.network, graph.variant, config, conditioning)
    except UNFIT as error:
        raise TorchWeightsError(
            f"{graph.file}: no network can be made of the shape {config} ({error})"
        ) from error


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
