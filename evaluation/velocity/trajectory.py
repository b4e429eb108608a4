"""Trajectories on a fine grid: what coarser methods are held against."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.sampling.steps import Field, pseudo_corrector

Array = NDArray[np.float32]


class DiagnosisError(FlowTurboError):
    """A diagnosis that cannot be made of what was asked for."""


@dataclass(frozen=True)
class FineTrajectory:
    """States (T,N,C,H,W) and the velocities (T,N,G,C,H,W) at them, at T uniform times from 0 to 1."""

    times: tuple[float, ...]
    states: Array
    velocities: Array

    @property
    def step(self) -> float:
        """The time between two of the states."""
        return 1 / (len(self.times) - 1)


def follow(field: Field, noise: Array, steps: int, tick: Callable[[], object]) -> FineTrajectory:
    """Follow a field from noise (N,C,H,W) by Heun's method in `steps` steps; `tick` is called for each state.

    Raises DiagnosisError where a velocity is not finite.
    """
    times = tuple(i / steps for i in range(steps + 1))
    states: list[Array] = []
    velocities: list[Array] = []
    x: Any = noise[:, None]
    v = _velocity(field, x, times[0])
    for t, s in pairwise(times):
        tick()
        states.append(x[:, 0])
        velocities.append(v)
        # Heun's step whose left velocity is known: its right one is that of the prediction.
        x, _ = pseudo_corrector(field, x, ((t, v),), t, s)
        v = _velocity(field, x, s)
    tick()
    return FineTrajectory(times, np.stack([*states, x[:, 0]]), np.stack([*velocities, v]))


def _velocity(field: Field, x: Any, t: float) -> Array:
    v: Array = field.predict(x, t)
    if not np.isfinite(v).all():
        raise DiagnosisError(
            f"the velocity at t = {t:g} is not finite; hold the bundle against its graphs (verify)"
        )
    return v
