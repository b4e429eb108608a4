"""Switched networks against graphs that were quantised for good."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import BundleError, FileRecord
from flowturbo_trt.bundle.store import Bundle, sha256
from flowturbo_trt.calibration.precision.activations import collect, find_graph
from flowturbo_trt.calibration.precision.emulation import SwitchedBackend, SwitchedNetwork
from flowturbo_trt.calibration.precision.ranges import choose_range
from flowturbo_trt.calibration.recording.float32 import float32_view
from flowturbo_trt.calibration.recording.trajectories import Recording
from flowturbo_trt.evaluation.metrics import relative_l2
from flowturbo_trt.export.onnx_graph import load_graph
from flowturbo_trt.export.quantization import LARGEST, QuantizedLinear, linear_layers, quantize
from flowturbo_trt.runtime.backend_onnxruntime import OnnxRuntimeBackend

Arrays = dict[str, NDArray[Any]]
ROWS = 3


@pytest.fixture(scope="module")
def view(golden_bundle: Path) -> Bundle:
    return float32_view(Bundle.open(golden_bundle))


@pytest.fixture(scope="module")
def layers(golden_bundle: Path, golden_recording: Recording) -> dict[str, QuantizedLinear]:
    """Scales of all layers but the last; one is smoothed."""
    histograms = collect(Bundle.open(golden_bundle), golden_recording, "predictor", "guided", threads=1)
    scales = {
        name: choose_range(histogram, "int8", "maximum") / LARGEST["int8"]
        for name, histogram in histograms.items()
        if name.startswith("blocks.")
    }
    found = {name: QuantizedLinear(scale) for name, scale in scales.items()}
    maxima = histograms["blocks.0.attn.qkv"].channel_maxima
    assert maxima is not None
    smooth = np.sqrt(maxima / maxima.mean())
    scale = float((maxima / smooth).max()) / LARGEST["int8"]
    return found | {"blocks.0.attn.qkv": QuantizedLinear(scale, tuple(map(float, smooth)))}


@pytest.fixture(scope="module")
def inputs(view: Bundle) -> Arrays:
    generator = np.random.default_rng(0)
    shapes = {t.name: t.shape[1:] for t in find_graph(view.manifest, "predictor", "guided").inputs}
    return {
        name: generator.standard_normal((ROWS, *map(int, shape))).astype(np.float32)
        for name, shape in shapes.items()
    }


def run_plainly(view: Bundle, layers: dict[str, QuantizedLinear], kind: str, inputs: Arrays) -> NDArray[Any]:
    """Quantise some layers in the graph itself, and run it without any optimisation."""
    model = load_graph(view.file(find_graph(view.manifest, "predictor", "guided").file))
    content = ir.serde.serialize_model(quantize(model, layers, kind)).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    output: NDArray[Any] = session.run(None, inputs)[0]
    return output


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_switches(view: Bundle, layers: dict[str, QuantizedLinear], inputs: Arrays, kind: str) -> None:
    """Any choice of layers gives what a graph gives with these quantised, and none what it gave before."""
    graph = find_graph(view.manifest, "predictor", "guided")
    network = SwitchedNetwork(view, graph, layers, kind, 1)
    plain = OnnxRuntimeBackend(view, 1).evaluate("predictor", "guided", inputs)
    assert relative_l2(network(inputs), plain) < 1e-6
    names = list(layers)
    outputs = [plain]
    for chosen in (names[:1], names[1:3], names):
        network.switch(chosen)
        found = network(inputs)
        expected = run_plainly(view, {name: layers[name] for name in chosen}, kind, inputs)
        # Rounding of float32 may lift a value over the edge between two numbers of 8 bits.
        assert relative_l2(found, expected) < 0.05 * relative_l2(expected, plain)
        assert all(relative_l2(found, other) > 1e-4 for other in outputs)
        outputs.append(found)
    network.switch(())
    assert relative_l2(network(inputs), plain) < 1e-6


def test_backend(view: Bundle, layers: dict[str, QuantizedLinear], inputs: Arrays) -> None:
    """Networks that are named are switched, all others are float32; conditioners are asked once."""
    backend = SwitchedBackend(view, {"predictor guided": layers}, "int8", 1)
    plain = OnnxRuntimeBackend(view, 1)
    backend.switch({"predictor guided": list(layers), "refiner guided": ["blocks.0.attn.qkv"]})
    found = backend.evaluate("predictor", "guided", inputs)
    assert relative_l2(found, plain.evaluate("predictor", "guided", inputs)) > 1e-4
    times: Arrays = {"time": np.array([0.25, 0.5], dtype=np.float32), "label": np.array([1, 2])}
    first = backend.evaluate("predictor_conditioner", None, times)
    np.testing.assert_array_equal(first, plain.evaluate("predictor_conditioner", None, times))
    assert backend.evaluate("predictor_conditioner", None, dict(times)) is first
    assert backend.evaluate("predictor_conditioner", None, {**times, "label": np.array([1, 3])}) is not first


def test_weights_beside_the_graph(
    view: Bundle, layers: dict[str, QuantizedLinear], inputs: Arrays, tmp_path: Path
) -> None:
    """As large networks have them."""
    graph = find_graph(view.manifest, "predictor", "guided")
    files = ("network.onnx", "network.onnx.data")
    ir.save(load_graph(view.file(graph.file)), tmp_path / files[0], external_data=files[1])
    records = {name: FileRecord((tmp_path / name).stat().st_size, sha256(tmp_path / name)) for name in files}
    beside = replace(graph, file=files[0], data=files[1:])
    bundle = Bundle(tmp_path, replace(view.manifest, graphs=(beside,), engines=(), files=records))
    outputs = []
    for place, described in ((view, graph), (bundle, beside)):
        network = SwitchedNetwork(place, described, layers, "int8", 1)
        network.switch(list(layers)[1:])
        outputs.append(network(inputs))
    np.testing.assert_array_equal(*outputs)
    (tmp_path / files[1]).write_bytes(b"0" * records[files[1]].bytes)
    with pytest.raises(BundleError, match=r"network.onnx.data: its content is not what was built"):
        SwitchedNetwork(Bundle(tmp_path, bundle.manifest), beside, layers, "int8", 1)


def test_the_graph_keeps_its_layers(view: Bundle, layers: dict[str, QuantizedLinear]) -> None:
    """What is switched is what a recipe names."""
    model = load_graph(view.file(find_graph(view.manifest, "predictor", "guided").file))
    assert set(layers) == {name for name in linear_layers(model) if name.startswith("blocks.")}
