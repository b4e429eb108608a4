"""Groups of linear layers that are quantised together, and what their products take."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flowturbo_trt.bundle.manifest import Graph
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.endpoints import CalibrationError
from flowturbo_trt.calibration.recording.call_sites import CallSite
from flowturbo_trt.export.networks import is_conditioning
from flowturbo_trt.export.onnx_graph import load_graph
from flowturbo_trt.export.quantization import WEIGHT, linear_layers

# Products of layers for an image, by graph ("predictor guided") and layer ("blocks.0.attn.qkv").
Macs = Mapping[str, Mapping[str, float]]
_OF_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Group:
    """Layers that are quantised together: of one kind, in neighbouring blocks, in all variants of a network.

    `layers` are by graph ("predictor guided"); `macs` are their products for an image, over all calls of all
    recorded schedules.
    """

    name: str
    network: str
    layers: Mapping[str, tuple[str, ...]]
    macs: float


def find_candidates(
    view: Bundle, sites: Sequence[CallSite], networks: Sequence[str], kinds: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Return the layers that may be quantised, with their products, by graph.

    Raises CalibrationError for a network that is not called and a kind of layers that is in none.
    """
    for network in networks:
        if network not in {site.network for site in sites}:
            raise CalibrationError(
                f"network {network!r}: the schedules never call it; expected "
                f"{' or '.join(sorted({site.network for site in sites}))}"
            )
    called = {(site.network, site.variant) for site in sites if site.network in networks}
    macs = {
        graph.name: layer_macs(view, graph, sites)
        for graph in view.manifest.graphs
        if (graph.network, graph.variant) in called
    }
    known = dict.fromkeys(kind_of(layer) for of_graph in macs.values() for layer in of_graph)
    for kind in kinds:
        if kind not in known:
            raise CalibrationError(f"layers {kind!r}: the networks have none; known are {', '.join(known)}")
    return {
        name: {layer: count for layer, count in of_graph.items() if kind_of(layer) in kinds}
        for name, of_graph in macs.items()
    }


def kind_of(layer: str) -> str:
    """Return what a layer is called in every block: `attn.qkv` of `blocks.3.attn.qkv`."""
    match = _OF_BLOCK.fullmatch(layer)
    return match[2] if match else layer


def layer_macs(view: Bundle, graph: Graph, sites: Collection[CallSite]) -> dict[str, float]:
    """Return the products of each linear layer of a graph for an image, over all calls of some sites.

    Layers of the conditioning are left out: they work on a row where others work on its tokens.
    """
    calls = sum((site.network, site.variant) == (graph.network, graph.variant) for site in sites)
    halves = 2 if graph.variant == "guided" else 1
    nodes = linear_layers(load_graph(view.file(graph.file)))
    found = {}
    for layer, node in nodes.items():
        if is_conditioning(f"{layer}{WEIGHT}"):
            continue
        (out,) = node.outputs
        weight = node.inputs[1]
        assert out.shape is not None
        assert weight is not None
        assert weight.shape is not None
        # The symbolic axis is the batch, with guidance of both halves.
        sizes = [size for size in out.shape if isinstance(size, int)]
        found[layer] = float(calls * halves * np.prod(sizes) * weight.shape.numpy()[0])
    return found


def make_groups(macs: Macs, limit: int) -> tuple[Group, ...]:
    """Divide layers, given with their products by graph ("predictor guided"), into at most `limit` groups.

    By kind and block, where that is not too many, else by kind and as few blocks together as will do. There
    is one for each kind at least.
    """
    blocks = 1 + max((_block(layer) or 0 for layers in macs.values() for layer in layers), default=0)
    for together in range(1, blocks + 1):
        groups = _grouped(macs, together)
        if len(groups) <= limit:
            break
    return groups


def _grouped(macs: Macs, together: int) -> tuple[Group, ...]:
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    last = max((_block(layer) or 0 for layers in macs.values() for layer in layers), default=0)
    for graph, layers in macs.items():
        network = graph.split(" ")[0]
        for layer in layers:
            name = _group_name(layer, together, last)
            found.setdefault((network, name), {}).setdefault(graph, []).append(layer)
    return tuple(
        Group(
            f"{network} {name}",
            network,
            {graph: tuple(layers) for graph, layers in of.items()},
            sum(macs[graph][layer] for graph, layers in of.items() for layer in layers),
        )
        for (network, name), of in found.items()
    )


def _group_name(layer: str, together: int, last: int) -> str:
    block = _block(layer)
    if block is None:
        return layer
    first = block // together * together
    end = min(first + together - 1, last)
    return f"blocks.{first if first == end else f'{first}-{end}'}.{kind_of(layer)}"


def _block(layer: str) -> int | None:
    match = _OF_BLOCK.fullmatch(layer)
    return int(match[1]) if match else None
