"""Grids and their warps."""

import numpy as np
import pytest

from flowturbo_trt.calibration.tune.grids import from_lengths, power, shift, tidy, warp


def test_warps_are_what_they_say() -> None:
    assert warp((0, 0.5, 1), shift(3)) == (0, 0.25, 1)
    assert warp((0, 0.5, 1), power(2)) == (0, 0.25, 1)


def test_shifts_compose_by_products() -> None:
    t = np.linspace(0, 1, 9)
    np.testing.assert_allclose(shift(2)(shift(3)(t)), shift(6)(t))
    np.testing.assert_allclose(shift(1 / 4)(shift(4)(t)), t, atol=1e-15)


def test_a_uniform_grid_is_none() -> None:
    assert tidy([0, 1 / 3, 2 / 3, 1]) == ()
    assert warp((0, 1 / 7, 2 / 7, 3 / 7, 4 / 7, 5 / 7, 6 / 7, 1), shift(1)) == ()


def test_times_are_short_to_write_and_end_at_0_and_1() -> None:
    assert tidy([0.1, 0.12345678, 0.9]) == (0, 0.1235, 1)


@pytest.mark.parametrize("times", [(0, 0.5, 0.5, 1), (0, 0.6, 0.4, 1), (0, 0.0005, 1), (0, 1, 1)])
def test_no_grid_has_steps_that_are_too_short(times: tuple[float, ...]) -> None:
    assert tidy(times) is None


def test_from_lengths() -> None:
    assert from_lengths([1, 2, 1]) == (0, 0.25, 0.75, 1)
    assert from_lengths([5, 5]) == ()
