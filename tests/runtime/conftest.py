"""The engines of a bundle as the field of networks that the reference sampler runs on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend_onnxruntime import OnnxRuntimeBackend

Array = NDArray[np.float32]


class EngineField:
    """ONNX Runtime engines on arrays of their own, allocated anew for every call."""

    def __init__(self, path: Path, variant: str, labels: Any, guidance: Any) -> None:
        bundle = Bundle.open(path)
        self.backend = OnnxRuntimeBackend(bundle, "cpu", 1)
        self.variant = variant
        self.halves = bundle.manifest.model.guidance.halves if variant == "guided" else 1
        self.inputs: dict[str, NDArray[Any]] = {"label": np.asarray(labels, dtype=np.int64)}
        if variant == "guided":
            self.inputs["guidance"] = np.asarray(guidance, dtype=np.float32)

    def predict(self, x: Array, t: float) -> Array:
        return self.evaluate("predictor", "velocity", t, state=x)

    def refine(self, x: Array, v: Array, t: float) -> Array:
        return self.evaluate("refiner", "offset", t, state=x, velocity=v)

    def evaluate(self, network: str, output: str, t: float, **arrays: Array) -> Array:
        B, *latent = arrays["state"].shape
        out = np.zeros((B, self.halves, *latent), dtype=np.float32)
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        inputs = {**self.inputs, **arrays, "time": np.full(B, t, dtype=np.float32)}
        self.backend.engine(network, self.variant).bind(inputs, {output: out})()
        return out

    def decode(self, state: Array) -> NDArray[np.uint8]:
        model = self.backend._bundle.manifest.model
        assert model.image is not None
        image = np.zeros((len(state), *model.image, 3), dtype=np.uint8)
        self.backend.engine("decoder", None).bind({"state": np.ascontiguousarray(state)}, {"image": image})()
        return image


@pytest.fixture(scope="session")
def engines() -> Callable[[Path, str, Any, Any], EngineField]:
    """Give a function (bundle, variant, labels, guidance) that makes a field."""
    return EngineField
