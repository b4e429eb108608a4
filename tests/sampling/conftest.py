"""Fields in float32, and schedules of every kind of step to run on them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.steps import REFINER_READINGS, STEPS, Field, Passed, Step
from flowturbo_trt.tests.sampling.fields import HALVES, DampedField, HalvesField

Array = NDArray[np.float32]
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


@pytest.fixture(scope="session")
def field_of() -> Callable[[str], HalvesField]:
    return HalvesField


@pytest.fixture(scope="session")
def fields() -> dict[str, Field]:
    """Fields by variant, which differ in what they compute."""
    return {variant: DampedField(variant) for variant in HALVES}


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


@pytest.fixture
def interval_schedules() -> list[Schedule]:
    """Schedules that are guided some of the time, with borders at, between and around their times."""
    texts = ["H1P5R3", "H8", "P5", "E4R2P2", "H2R1:consistent", "E1R2AB3x3R1:single", "AB4x6", "H1R1P2R1"]
    intervals = [(0.0, 1.0), (0.0, 0.0), (0.1, 0.3), (0.2, 0.5), (0.5, 1.0), (0.37, 0.38), (1.0, 1.0)]
    chosen = [replace(Schedule.parse(text), guided=guided) for text in texts for guided in intervals]
    # Borders on times of the grid, where a border by the wrong side shows.
    chosen += [
        Schedule.parse(f"H4P4R1:guided={a / 9:.17g}..{b / 9:.17g}") for a, b in ((1, 3), (0, 5), (4, 4))
    ]
    random = np.random.default_rng(17)
    for _ in range(30):
        low, high = sorted(random.random(2).tolist())
        chosen.append(replace(_random(random), guided=(low, high)))
    return chosen


def _random(random: np.random.Generator) -> Schedule:
    kinds = [str(random.choice(list(STEPS)))]
    kinds += [str(kind) for kind in random.choice([*STEPS, "R", "R"], size=random.integers(0, 8))]
    times = tuple(sorted(random.random(len(kinds) + 1).tolist()))
    return Schedule(tuple((kind, 1) for kind in kinds), times, str(random.choice(list(REFINER_READINGS))))
