"""Histograms of what linear layers read, against torch's own layers on the recorded calls."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import BundleError, FileRecord
from flowturbo_trt.bundle.store import Bundle, sha256
from flowturbo_trt.calibration.endpoints import CalibrationError
from flowturbo_trt.calibration.precision.activations import collect, find_graph
from flowturbo_trt.calibration.precision.histograms import Histogram
from flowturbo_trt.calibration.recording.trajectories import Recording, record
from flowturbo_trt.evaluation.parity.recording import NoReferenceError
from flowturbo_trt.evaluation.torch_weights import rebuild_whole
from flowturbo_trt.export import onnx_graph

pytestmark = pytest.mark.usefixtures("one_thread")

Array = NDArray[np.float32]
BLOCK_LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


@pytest.fixture(scope="module")
def tiny(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def read_in_torch(bundle: Bundle, recording: Recording, network: str, variant: str) -> dict[str, list[Array]]:
    """Return what each linear layer of a network reads in all recorded calls."""
    module = rebuild_whole(bundle, network, variant)
    read: dict[str, list[Array]] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, torch.nn.Linear):
            own = read.setdefault(name.removeprefix("network."), [])
            layer.register_forward_hook(lambda _, inputs, __, own=own: own.append(inputs[0].numpy()))
    for rows in recording.read(bundle.manifest):
        for call in rows.calls:
            if (call.site.network, call.site.variant) == (network, variant):
                given: dict[str, Any] = {
                    "state": call.state,
                    "time": np.full(len(call.state), call.site.t, dtype=np.float32),
                    **rows.request.conditions,
                }
                if variant == "guided":
                    given["guidance"] = rows.request.guidance
                if call.velocity is not None:
                    given["velocity"] = call.velocity
                with torch.inference_mode():
                    module(**{n: torch.tensor(array) for n, array in given.items()})
    return read


def check(found: Mapping[str, Histogram], read: Mapping[str, list[Array]]) -> None:
    """Hold histograms against the values themselves."""
    for layer, histogram in found.items():
        values = np.concatenate([array.reshape(-1, array.shape[-1]) for array in read[layer]])
        assert histogram.total == values.size
        assert histogram.channel_maxima is not None
        np.testing.assert_allclose(
            histogram.channel_maxima, np.abs(values).max(axis=0), rtol=1e-4, atol=1e-5 * histogram.limit
        )
        for share in (0.1, 0.5, 0.9, 0.99):
            exact = np.quantile(np.abs(values), share, method="inverted_cdf")
            assert abs(histogram.quantile(share) - exact) < 3e-4 * histogram.limit


def assert_equal(found: Mapping[str, Histogram], expected: Mapping[str, Histogram]) -> None:
    assert list(found) == list(expected)
    for layer, histogram in found.items():
        assert histogram.limit == expected[layer].limit
        np.testing.assert_array_equal(histogram.counts, expected[layer].counts)
        np.testing.assert_array_equal(histogram.channel_maxima, expected[layer].channel_maxima)


@pytest.mark.parametrize(
    ("network", "variant", "blocks"),
    [("predictor", "guided", 3), ("predictor", "unguided", 3), ("refiner", "guided", 1)],
)
def test_layers_of_hoisted_networks(
    golden_bundle: Path, golden_recording: Recording, network: str, variant: str, blocks: int
) -> None:
    """Two halves, three guided channels; a schedule that is guided at some times only."""
    bundle = Bundle.open(golden_bundle)
    found = collect(bundle, golden_recording, network, variant, threads=1)
    expected = {f"blocks.{block}.{layer}" for block in range(blocks) for layer in BLOCK_LAYERS}
    assert expected <= set(found)
    assert not any("adaLN" in layer or "embedder" in layer for layer in found)
    check(found, read_in_torch(bundle, golden_recording, network, variant))


def test_layers_of_fused_networks(golden_fused_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(golden_fused_bundle)
    recording = record(bundle, ("H1R1",), tmp_path, rows=3, threads=1)
    for network in ("predictor", "refiner"):
        found = collect(bundle, recording, network, "guided", threads=1)
        assert {f"blocks.0.{layer}" for layer in BLOCK_LAYERS} <= set(found)
        check(found, read_in_torch(bundle, recording, network, "guided"))


def test_layers_of_networks_with_one_half(tiny: Bundle, tiny_recording: Recording) -> None:
    for network in ("predictor", "refiner"):
        found = collect(tiny, tiny_recording, network, "guided", threads=1)
        check(found, read_in_torch(tiny, tiny_recording, network, "guided"))


@pytest.mark.parametrize("network", ["predictor", "refiner"])
def test_groups_and_rows_do_not_matter(tiny: Bundle, tiny_recording: Recording, network: str) -> None:
    """However little may be put out at a time; a byte is one layer of one row."""
    whole = collect(tiny, tiny_recording, network, "guided", threads=1)
    per_row = {layer: histogram.total * 4 for layer, histogram in whole.items()}
    for output_bytes in (1, max(per_row.values()), sum(per_row.values())):
        told: list[tuple[int, int]] = []

        def progress(what: str, done: int, total: int, told: list[tuple[int, int]] = told) -> None:
            told.append((done, total))

        found = collect(
            tiny,
            tiny_recording,
            network,
            "guided",
            threads=1,
            output_bytes=output_bytes,
            progress=progress,
        )
        assert_equal(found, whole)
        assert told[-1][0] == told[-1][1]
        assert told == sorted(told)


def test_runs_stay_within_what_may_be_put_out(
    tiny: Bundle, tiny_recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All layers together for as many rows as fit, or a group of them for one."""
    sizes: list[list[int]] = []
    add = Histogram.add

    def adding(histogram: Histogram, values: Array) -> None:
        sizes[-1].append(values.nbytes)
        add(histogram, values)

    def begin_call(what: str, done: int, total: int) -> None:
        sizes.append([])

    monkeypatch.setattr(Histogram, "add", adding)

    def runs(output_bytes: int) -> list[list[int]]:
        sizes[:] = [[]]
        collect(tiny, tiny_recording, "predictor", "guided", output_bytes=output_bytes, progress=begin_call)
        return sizes[:-1]

    # 3 calls each of 3 rows and of the one that is left.
    unbounded = runs(2**40)
    assert len(unbounded) == 6
    row = sum(unbounded[-1])
    assert sum(unbounded[0]) == 3 * row
    assert {sum(run) for run in runs(2 * row)} == {row, 2 * row}
    in_groups = runs(row - 1)
    assert max(map(sum, in_groups)) < row
    assert len(in_groups) == 2 * 4 * 3


def with_weights_beside(folder: Path) -> Bundle:
    """Open a bundle whose predictor's graph has its weights in a file of their own."""
    bundle = Bundle.open(folder)
    graph = find_graph(bundle.manifest, "predictor", "guided")
    written = onnx_graph.save_graph(
        onnx_graph.load_graph(bundle.file(graph.file)), folder / "onnx/beside.onnx"
    )
    records = {
        file.relative_to(folder).as_posix(): FileRecord(file.stat().st_size, sha256(file)) for file in written
    }
    name, *data = records
    graphs = tuple(
        replace(g, file=name, data=tuple(data)) if g is graph else g for g in bundle.manifest.graphs
    )
    return Bundle(folder, replace(bundle.manifest, graphs=graphs, files=bundle.manifest.files | records))


def test_weights_beside_the_graph(
    tiny: Bundle, tiny_copy: Path, tiny_recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graph, "EXTERNAL_DATA_BYTES", 0)
    bundle = with_weights_beside(tiny_copy)
    found = collect(bundle, tiny_recording, "predictor", "guided", threads=1)
    assert_equal(found, collect(tiny, tiny_recording, "predictor", "guided", threads=1))
    (data,) = find_graph(bundle.manifest, "predictor", "guided").data
    content = bytearray((tiny_copy / data).read_bytes())
    content[-1] ^= 1
    (tiny_copy / data).write_bytes(content)
    with pytest.raises(BundleError, match="is not what was built"):
        collect(bundle, tiny_recording, "predictor", "guided")


def test_smoothed_layers(tiny: Bundle, tiny_recording: Recording) -> None:
    """What they read is divided channel by channel, and the other layers are left out."""
    plain = collect(tiny, tiny_recording, "predictor", "guided", threads=1)
    layer = "blocks.0.mlp.fc1"
    divisors = np.linspace(0.5, 4, 16, dtype=np.float32)
    found = collect(tiny, tiny_recording, "predictor", "guided", smooth={layer: divisors}, threads=1)
    assert list(found) == [layer]
    maxima = plain[layer].channel_maxima
    assert maxima is not None
    np.testing.assert_array_equal(found[layer].channel_maxima, maxima / divisors)
    read = read_in_torch(tiny, tiny_recording, "predictor", "guided")[layer]
    check(found, {layer: [array / divisors for array in read]})


def test_recording_without_the_network(tiny: Bundle, tmp_path: Path) -> None:
    recording = record(tiny, ("H1",), tmp_path, rows=1, threads=1)
    message = "has no calls of the guided refiner; record a schedule that calls it"
    with pytest.raises(CalibrationError, match=message):
        collect(tiny, recording, "refiner", "guided")


def test_bundle_without_the_graph(tiny: Bundle, tiny_recording: Recording) -> None:
    with pytest.raises(BundleError, match="no float32 graph of the unguided predictor; build it with one"):
        collect(tiny, tiny_recording, "predictor", "unguided")
    stripped = Bundle(tiny.path, replace(tiny.manifest, graphs=()))
    with pytest.raises(NoReferenceError, match="stripped bundle"):
        collect(stripped, tiny_recording, "predictor", "guided")


def test_activations_that_are_not_finite(broken_bundle: Bundle, tiny_recording: Recording) -> None:
    message = r"what blocks.0.mlp.fc1 of the predictor guided reads: holds values that are not finite"
    with pytest.raises(CalibrationError, match=message):
        collect(broken_bundle, tiny_recording.of(broken_bundle.manifest), "predictor", "guided")
