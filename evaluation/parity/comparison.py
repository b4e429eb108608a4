"""Comparing arrays row by row: rows do not influence each other, so one bad row must not be averaged away."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.evaluation.metrics import cosine, psnr, row_errors
from flowturbo_trt.evaluation.parity.recording import Array, Call, Recording
from flowturbo_trt.evaluation.parity.results import CallError, ImageError

# A network's output is added to something: a refiner's offset to the velocity it refines, a velocity,
# times a step, to the state. An output below this part of that is measured against this part instead:
# an untrained refiner's offset is exactly zero, and what is left of a difference there drowns in the sum.
FLOOR = 1e-2


def amplification(guidance: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return by how much guidance of scale s (n) multiplies rounding: √(s² + (1 − s)²), 1 without guidance.

    u + s·(c − u) takes s times the rounding of c and 1 − s times that of u, which are independent. A fault,
    which c and u mostly share, is multiplied less: the rows of scale 1 then show it best.
    """
    s = guidance.astype(np.float64)
    factors: NDArray[np.float64] = np.sqrt(s**2 + (1 - s) ** 2)
    return factors


def windows(rows: int, batch: int, *, everything: bool) -> Iterator[slice]:
    """Yield slices of `batch` rows: all rows once (the last slice may overlap), or the first slice only."""
    starts = range(0, rows, batch) if everything else (0,)
    for start in starts:
        first = min(start, rows - batch)
        yield slice(first, first + batch)


def row_relative_l2(
    found: Array, expected: Array, floor: NDArray[np.float64] | float = 0.0
) -> NDArray[np.float64]:
    """Return ‖found − expected‖ / max(‖expected‖, floor) per row (N): NaN or ∞ where that is undefined."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        size = np.maximum(row_errors(expected, np.zeros_like(expected)), floor)
        error = row_errors(found, expected)
        relative: NDArray[np.float64] = np.where((error == 0) & (size == 0), 0.0, error / size)
    return relative


def compare_call(call: Call, found: Array, expected: Array, rows: slice, batch: int) -> list[CallError]:
    """Compare the rows of a call's output (n,G,C,H,W), each half of G by itself."""
    return [
        _compare_half(call, half, found[:, half], expected[:, half], rows, batch)
        for half in range(expected.shape[1])
    ]


def _compare_half(call: Call, half: int, found: Array, expected: Array, rows: slice, batch: int) -> CallError:
    floor = FLOOR * _size_of_target(call, half, rows)
    errors = row_relative_l2(found, expected, floor)
    # The direction of an output below the floor means nothing.
    counted = row_errors(expected, np.zeros_like(expected)) >= floor
    cosines = np.array([cosine(f, e) if c else 1.0 for f, e, c in zip(found, expected, counted, strict=True)])
    guidance = call.inputs.get("guidance", np.ones(rows.stop, dtype=np.float32))
    factors = amplification(guidance[rows])
    # argmax takes a NaN for the largest.
    worst = int(np.argmax(np.maximum(errors / factors, np.sqrt(np.abs(1 - cosines)) / factors)))
    return CallError(
        call.schedule,
        call.variant,
        call.index,
        call.t,
        half,
        batch,
        rows.start + worst,
        float(errors[worst]),
        float(cosines[worst]),
        float(factors[worst]),
    )


def _size_of_target(call: Call, half: int, rows: slice) -> NDArray[np.float64]:
    """Return the size, row by row, of what the output is added to; 0 for a conditioner's."""
    if "state" not in call.inputs:
        return np.zeros(rows.stop - rows.start)
    added_to = call.inputs["velocity"][:, half] if "velocity" in call.inputs else call.inputs["state"]
    return row_errors(added_to[rows], np.zeros_like(added_to[rows]))


def compare_images(
    recording: Recording,
    found: NDArray[np.uint8],
    expected: NDArray[np.uint8],
    rows: slice,
    batch: int,
) -> ImageError:
    """Compare images (n,H,W,3)."""
    ratios = [psnr(f, e) for f, e in zip(found, expected, strict=True)]
    worst = int(np.argmin(ratios))
    difference = int(np.abs(found.astype(np.int16) - expected).max())
    where = (recording.schedule, recording.variant, batch, rows.start + worst)
    return ImageError(*where, ratios[worst], difference)
