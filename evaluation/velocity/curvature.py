"""How much what a network predicts changes along a trajectory.

FlowTurbo (arXiv:2409.18128, Fig. 1) rests on velocities being steadier than predictions of noise or of data.
Here the curvature of a prediction u at time t is its relative change per unit of time,

    κ(t) = ‖u(t + h) − u(t)‖ / (h ‖u(t)‖),

h being the step of a fine trajectory. On the linear path x = t·x₁ + (1 − t)·x₀ a velocity tells the other two
predictions: the data x̂₁ = x + (1 − t)·v and the noise x̂₀ = x − t·v. All three are of one network and one
trajectory here, where the paper compares models; their derivatives are then v′, (1 − t)·v′ and −t·v′.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.evaluation.metrics import cosine
from flowturbo_trt.evaluation.parity.comparison import row_relative_l2
from flowturbo_trt.evaluation.velocity.trajectory import FineTrajectory

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Curvature:
    """Per time and image, of conditional velocities.

    `velocity`, `noise` and `data` (T−1,N) are the relative changes per unit of time of the three
    predictions, `cosine` (T−1,N) that between a velocity and the next. `straightness` (T,N) is
    ‖(x₁ − x₀) − v‖² / ‖x₁ − x₀‖²: 0 throughout where the trajectory is a straight line (that of Liu et
    al., 2022, arXiv:2209.03003, relative to its length).
    """

    velocity: Values
    noise: Values
    data: Values
    cosine: Values
    straightness: Values

    @property
    def mean_straightness(self) -> float:
        """Straightness over all times, by the trapezoidal rule, and images: 0 is a straight line."""
        return float(((self.straightness[1:] + self.straightness[:-1]) / 2).mean())


def curvature(trajectory: FineTrajectory) -> Curvature:
    """Measure a trajectory's curvature and straightness."""
    x, v = trajectory.states, trajectory.velocities[:, :, 0]
    t = np.asarray(trajectory.times, dtype=np.float32).reshape(-1, 1, 1, 1, 1)
    chord = x[-1] - x[0]
    return Curvature(
        velocity=_relative_change(v, trajectory.step),
        noise=_relative_change(x - t * v, trajectory.step),
        data=_relative_change(x + (1 - t) * v, trajectory.step),
        cosine=np.stack([list(map(cosine, after, now)) for now, after in pairwise(v)]),
        straightness=np.stack([row_relative_l2(now, chord) ** 2 for now in v]),
    )


def _relative_change(u: NDArray[np.float32], h: float) -> Values:
    """Return ‖u(t+h) − u(t)‖ / (h ‖u(t)‖) for a prediction u (T,N,C,H,W): (T−1,N)."""
    return np.stack([row_relative_l2(after, now) / h for now, after in pairwise(u)])
