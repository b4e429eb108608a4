"""The float32 graphs of a bundle as its engines: what calibration takes for the truth."""

from dataclasses import replace

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.parity.recording import NoReferenceError, graph_engine
from flowturbo_trt.runtime.backend_onnxruntime import NAME


def float32_view(bundle: Bundle) -> Bundle:
    """Return a bundle whose engines are its float32 graphs, for ONNX Runtime on the CPU.

    They take any number of rows. Raises NoReferenceError where there are none.
    """
    manifest = bundle.manifest
    if not manifest.graphs:
        raise NoReferenceError(
            f"{bundle.path}: holds no float32 graphs (a stripped bundle); calibrate the one it was made from"
        )
    engines = tuple(graph_engine(graph, manifest.batches, NAME) for graph in manifest.graphs)
    return Bundle(bundle.path, replace(manifest, engines=engines))
