"""How layers may be quantised: the ways to choose ranges and to smooth, and the scales each of them gives."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.endpoints import Progress
from flowturbo_trt.calibration.precision.activations import collect, find_graph
from flowturbo_trt.calibration.precision.histograms import Histogram
from flowturbo_trt.calibration.precision.ranges import choose_range
from flowturbo_trt.calibration.precision.smoothing import smoothing
from flowturbo_trt.calibration.recording.trajectories import Recording
from flowturbo_trt.export.onnx_graph import load_graph
from flowturbo_trt.export.quantization import LARGEST, QuantizedLinear, linear_layers

Array = NDArray[np.float32]
# They read what LayerNorm and modulation leave, where some channels are far larger than others.
SMOOTHED = ("attn.qkv", "mlp.fc1")


@dataclass(frozen=True)
class Arrangement:
    """A way to choose scales: a method of ranges.METHODS, and the strength of smoothing, None without."""

    method: str
    smoothing: float | None

    def __str__(self) -> str:
        smoothing = "no smoothing" if self.smoothing is None else f"smoothing {self.smoothing:g}"
        return f"{self.method}, {smoothing}"


class Scales:
    """The scales of a network's layers, from one look at a recording, and one more for each smoothing."""

    def __init__(
        self,
        view: Bundle,
        recording: Recording,
        network: tuple[str, str],
        threads: int,
        progress: Progress,
    ) -> None:
        self._view = view
        self._recording = recording
        self._network = network
        self._progress = progress
        self._threads = threads
        self._histograms = self._collect()
        self._smoothed: dict[float, tuple[Mapping[str, Array], Mapping[str, Histogram]]] = {}

    def arrange(
        self, layers: Mapping[str, object], kind: str, arrangement: Arrangement
    ) -> dict[str, QuantizedLinear]:
        """Return how some layers are quantised under an arrangement; raises CalibrationError."""
        strength = arrangement.smoothing
        smooth, smoothed = ({}, {}) if strength is None else self._smooth(strength)
        found = {}
        for layer in layers:
            histogram = smoothed.get(layer, self._histograms[layer])
            scale = choose_range(histogram, kind, arrangement.method) / LARGEST[kind]
            divisors = tuple(map(float, smooth[layer])) if layer in smooth else ()
            found[layer] = QuantizedLinear(scale, divisors)
        return found

    def _smooth(self, strength: float) -> tuple[Mapping[str, Array], Mapping[str, Histogram]]:
        if strength not in self._smoothed:
            smooth = {
                layer: smoothing(self._histograms[layer], weight, strength)
                for layer, weight in self._weights().items()
            }
            self._smoothed[strength] = (smooth, self._collect(smooth))
        return self._smoothed[strength]

    def _collect(self, smooth: Mapping[str, Array] | None = None) -> Mapping[str, Histogram]:
        return collect(
            self._view,
            self._recording,
            *self._network,
            smooth=smooth,
            threads=self._threads,
            progress=self._progress,
        )

    def _weights(self) -> dict[str, Array]:
        """Return the weights (in,out) of the layers that are smoothed."""
        graph = find_graph(self._view.manifest, *self._network)
        nodes = linear_layers(load_graph(self._view.file(graph.file)))
        found = {}
        for layer, node in nodes.items():
            weight = node.inputs[1]
            if layer.endswith(SMOOTHED) and weight is not None and weight.const_value is not None:
                found[layer] = weight.const_value.numpy()
        return found
