"""The weights of 8-bit engines' ONNX files, held against those that were rounded."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from flowturbo_trt.export.quantization import KINDS, SCALE, SMOOTHING, WEIGHT


@dataclass(frozen=True)
class QuantizedWeight:
    """8-bit steps (in,out) of scales (out), whose input channels were multiplied by smooth (in)."""

    kind: str
    steps: NDArray[Any]
    scales: NDArray[np.float32]
    smooth: NDArray[np.float32]

    def unexplained(self, weight: NDArray[np.float32]) -> float:
        """Return the share of the weights that rounding the float32 ones (in,out) does not explain."""
        with np.errstate(divide="ignore", invalid="ignore"):
            exact = weight * self.smooth[:, None] / self.scales
        allowed = np.full(exact.shape, 0.5, dtype=np.float32)
        if self.kind == "fp8":
            # Three bits behind the leading one; numbers below 2⁻⁶ are multiples of 2⁻⁹.
            allowed = np.maximum(2.0**-4 * np.abs(exact), 2.0**-10)
        # Where float32 lies between two steps is known to a few millionths of the largest.
        explained = np.abs(self.steps.astype(np.float32) - exact) <= allowed + 1e-3
        return float(1 - explained.mean())


def quantized_weights(graph: ir.Graph) -> dict[str, QuantizedWeight]:
    """Return the weights that export/quantization.py wrote, by the names they had in float32."""
    found = {}
    for kind, dtype in KINDS.items():
        ending = f"{WEIGHT}_{dtype.name.lower()}"
        for held in [name for name in graph.initializers if name.endswith(ending)]:
            base = held.removesuffix(ending)
            steps = _array(graph.initializers, held)
            scales = _array(graph.initializers, f"{base}{WEIGHT}{SCALE}")
            divisors = f"{base}{SMOOTHING}"
            smooth: NDArray[np.float32] = np.ones(len(steps), np.float32)
            if divisors in graph.initializers:
                smooth = np.reciprocal(_array(graph.initializers, divisors))
            found[f"{base}{WEIGHT}"] = QuantizedWeight(kind, steps, scales, smooth)
    return found


def _array(initializers: Mapping[str, ir.Value], name: str) -> NDArray[Any]:
    """Return an initializer; raises ValueError where there is none."""
    value = initializers.get(name)
    if value is None or value.const_value is None:
        raise ValueError(f"{name} is missing")
    return value.const_value.numpy()
