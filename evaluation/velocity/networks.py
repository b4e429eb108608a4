"""A bundle's engines as a field of velocities, called wherever a question leads."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import Manifest, conditioner_of
from flowturbo_trt.runtime.backend import Backend
from flowturbo_trt.runtime.conditioning import null_values
from flowturbo_trt.runtime.request import Request

Array = NDArray[np.float32]
Arrays = Mapping[str, NDArray[Any]]


class EngineField:
    """The engines of one variant on the rows of a request (sampling.steps.Field).

    States are (B,1 or G,C,H,W), of which the conditional half counts; velocities and offsets are
    (B,G,C,H,W). The rows are a batch that the engines were built for; `name` is the backend's.
    """

    def __init__(
        self, backend: Backend, manifest: Manifest, name: str, variant: str, request: Request
    ) -> None:
        self._backend = backend
        self._manifest = manifest
        self._name = name
        self._variant = variant
        self._request = request
        # Of the last time only: in a large model the modulations of many times take gigabytes.
        self._modulations: dict[str, tuple[float, Arrays]] = {}

    def predict(self, x: Array, t: float) -> Array:
        return self._evaluate("predictor", t, {"state": x[:, 0]})

    def refine(self, x: Array, v: Array, t: float) -> Array:
        return self._evaluate("refiner", t, {"state": x[:, 0], "velocity": v})

    def _evaluate(self, network: str, t: float, arrays: Arrays) -> Array:
        inputs: dict[str, NDArray[Any]] = dict(arrays)
        if self._variant == "guided":
            inputs["guidance"] = self._request.guidance
        if self._manifest.engine(network, self._variant, self._name).is_hoisted:
            if network not in self._modulations or self._modulations[network][0] != t:
                self._modulations[network] = (t, self._condition(network, t))
            inputs |= self._modulations[network][1]
        else:
            inputs |= {"time": self._times(t, len(self._request)), **self._request.conditions}
        output: Array = self._backend.evaluate(network, self._variant, inputs)
        return output

    def _condition(self, network: str, t: float) -> Arrays:
        """Call a network's conditioner on all rows, and for guidance on those of the null condition too."""
        rows = len(self._request)
        values = dict(self._request.conditions)
        if self._variant == "guided":
            null = null_values(self._manifest.model.conditions)
            values = {name: np.concatenate([v, np.full_like(v, null[name])]) for name, v in values.items()}
        count = len(next(iter(values.values())))
        conditioner = conditioner_of(network)
        built = max(self._manifest.engine(conditioner, None, self._name).batches)
        padded = -(-count // built) * built
        inputs: dict[str, NDArray[Any]] = {
            "time": self._times(t, padded),
            **{name: np.resize(value, padded) for name, value in values.items()},
        }
        parts = [
            self._backend.evaluate(
                conditioner, None, {n: array[start : start + built] for n, array in inputs.items()}
            )
            for start in range(0, padded, built)
        ]
        modulation = np.concatenate(parts)
        if self._variant != "guided":
            return {"modulation": modulation[:rows]}
        return {"modulation": modulation[:rows], "null_modulation": modulation[rows:count]}

    @staticmethod
    def _times(t: float, rows: int) -> NDArray[np.float32]:
        return np.full(rows, t, dtype=np.float32)
