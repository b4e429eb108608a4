"""Noise defined down to the bit, so that a seed gives the same image in every batch and language.

bundle/FORMAT.md holds the normative text: Philox4x64-10, 53-bit uniforms, Box–Muller in float64.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.sampling.errors import FlowTurboError

MAX_SEED = 2**64 - 1


class SeedError(FlowTurboError):
    """A seed that the noise is not defined for."""


def standard_normal(seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return standard normal values of the given shape for a seed in 0 … 2⁶⁴−1, else raise SeedError."""
    if not 0 <= seed <= MAX_SEED:
        raise SeedError(f"seed {seed} is not from 0 to 2^64 - 1")
    count = int(np.prod(shape))
    # key= uses the seed as it is; Philox(seed) would hash it first, which no other language does.
    raw = np.random.Philox(key=seed).random_raw(2 * ((count + 1) // 2)).reshape(-1, 2) >> np.uint64(11)
    # The radius' uniform is in (0, 1], so that its logarithm is finite.
    radius = np.sqrt(-2.0 * np.log((raw[:, 0] + 1.0) * 2.0**-53))
    angle = 2.0 * np.pi * (raw[:, 1] * 2.0**-53)
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return pairs.ravel()[:count].reshape(shape).astype(np.float32)


def fill_noise(out: NDArray[np.float32], seeds: Sequence[int]) -> None:
    """Fill row i of `out` (B, …) with the noise of seeds[i]."""
    for row, seed in zip(out, seeds, strict=True):
        row[...] = standard_normal(seed, row.shape)
