"""Scales: of the range that a method chooses, of what the layer reads once it is smoothed."""

from pathlib import Path

import numpy as np
import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.precision.activations import collect, find_graph
from flowturbo_trt.calibration.precision.ranges import METHODS, choose_range
from flowturbo_trt.calibration.precision.scales import SMOOTHED, Arrangement, Scales
from flowturbo_trt.calibration.precision.smoothing import smoothing
from flowturbo_trt.calibration.recording.float32 import float32_view
from flowturbo_trt.calibration.recording.trajectories import Recording
from flowturbo_trt.export.onnx_graph import load_graph
from flowturbo_trt.export.quantization import linear_layers

LAYERS = {f"blocks.0.{kind}": 1.0 for kind in (*SMOOTHED, "attn.proj", "mlp.fc2")}
LARGEST = {"int8": 127, "fp8": 448}


@pytest.fixture(scope="module")
def scales(golden_bundle: Path, golden_recording: Recording) -> Scales:
    view = float32_view(Bundle.open(golden_bundle))
    return Scales(view, golden_recording, ("predictor", "guided"), 1, lambda what, done, total: None)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_methods(scales: Scales, golden_bundle: Path, golden_recording: Recording, kind: str) -> None:
    histograms = collect(Bundle.open(golden_bundle), golden_recording, "predictor", "guided", threads=1)
    for method in METHODS:
        found = scales.arrange(LAYERS, kind, Arrangement(method, None))
        assert list(found) == list(LAYERS)
        for name, layer in found.items():
            assert layer.smooth == ()
            expected = choose_range(histograms[name], kind, method) / LARGEST[kind]
            assert layer.scale == pytest.approx(expected)


def test_smoothing(scales: Scales, golden_bundle: Path, golden_recording: Recording) -> None:
    """Of the layers that LayerNorm feeds, and of no others; ranges are of what is left after it."""
    bundle = Bundle.open(golden_bundle)
    histograms = collect(bundle, golden_recording, "predictor", "guided", threads=1)
    graph = find_graph(bundle.manifest, "predictor", "guided")
    nodes = linear_layers(load_graph(bundle.file(graph.file)))
    found = scales.arrange(LAYERS, "int8", Arrangement("maximum", 0.7))
    for name, layer in found.items():
        maxima = histograms[name].channel_maxima
        assert maxima is not None
        if not name.endswith(SMOOTHED):
            assert layer.smooth == ()
            assert layer.scale == pytest.approx(maxima.max() / 127)
            continue
        weight = nodes[name].inputs[1]
        assert weight is not None
        assert weight.const_value is not None
        expected = smoothing(histograms[name], weight.const_value.numpy(), 0.7)
        np.testing.assert_allclose(layer.smooth, expected, rtol=1e-5)
        assert layer.scale == pytest.approx((maxima / expected).max() / 127, rel=1e-5)


def test_words() -> None:
    assert str(Arrangement("error", None)) == "error, no smoothing"
    assert str(Arrangement("error", 0.5)) == "error, smoothing 0.5"
