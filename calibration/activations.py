"""What the linear layers of a network read along recorded trajectories: histograms, group by group."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import BundleError, Graph, Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.endpoints import CalibrationError, Progress
from flowturbo_trt.calibration.histograms import Histogram
from flowturbo_trt.calibration.trajectories import Call, Recording
from flowturbo_trt.evaluation.velocity.networks import EngineField
from flowturbo_trt.export.onnx_graph import load_graph
from flowturbo_trt.export.quantization import linear_layers
from flowturbo_trt.runtime.backend import Backend
from flowturbo_trt.runtime.onnxruntime_session import session_options

Array = NDArray[np.float32]
# What one run may put out beside the network's own output: layers are looked at in groups of that size.
GROUP_BYTES = 256 * 2**20


def collect(
    bundle: Bundle,
    reference: Backend,
    manifest: Manifest,
    recording: Recording,
    network: str,
    variant: str,
    progress: Progress = lambda what, done, total: None,
    *,
    threads: int = 0,
    group_bytes: int = GROUP_BYTES,
) -> dict[str, Histogram]:
    """Return a histogram of the input of every linear layer of a network, by layer.

    The recorded calls are run on the float32 graph, the conditioner's on `reference`, whose engines
    `manifest` describes, with no more layers put out at a time than `group_bytes` hold. Raises
    CalibrationError.
    """
    graph = find_graph(bundle.manifest, network, variant)
    sites = {site for site in recording.sites if (site.network, site.variant) == (network, variant)}
    if not sites:
        raise CalibrationError(
            f"{recording.folder}: has no calls of the {variant} {network}; record a schedule that calls it"
        )
    model = load_graph(bundle.file(graph.file))
    for file in graph.data:
        bundle.file(file)
    histograms = {layer: Histogram() for layer in linear_layers(model)}
    groups = _groups(model, max(manifest.batches), group_bytes)
    total, done = len(groups) * len(recording.shards) * len(sites), 0
    for group in groups:
        session = open_probe(bundle, graph, group, threads)
        probing = _Probing(reference, session, (network, variant), {n: histograms[n] for n in group})
        for rows in recording.read(bundle.manifest):
            field = EngineField(probing, manifest, "onnxruntime", variant, rows.request)
            for call in rows.calls:
                if call.site in sites:
                    replay(field, call)
                    done += 1
                    progress(f"looking at the {variant} {network}'s activations", done, total)
    return histograms


def replay(field: Any, call: Call) -> Array:
    """Evaluate a recorded call on a field."""
    x = call.state[:, None]
    if call.velocity is None:
        output: Array = field.predict(x, call.site.t)
    else:
        output = field.refine(x, call.velocity, call.site.t)
    return output


def find_graph(manifest: Manifest, network: str, variant: str) -> Graph:
    """Return a network's float32 graph; raises BundleError."""
    for graph in manifest.graphs:
        if (graph.network, graph.variant) == (network, variant):
            return graph
    raise BundleError(
        f"the bundle has no float32 graph of the {variant} {network}; build it with one and without --strip"
    )


def open_probe(
    bundle: Bundle, graph: Graph, layers: Sequence[str], threads: int
) -> onnxruntime.InferenceSession:
    """Open a graph that also puts out what some layers read, under the layers' names."""
    model = load_graph(bundle.file(graph.file))
    nodes = linear_layers(model)
    for layer in layers:
        read = nodes[layer].inputs[0]
        assert read is not None
        # A name of its own: two layers may read the same value.
        copy = ir.node("Identity", [read])
        (out,) = copy.outputs
        out.name, out.dtype, out.shape = layer, read.dtype, read.shape
        model.graph.append(copy)
        model.graph.outputs.append(out)
    options = session_options(threads)
    # Weights that lie beside the graph's file are looked for there.
    folder = str(bundle.file(graph.file).parent)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    content = ir.serde.serialize_model(model).SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _groups(model: ir.Model, batch: int, limit: int) -> list[list[str]]:
    """Divide the layers so that what each group reads in one call of a batch is within the limit."""
    groups: list[list[str]] = [[]]
    filled = 0
    for layer, node in linear_layers(model).items():
        size = _bytes(node, batch)
        if groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(layer)
        filled += size
    return groups


def _bytes(node: ir.Node, batch: int) -> int:
    read = node.inputs[0]
    assert read is not None
    # Symbolic axes are the batch, or with guidance twice that.
    axes = [size if isinstance(size, int) else 2 * batch for size in (read.shape or ())]
    return 4 * int(np.prod(axes))


class _Probing:
    """A backend in which one network also tells what its layers read (runtime.backend.Backend.evaluate)."""

    def __init__(
        self,
        backend: Backend,
        session: onnxruntime.InferenceSession,
        network: tuple[str, str | None],
        histograms: Mapping[str, Histogram],
    ) -> None:
        self._backend = backend
        self._session = session
        self._network = network
        self._histograms = histograms

    def evaluate(self, network: str, variant: str | None, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        if (network, variant) != self._network:
            return self._backend.evaluate(network, variant, inputs)
        output, *read = self._session.run(None, dict(inputs))
        for (layer, histogram), values in zip(self._histograms.items(), read, strict=True):
            try:
                histogram.add(values)
            except CalibrationError as error:
                raise CalibrationError(f"what {layer} reads: {error}") from error
        result: NDArray[Any] = output
        return result
