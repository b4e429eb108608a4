"""The engines of a bundle as the field of networks that the reference sampler runs on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import conditioner_of
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend_onnxruntime import NAME, OnnxRuntimeBackend
from flowturbo_trt.runtime.conditioning import null_values
from flowturbo_trt.sampling.program import VARIANTS, Program
from flowturbo_trt.sampling.steps import Field

Array = NDArray[np.float32]
Arrays = Mapping[str, NDArray[Any]]


class EngineField:
    """ONNX Runtime engines of one variant on arrays of their own, allocated anew for every call.

    Modulations are computed as for a run of `program`, for all its times together: a call with other
    rows rounds differently.
    """

    def __init__(self, path: Path, program: Program, variant: str, labels: Any, guidance: Any) -> None:
        bundle = Bundle.open(path)
        self.backend = OnnxRuntimeBackend(bundle, 1)
        self.manifest = bundle.manifest
        self.program = program
        self.variant = variant
        self.labels = np.asarray(labels, dtype=np.int64)
        self.guidance = np.asarray(guidance, dtype=np.float32)
        self.modulations: dict[tuple[str, float], Arrays] = {}

    def predict(self, x: Array, t: float) -> Array:
        return self.evaluate("predictor", t, state=x)

    def refine(self, x: Array, v: Array, t: float) -> Array:
        return self.evaluate("refiner", t, state=x, velocity=v)

    def evaluate(self, network: str, t: float, **arrays: Array) -> Array:
        inputs: dict[str, NDArray[Any]] = dict(arrays)
        if self.variant == "guided":
            inputs["guidance"] = self.guidance
        if self.manifest.engine(network, self.variant, NAME).is_hoisted:
            if (network, t) not in self.modulations:
                self.condition(network)
            inputs |= self.modulations[network, t]
        else:
            inputs |= {"time": np.full(len(self.labels), t, dtype=np.float32), "label": self.labels}
        return self.backend.evaluate(network, self.variant, inputs)

    def condition(self, network: str) -> None:
        times = tuple(dict.fromkeys(self.program.times(network)))
        labels = {"modulation": self.labels}
        if self.variant == "guided":
            labels["null_modulation"] = np.full_like(
                self.labels, null_values(self.manifest.model.conditions)["label"]
            )
        made = {
            name: self.backend.evaluate(
                conditioner_of(network),
                None,
                {
                    "time": np.repeat(np.asarray(times, dtype=np.float32), len(self.labels)),
                    "label": np.tile(label, len(times)),
                },
            )
            for name, label in labels.items()
        }
        for slot, t in enumerate(times):
            rows = slice(slot * len(self.labels), (slot + 1) * len(self.labels))
            self.modulations[network, t] = {name: array[rows] for name, array in made.items()}

    def decode(self, state: Array) -> NDArray[np.uint8]:
        return self.backend.evaluate("decoder", None, {"state": state})


def engine_fields(path: Path, program: Program, labels: Any, guidance: Any) -> dict[str, Field]:
    """Return a bundle's engines as fields by variant, for a program."""
    return {variant: EngineField(path, program, variant, labels, guidance) for variant in VARIANTS}


def decode(path: Path, state: Array) -> NDArray[np.uint8]:
    """Return a bundle's images of latents."""
    return OnnxRuntimeBackend(Bundle.open(path), 1).evaluate("decoder", None, {"state": state})
