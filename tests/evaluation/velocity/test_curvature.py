"""Curvature against trajectories known in closed form."""

import math

import numpy as np
import pytest

from flowturbo_trt.evaluation.velocity.curvature import Curvature, curvature
from flowturbo_trt.evaluation.velocity.trajectory import FineTrajectory, follow
from flowturbo_trt.tests.evaluation.velocity.fields import KnownField, noise, nothing

STEPS = 200
H = 1 / STEPS


@pytest.fixture(scope="module")
def exponential() -> tuple[FineTrajectory, Curvature]:
    """dx/dt = a·x with a = ½: x = x0·exp(t/2), v = x/2."""
    trajectory = follow(KnownField(lambda x, t: 0.5 * x), noise(), STEPS, nothing)
    return trajectory, curvature(trajectory)


def test_a_linear_field_changes_at_its_rate(exponential: tuple[FineTrajectory, Curvature]) -> None:
    trajectory, found = exponential
    t = np.asarray(trajectory.times)
    expected = (math.exp(H / 2) - 1) / H
    assert found.velocity.shape == (STEPS, 3)
    np.testing.assert_allclose(found.velocity, expected, rtol=1e-3)
    # x̂0 = x·(1 − t/2) and x̂1 = x·(1 + (1 − t)/2), by their ratios from one time to the next.
    for values, factor in ((found.noise, 1 - t / 2), (found.data, 1 + (1 - t) / 2)):
        expected_change = np.abs(factor[1:] / factor[:-1] * math.exp(H / 2) - 1) / H
        np.testing.assert_allclose(values, expected_change[:, None].repeat(3, axis=1), atol=2e-4)


def test_noise_starts_and_data_ends_without_any_change(exponential: tuple[FineTrajectory, Curvature]) -> None:
    """Their derivatives are −t·v′ and (1 − t)·v′."""
    _, found = exponential
    assert found.noise[0].max() < 0.01 < found.noise[-1].min()
    assert found.data[-1].max() < 0.01 < found.data[0].min()


def test_parallel_velocities_have_cosine_1_and_a_chord(exponential: tuple[FineTrajectory, Curvature]) -> None:
    trajectory, found = exponential
    np.testing.assert_allclose(found.cosine, 1, atol=1e-6)
    # v = x0·exp(t/2)/2 against x1 − x0 = x0·(exp(½) − 1).
    chord = math.exp(0.5) - 1
    expected = (np.exp(np.asarray(trajectory.times) / 2) / 2 / chord - 1) ** 2
    np.testing.assert_allclose(found.straightness, expected[:, None].repeat(3, axis=1), atol=1e-5)
    assert found.mean_straightness == pytest.approx(np.trapezoid(expected, dx=H), rel=1e-3)


def test_a_rotation_turns_by_its_angle() -> None:
    """Two channels that turn by ω: successive velocities differ by the angle ω·h."""
    omega = 2.0

    def turn(x: np.ndarray, t: float) -> np.ndarray:
        return omega * np.stack([-x[:, :, 1], x[:, :, 0]], axis=2)

    found = curvature(follow(KnownField(turn), noise(), STEPS, nothing))
    np.testing.assert_allclose(found.cosine, math.cos(omega * H), atol=1e-6)
    np.testing.assert_allclose(found.velocity, 2 * math.sin(omega * H / 2) / H, rtol=1e-3)


def test_a_straight_field_has_no_curvature() -> None:
    found = curvature(follow(KnownField(lambda x, t: 1.0), noise(), 10, nothing))
    for values in (found.velocity, found.noise, found.data):
        np.testing.assert_allclose(values, 0, atol=1e-5)
    assert found.mean_straightness < 1e-10


def test_only_the_conditional_half_counts() -> None:
    straight = follow(KnownField(lambda x, t: 1.0), noise(), 4, nothing)
    wild = np.random.default_rng(1).standard_normal(straight.velocities.shape, dtype=np.float32)
    halves = np.concatenate([straight.velocities, wild], axis=2)
    found = curvature(FineTrajectory(straight.times, straight.states, halves))
    np.testing.assert_array_equal(found.velocity, curvature(straight).velocity)
