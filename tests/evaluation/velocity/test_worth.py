"""Errors of reuse, extrapolation and refiners against closed forms."""

from typing import Any

import numpy as np
import pytest

from flowturbo_trt.evaluation.velocity.endpoints import PerfectRefiner, ReusedVelocity
from flowturbo_trt.evaluation.velocity.trajectory import FineTrajectory, follow
from flowturbo_trt.evaluation.velocity.worth import LagErrors, lag_errors, refiner_calls, schedule_errors
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.steps import Field
from flowturbo_trt.tests.evaluation.velocity.fields import Array, KnownField, RefinedField, noise, nothing

STEPS = 10
LAGS = (1, 3)


def errors_of(field: Field, *, refines: bool = True) -> LagErrors:
    trajectory = follow(field, noise(), STEPS, nothing)
    return lag_errors(field, trajectory, LAGS, refines=refines, tick=nothing)


def curved(x: Array, t: float) -> Any:
    return 1 + t * t


def test_errors_of_a_field_of_time_are_those_of_its_formula() -> None:
    """v = 1 + t² everywhere: an older velocity is off by what t² has grown, a line by 2Δ²."""
    found = errors_of(KnownField(curved), refines=False)
    assert found.refined is None
    assert found.reuse.shape == found.extrapolated.shape == (STEPS + 1, len(LAGS), 3)
    for now in range(STEPS + 1):
        s = now / STEPS
        for column, lag in enumerate(LAGS):
            delta = lag / STEPS
            reuse, line = found.reuse[now, column], found.extrapolated[now, column]
            if now < lag:
                assert np.isnan(reuse).all()
            else:
                np.testing.assert_allclose(reuse, (s**2 - (s - delta) ** 2) / (1 + s**2), atol=1e-6)
            if now < 2 * lag:
                assert np.isnan(line).all()
            else:
                np.testing.assert_allclose(line, 2 * delta**2 / (1 + s**2), atol=1e-6)


def test_a_line_is_exact_where_velocities_grow_evenly() -> None:
    found = errors_of(KnownField(lambda x, t: 1 + t), refines=False)
    assert np.nanmax(found.extrapolated) < 1e-6 < np.nanmin(found.reuse)


def test_a_perfect_refiner_is_exact() -> None:
    found = errors_of(PerfectRefiner(KnownField(lambda x, t: np.sin(3 * x) - t)))
    assert found.refined is not None
    assert np.nanmax(found.refined) < 1e-6 < np.nanmin(found.reuse)


def test_a_refiner_without_offsets_is_reuse() -> None:
    found = errors_of(ReusedVelocity(KnownField(curved)))
    assert found.refined is not None
    np.testing.assert_array_equal(found.refined, found.reuse)


def test_a_refiner_that_takes_half_the_way_leaves_half_the_error() -> None:
    rate = KnownField(curved)
    found = errors_of(RefinedField(curved, lambda x, v, t: (rate.predict(x, t) - v) / 2))
    assert found.refined is not None
    np.testing.assert_allclose(found.refined, found.reuse / 2, rtol=1e-4)


def test_the_refiner_gets_both_halves_and_is_judged_by_the_conditional_one() -> None:
    times, x = (0.0, 0.5, 1.0), np.zeros((3, 2, 1, 1, 1), dtype=np.float32)
    velocities = np.stack([np.full((2, 2, 1, 1, 1), value, dtype=np.float32) for value in (1, 2, 4)])
    velocities[:, :, 1] += 10
    seen: list[Array] = []

    def offset(x: Array, v: Array, t: float) -> Array:
        seen.append(v)
        return np.concatenate([np.full_like(v[:, :1], 1), np.full_like(v[:, :1], 99)], axis=1)

    trajectory = FineTrajectory(times, x, velocities)
    found = lag_errors(RefinedField(curved, offset), trajectory, (1,), refines=True, tick=nothing)
    assert found.refined is not None
    np.testing.assert_allclose(found.refined[1:, 0], [[0, 0], [1 / 4, 1 / 4]])
    np.testing.assert_allclose(found.reuse[1:, 0], [[1 / 2, 1 / 2], [1 / 2, 1 / 2]])
    np.testing.assert_array_equal(seen, velocities[:2])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # After H or P the velocity passed on is for the very time; R passes on that of its own start.
        ("H1P1R2", [(2, 0.5, 0.0), (2, 0.75, 0.25), (3, 0.75, 0.25), (3, 1.0, 0.5)]),
        ("E1R1", [(1, 0.5, 0.5), (1, 1.0, 1.0)]),
        ("H2R1:single@0,0.25,0.5,1", [(2, 0.5, 0.0)]),
        ("H2", []),
    ],
)
def test_calls_and_the_age_of_their_velocities(
    schedule: str, expected: list[tuple[int, float, float]]
) -> None:
    calls = refiner_calls(Schedule.parse(schedule))
    assert [(call.step, call.t, call.age) for call in calls] == expected


@pytest.mark.parametrize("reading", ["reference", "consistent", "single"])
def test_in_a_schedule_a_refiner_without_offsets_is_reuse(reading: str) -> None:
    field = ReusedVelocity(KnownField(lambda x, t: np.sin(3 * x) - t))
    found = schedule_errors(field, Schedule.parse(f"H1P1R2:{reading}"), noise())
    assert found.reuse.shape == (2 if reading == "single" else 4, 3)
    assert found.reuse.max() > 0.01
    np.testing.assert_array_equal(found.refined, found.reuse)


@pytest.mark.parametrize("reading", ["consistent", "single"])
def test_in_a_schedule_a_perfect_refiner_is_exact(reading: str) -> None:
    field = PerfectRefiner(KnownField(lambda x, t: np.sin(3 * x) - t))
    found = schedule_errors(field, Schedule.parse(f"H1P1R2:{reading}"), noise())
    assert found.refined.max() < 1e-5 < found.reuse.max()


def test_the_reference_reading_adds_to_a_velocity_that_its_offset_is_not_for() -> None:
    """Its second offset, v(s) − v for the passed v, is added to d0: what d0 is off from v remains."""
    field = PerfectRefiner(KnownField(lambda x, t: 1 + t))
    found = schedule_errors(field, Schedule.parse("E1R1"), noise())
    # v = 1 is passed on; d0 = 1.5 at ½ is exact; then 2 − 1 is added to 1.5 where the velocity is 2.
    np.testing.assert_allclose(found.reuse, [[1 / 3] * 3, [1 / 2] * 3], rtol=1e-6)
    np.testing.assert_allclose(found.refined, [[0] * 3, [1 / 4] * 3], atol=1e-6)


def test_a_schedule_without_r_steps_has_no_errors() -> None:
    found = schedule_errors(KnownField(curved), Schedule.parse("H2"), noise())
    assert found.reuse.shape == found.refined.shape == (0, 3)
