"""SmoothQuant's scales (Xiao et al., arXiv:2211.10438): what input channels are divided by.

Row j of the weights is multiplied by what channel j is divided by, so that the product stays what it is,
while channels that are much larger than all others no longer take the range for themselves.
"""

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.calibration.endpoints import CalibrationError
from flowturbo_trt.calibration.precision.histograms import Histogram

Array = NDArray[np.float32]
STRENGTH = 0.5
# A channel that is (almost) always zero, or (almost) not read, counts as this part of the largest one.
FLOOR = 1e-5


def smoothing(histogram: Histogram, weight: Array, strength: float = STRENGTH) -> Array:
    """Return s (in) for a layer with weights (in,out): s_j = max|x_j|^a / max|w_j|^(1−a), a the strength.

    Ones where all activations or all weights are zero. Raises CalibrationError.
    """
    if not 0 <= strength <= 1:
        raise CalibrationError(f"smoothing of strength {strength:g}, expected 0 to 1")
    if histogram.channel_maxima is None:
        raise CalibrationError("there are no values to smooth by; record at least one row")
    x = histogram.channel_maxima.astype(np.float64)
    w = np.abs(weight).max(axis=1).astype(np.float64)
    if x.shape != w.shape:
        raise CalibrationError(f"activations have {len(x)} channels, the layer's weights take {len(w)}")
    if x.max() == 0 or w.max() == 0:
        return np.ones(len(x), dtype=np.float32)
    x, w = np.maximum(x, FLOOR * x.max()), np.maximum(w, FLOOR * w.max())
    scales: Array = (x**strength / w ** (1 - strength)).astype(np.float32)
    return scales
