"""Solver tables: a linear multistep method with coefficients and a grid of its own, as data.

    v_i     = velocity at (x_i, t_i)
    x_{i+1} = x_i + w_i0·v_0 + w_i1·v_1 + … + w_ii·v_i

Adams–Bashforth methods are such tables, and so is whatever calibration finds for a model
(calibration/solver_table.py).
"""

import math
import re
from dataclasses import dataclass
from itertools import pairwise

from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.sampling.steps import Step, linear_multistep

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class TableError(FlowTurboError):
    """A table that contradicts itself."""


@dataclass(frozen=True)
class SolverTable:
    """A method of N steps over N + 1 `times`: row i of `weights` has i + 1, of the oldest velocity first.

    The velocities of the last `refined` steps are the refiner's, each of the one before it; all others
    are the predictor's.
    """

    name: str
    times: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    refined: int = 0

    def __post_init__(self) -> None:
        if _NAME.fullmatch(self.name) is None:
            raise TableError(f"table {self.name!r}: expected a name of letters, digits, dots, dashes and _")
        N = len(self.weights)
        if [len(row) for row in self.weights] != list(range(1, N + 1)) or N == 0:
            raise TableError(f"table {self.name}: row i has i + 1 weights, expected at least one row")
        if not all(math.isfinite(weight) for row in self.weights for weight in row):
            raise TableError(f"table {self.name}: has weights that are not finite")
        if len(self.times) != N + 1:
            raise TableError(f"table {self.name}: has {N} steps and {len(self.times)} times")
        if not (self.times[0] >= 0 and self.times[-1] <= 1 and all(t < s for t, s in pairwise(self.times))):
            raise TableError(f"table {self.name}: times must increase within 0 to 1")
        if not 0 <= self.refined < N:
            raise TableError(
                f"table {self.name}: {self.refined} of {N} steps are refined, expected fewer than all"
            )

    @property
    def formulas(self) -> tuple[Step, ...]:
        """The formula of every step."""
        first = len(self.weights) - self.refined
        return tuple(linear_multistep(row, refines=i >= first) for i, row in enumerate(self.weights))
