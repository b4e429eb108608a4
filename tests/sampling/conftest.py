"""A field with both guidance halves in float32, and schedules of every kind of step to run on it."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.steps import REFINER_READINGS, STEPS

Array = NDArray[np.float32]
HALVES = {"guided": 2, "unguided": 1}
GROUPS = {kind: f"{kind}x" if len(kind) > 1 else kind for kind in (*STEPS, "R")}


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


@pytest.fixture(scope="session")
def field_of() -> Callable[[str], HalvesField]:
    return HalvesField


@pytest.fixture
def noise() -> Array:
    return np.random.default_rng(5).standard_normal((3, 4, 2, 5)).astype(np.float32)


@pytest.fixture(scope="session")
def schedules() -> list[Schedule]:
    """Every step kind and reading alone, the usual mixtures, and forty random ones on random grids."""
    texts = [f"{GROUPS[kind]}{n}" for kind in STEPS for n in (1, 3, 6)]
    texts += [f"H1P2R3:{reading}" for reading in REFINER_READINGS]
    texts += [f"E1R2AB3x3R1:{reading}" for reading in REFINER_READINGS]
    texts += ["H1P5R3", "H8P9R5", "H1R1P2R1", "AB4x16", "H1P2R1@0,0.1,0.3,0.75,1", "E2@0.25,0.5,0.9"]
    random = np.random.default_rng(11)
    return [Schedule.parse(text) for text in texts] + [_random_schedule(random) for _ in range(40)]


def _random_schedule(random: np.random.Generator) -> Schedule:
    kinds = [str(random.choice(list(STEPS)))]
    kinds += [str(kind) for kind in random.choice([*STEPS, "R", "R"], size=random.integers(0, 8))]
    times = tuple(sorted(random.random(len(kinds) + 1).tolist()))
    return Schedule(tuple((kind, 1) for kind in kinds), times, str(random.choice(list(REFINER_READINGS))))
