"""A field with both guidance halves in float32, and schedules of every kind of step to run on it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.steps import REFINER_READINGS, STEPS, Field, Passed, Step

Array = NDArray[np.float32]
HALVES = {"guided": 2, "unguided": 1}
GROUPS = {kind: f"{kind}x" if len(kind) > 1 else kind for kind in (*STEPS, "R")}


def inner_sums(field: Field, x: Any, passed: Passed, t: float, s: float) -> tuple[Any, Passed]:
    """Add sums that are rounded before they are scaled or added."""
    h = s - t
    d0 = field.predict(x, t)
    d1 = field.predict(x + h * (d0 + 0.5 * d0), s)
    return x + (h / 3 * d0 + h / 3 * d1 + h / 3 * (d1 + d0)), ((s, 0.5 * d1),)


def repeated_terms(field: Field, x: Any, passed: Passed, t: float, s: float) -> tuple[Any, Passed]:
    """Read a state twice in the sum that replaces it."""
    h = s - t
    d0 = field.predict(x, t)
    return x + h * d0 + h * x, ((t, d0 + h * d0 + d0),)


def early_velocity(field: Field, x: Any, passed: Passed, t: float, s: float) -> tuple[Any, Passed]:
    """Pass on a velocity that nothing has read for a while."""
    h = s - t
    d0 = field.predict(x, t)
    x = x + h / 2 * d0
    d1 = field.predict(x, s)
    return x + h / 2 * d1, ((t, d0),)


# No sampler so far needs what these do, but a new one may.
AWKWARD: dict[str, Step] = {"INNER": inner_sums, "REPEATED": repeated_terms, "EARLY": early_velocity}


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


@pytest.fixture
def schedules(monkeypatch: pytest.MonkeyPatch) -> list[Schedule]:
    """Every step kind and reading alone, the usual mixtures, awkward formulas, and forty random lists."""
    for kind, step in AWKWARD.items():
        monkeypatch.setitem(STEPS, kind, step)
    texts = [f"{group}{n}" for kind, group in GROUPS.items() if kind != "R" for n in (1, 3, 6)]
    texts += [f"H1P2R3:{reading}" for reading in REFINER_READINGS]
    texts += [f"E1R2AB3x3R1:{reading}" for reading in REFINER_READINGS]
    texts += ["H1P5R3", "H8P9R5", "H1R1P2R1", "AB4x16", "H1P2R1@0,0.1,0.3,0.75,1", "E2@0.25,0.5,0.9"]
    random = np.random.default_rng(11)
    awkward = [Schedule(((kind, 2), ("P", 1), (kind, 1), ("R", 2))) for kind in AWKWARD]
    return [Schedule.parse(text) for text in texts] + awkward + [_random(random) for _ in range(40)]


def _random(random: np.random.Generator) -> Schedule:
    kinds = [str(random.choice(list(STEPS)))]
    kinds += [str(kind) for kind in random.choice([*STEPS, "R", "R"], size=random.integers(0, 8))]
    times = tuple(sorted(random.random(len(kinds) + 1).tolist()))
    return Schedule(tuple((kind, 1) for kind in kinds), times, str(random.choice(list(REFINER_READINGS))))
