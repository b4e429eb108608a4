"""The float32 graphs of a bundle as its engines."""

from dataclasses import replace
from pathlib import Path

import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.recording.float32 import float32_view
from flowturbo_trt.evaluation.parity.recording import NoReferenceError
from flowturbo_trt.runtime.backend_onnxruntime import NAME


def test_every_graph_is_an_engine(golden_bundle: Path) -> None:
    """Whatever was built of them."""
    bundle = Bundle.open(golden_bundle)
    bundle = Bundle(golden_bundle, replace(bundle.manifest, engines=()))
    view = float32_view(bundle)
    assert view.path == bundle.path
    assert {(e.backend, e.precision) for e in view.manifest.engines} == {(NAME, "fp32")}
    assert [(e.name, e.files) for e in view.manifest.engines] == [
        (graph.name, graph.files) for graph in bundle.manifest.graphs
    ]


def test_bundle_without_graphs(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    stripped = Bundle(bundle.path, replace(bundle.manifest, graphs=()))
    with pytest.raises(NoReferenceError, match=r"stripped bundle\); calibrate the one it was made from"):
        float32_view(stripped)
