"""Checks that take the libraries of a build machine, and are left out where these are not installed.

The float32 graphs, which verification takes for the truth, are held against torch; engines' files are
looked into.
"""

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

from flowturbo_trt.bundle.manifest import BundleError, Graph, OlderBundleError
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.parity.comparison import compare_call, compare_images
from flowturbo_trt.evaluation.parity.recording import Call, Recording, graph_engine
from flowturbo_trt.evaluation.parity.results import EngineParity
from flowturbo_trt.evaluation.parity.thresholds import file_thresholds, thresholds

TORCH = "torch"


def against_torch(
    bundle: Bundle, recordings: Sequence[Recording]
) -> tuple[tuple[EngineParity, ...], tuple[str, ...]]:
    """Compare the recorded outputs with torch's, on the first and the last call of each network.

    Returns the results and, where torch is not installed, a note instead.
    """
    try:
        networks = import_module("flowturbo_trt.evaluation.torch_reference").load_torch_networks(bundle)
    except ModuleNotFoundError as error:
        return (), (f"float32 graphs not held against torch: {error.name} is not installed",)
    graphs = bundle.manifest.graphs
    return tuple(_compare(graph, networks, bundle.manifest.batches, recordings) for graph in graphs), ()


def faults_in_files(bundle: Bundle) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return what is wrong in ONNX engines' files, by file, and a note where nothing could look into them."""
    try:
        module = import_module("flowturbo_trt.evaluation.parity.engine_file")
    except ModuleNotFoundError as error:
        return {}, (f"weights of engines not held against the graphs': {error.name} is not installed",)
    graphs = {(graph.network, graph.variant): graph for graph in bundle.manifest.graphs}
    faults = {}
    for engine in bundle.manifest.engines:
        graph = graphs.get((engine.network, engine.variant))
        if graph is None or engine.file == graph.file or not engine.file.endswith(".onnx"):
            continue
        for file in (*engine.data, *graph.data):
            bundle.file(file)
        files = bundle.file(engine.file), bundle.file(graph.file)
        try:
            fault = module.find_fault(*files, file_thresholds(engine, thresholds(engine.precision)))
        except (OSError, ValueError) as error:
            fault = f"its file cannot be read ({error})"
        if fault:
            faults[engine.file] = fault
    return faults, ()


def _compare(
    graph: Graph, networks: Any, batches: tuple[int, ...], recordings: Sequence[Recording]
) -> EngineParity:
    engine = graph_engine(graph, batches, TORCH)
    limits = thresholds(engine.precision)
    try:
        if graph.network == "decoder":
            return EngineParity(engine, limits, images=tuple(_images(networks, recordings)))
        calls = list(_ends(graph, recordings))
        if not calls:
            return EngineParity(engine, limits, not_run="no chosen schedule evaluates it")
        errors = []
        for call in calls:
            rows = slice(0, len(call.output))
            expected = networks.evaluate(graph.network, graph.variant, call.inputs).reshape(call.output.shape)
            errors += compare_call(call, call.output, expected, rows, len(call.output))
        return EngineParity(engine, limits, calls=tuple(errors))
    except OlderBundleError as error:
        return EngineParity(engine, limits, not_run=str(error))
    except BundleError as error:
        return EngineParity(engine, limits, failure=str(error))


def _images(networks: Any, recordings: Sequence[Recording]) -> Iterator[Any]:
    for recording in recordings[:1]:
        assert recording.images is not None
        expected = networks.evaluate("decoder", None, {"state": recording.latents})
        rows = slice(0, len(expected))
        yield compare_images(recording, recording.images, expected, rows, len(expected))


def _ends(graph: Graph, recordings: Sequence[Recording]) -> Iterator[Call]:
    """Yield the first and the last call of a graph in each recording of its variant."""
    for recording in recordings:
        calls = recording.calls_of(graph.network, graph.variant)
        yield from (*calls[:1], *calls[1:][-1:])
