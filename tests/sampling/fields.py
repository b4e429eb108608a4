"""Fields of velocities with guidance halves, in place of networks."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
HALVES = {"guided": 2, "unguided": 1}


class HalvesField:
    """Velocities (B,G,C,H,W) whose halves differ, from states (B,C,H,W) or doubled states (B,1 or 2,C,H,W).

    Only +, −, × and ÷ are used: they round the same whatever the memory layout, so that results can be
    compared bit for bit.
    """

    def __init__(self, variant: str) -> None:
        self.halves = HALVES[variant]

    def predict(self, x: Array, t: float) -> Array:
        x = x[:, 0] if x.ndim == 5 else x
        mixed = x - 0.5 * np.roll(x, 1, axis=-1)
        halves = [mixed / (1 + mixed * mixed) + t * x, (0.3 - t) * x + 0.2 * mixed]
        return np.stack(halves[: self.halves], axis=1)

    def refine(self, x: Array, v: Array, t: float) -> Array:
        assert v.shape[1] == self.halves
        mixed = 0.7 * v + 0.3 * v[:, ::-1]
        return (0.1 + t) * mixed / (1 + mixed * mixed) - 0.2 * self.predict(x, t)


class DampedField(HalvesField):
    """A field that tells its variants apart: without guidance it is slower."""

    def predict(self, x: Array, t: float) -> Array:
        v = super().predict(x, t)
        damped: Array = v if self.halves == 2 else np.float32(0.8) * v
        return damped
