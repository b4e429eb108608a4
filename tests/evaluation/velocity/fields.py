"""Fields whose velocities and trajectories are known in closed form, in place of networks."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Rate = Callable[[Array, float], Any]


class KnownField:
    """A field whose velocity is `rate(x, t)`, without a refiner."""

    def __init__(self, rate: Rate) -> None:
        self.rate = rate

    def predict(self, x: Array, t: float) -> Array:
        velocity: Array = np.broadcast_to(self.rate(x, t), x.shape).astype(np.float32)
        return velocity

    def refine(self, x: Array, v: Array, t: float) -> Array:
        raise AssertionError("there is no refiner")


class RefinedField(KnownField):
    """As a KnownField; its refiner's offset is `offset(x, v, t)`."""

    def __init__(self, rate: Rate, offset: Callable[[Array, Array, float], Array]) -> None:
        super().__init__(rate)
        self.offset = offset

    def refine(self, x: Array, v: Array, t: float) -> Array:
        return self.offset(x, v, t)


def noise(images: int = 3) -> Array:
    """Return (N,2,3,3)."""
    return np.random.default_rng(0).standard_normal((images, 2, 3, 3), dtype=np.float32)


def nothing() -> None:
    """Count no progress."""
