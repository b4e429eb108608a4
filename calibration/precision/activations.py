"""What the linear layers of a network read along recorded trajectories: a histogram for each."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import BundleError, Graph, Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.endpoints import CalibrationError, Progress
from flowturbo_trt.calibration.precision.histograms import Histogram
from flowturbo_trt.calibration.recording.float32 import float32_view
from flowturbo_trt.calibration.recording.trajectories import Call, Recording
from flowturbo_trt.evaluation.velocity.networks import EngineField
from flowturbo_trt.export.onnx_graph import load_graph
from flowturbo_trt.export.quantization import linear_layers
from flowturbo_trt.runtime.backend_onnxruntime import NAME, OnnxRuntimeBackend
from flowturbo_trt.runtime.onnxruntime_session import failure, session_options
from flowturbo_trt.sampling.steps import Field

Array = NDArray[np.float32]
# What one run may put out beside the network's own output: all layers of SiT-XL/2, for a guided row.
OUTPUT_BYTES = 512 * 2**20


def collect(
    bundle: Bundle,
    recording: Recording,
    network: str,
    variant: str,
    *,
    smooth: Mapping[str, Array] | None = None,
    threads: int = 0,
    output_bytes: int = OUTPUT_BYTES,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Histogram]:
    """Return a histogram of the input of every linear layer of a network variant, by layer.

    The recorded calls are run on the float32 graph. With `smooth`, channels' divisors (in) by layer, what
    these layers read is divided first (smoothing.py), and other layers are left out. What layers
    read is held for as many rows at a time as fit into `output_bytes`; where one row does not, they are
    looked at in groups, each with a run of its own. Raises CalibrationError and BundleError.
    """
    view = float32_view(bundle)
    graph = find_graph(view.manifest, network, variant)
    sites = {site for site in recording.sites if (site.network, site.variant) == (network, variant)}
    if not sites:
        raise CalibrationError(
            f"{recording.folder}: has no calls of the {variant} {network}; record a schedule that calls it"
        )
    found = linear_layers(load_graph(view.file(graph.file)))
    row_bytes = {layer: _row_bytes(node) for layer, node in found.items() if not smooth or layer in smooth}
    histograms = {layer: Histogram() for layer in row_bytes}
    size = max(1, output_bytes // sum(row_bytes.values()))
    groups = _groups(row_bytes, output_bytes // size)
    done, total = 0, len(groups) * recording.rows * len(sites)
    for group in groups:
        probe = _Probe(view, graph, threads, {layer: histograms[layer] for layer in group}, smooth or {})
        for rows in recording.read(view.manifest):
            for start in range(0, len(rows.request), size):
                part = rows.part(slice(start, start + size))
                field = EngineField(probe, view.manifest, NAME, variant, part.request)
                for call in part.calls:
                    if call.site in sites:
                        replay(field, call)
                        done += len(part.request)
                        progress(f"looking at the {variant} {network}'s activations", done, total)
    return histograms


def replay(field: Field, call: Call) -> Array:
    """Evaluate a recorded call (n rows) on a field; return velocities or offsets (n,G,C,H,W)."""
    x, t = call.state[:, None], call.site.t
    output: Array = field.predict(x, t) if call.velocity is None else field.refine(x, call.velocity, t)
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
    """Open a graph that also puts out what some layers read, in their order."""
    path, *_ = [bundle.file(file) for file in graph.files]
    model = load_graph(path)
    nodes = linear_layers(model)
    for layer in layers:
        read = nodes[layer].inputs[0]
        assert read is not None
        # A name of its own: several layers may read one value.
        copy = ir.node("Identity", [read])
        (out,) = copy.outputs
        out.name, out.type, out.shape = f"read by {layer}", read.type, read.shape
        model.graph.append(copy)
        model.graph.outputs.append(out)
    options = session_options(threads)
    # Weights that lie beside the graph's file are looked for there.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    content = ir.serde.serialize_model(model).SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _row_bytes(node: ir.Node) -> int:
    """Return the bytes that a layer reads for one row."""
    read = node.inputs[0]
    assert read is not None
    assert read.shape is not None
    # Symbolic axes are the batch, or with guidance twice that.
    return 4 * int(np.prod([axis if isinstance(axis, int) else 2 for axis in read.shape]))


def _groups(row_bytes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Divide layers so that what each group reads for one row is within a limit, if one layer is."""
    groups: list[list[str]] = []
    filled = limit
    for layer, size in row_bytes.items():
        if filled + size > limit or not groups:
            groups.append([])
            filled = 0
        groups[-1].append(layer)
        filled += size
    return groups


class _Probe(OnnxRuntimeBackend):
    """The float32 graphs of a view, one of which also tells what its layers read."""

    def __init__(
        self,
        view: Bundle,
        graph: Graph,
        threads: int,
        histograms: Mapping[str, Histogram],
        smooth: Mapping[str, Array],
    ) -> None:
        super().__init__(view, threads)
        self._probed = view.manifest.engine(graph.network, graph.variant, NAME)
        self._session = open_probe(view, graph, list(histograms), threads)
        self._histograms = histograms
        self._smooth = smooth

    def evaluate(self, network: str, variant: str | None, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        if (network, variant) != (self._probed.network, self._probed.variant):
            return super().evaluate(network, variant, inputs)
        try:
            output, *read = self._session.run(None, dict(inputs))
        except Exception as error:  # its exceptions share no base class of their own
            raise failure(self._probed, error) from error
        for (layer, histogram), values in zip(self._histograms.items(), read, strict=True):
            divided = values / self._smooth[layer] if layer in self._smooth else values
            try:
                histogram.add(divided)
            except CalibrationError as error:
                raise CalibrationError(f"what {layer} of the {self._probed.name} reads: {error}") from error
        result: NDArray[Any] = output
        return result
