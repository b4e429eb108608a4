"""Fine trajectories: Heun's method, its velocities, and what is refused."""

import numpy as np
import pytest

from flowturbo_trt.evaluation.velocity.trajectory import DiagnosisError, follow
from flowturbo_trt.sampling import reference
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.tests.evaluation.velocity.fields import KnownField, noise, nothing


def test_it_is_heun_with_the_velocities_at_its_states() -> None:
    field = KnownField(lambda x, t: np.sin(3 * x) - t * x)
    found = follow(field, noise(), 6, nothing)
    expected = [x[:, 0] for x, _ in reference.sample(Schedule.parse("H6"), field, noise()[:, None])]
    assert found.times == tuple(i / 6 for i in range(7))
    np.testing.assert_array_equal(found.states[0], noise())
    np.testing.assert_array_equal(found.states[1:], expected)
    for t, x, v in zip(found.times, found.states, found.velocities, strict=True):
        np.testing.assert_array_equal(v, field.predict(x[:, None], t))
    assert found.step == 1 / 6


def test_every_state_is_counted_and_no_velocity_evaluated_twice() -> None:
    counted: list[float] = []
    ticks: list[None] = []

    def rate(x: object, t: float) -> float:
        counted.append(t)
        return 1.0

    follow(KnownField(rate), noise(), 4, lambda: ticks.append(None))
    assert counted == [0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1, 1]
    assert len(ticks) == 5


def test_velocities_that_are_not_finite_are_refused() -> None:
    field = KnownField(lambda x, t: np.where(t > 0.4, np.nan, x))
    with pytest.raises(DiagnosisError, match=r"the velocity at t = 0\.5 is not finite"):
        follow(field, noise(), 4, nothing)
