"""The step formulas against a differential equation with a known solution."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flowturbo_trt.sampling.reference import sample
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.steps import Passed, adams_bashforth, multistep_weights, step_function

Values = NDArray[np.float64]
START = np.array([0.2, 0.35, 1.6])


def velocity(x: Any, t: float) -> Any:
    """A logistic curve whose clock runs faster with time: nonlinear and time-dependent."""
    return x * (1 - x) * (1 + 2 * t)


def solution(t: float) -> Values:
    """Solve x' = velocity(x, t) with x(0) = START, at any t ≥ -1/2."""
    x: Values = 1 / (1 + (1 / START - 1) * np.exp(-(t + t * t)))
    return x


class ExactField:
    """A field whose refiner turns any earlier velocity into the exact one, and keeps what it was asked."""

    def __init__(self) -> None:
        self.refined: list[tuple[Any, Any, float]] = []

    def predict(self, x: Any, t: float) -> Any:
        return velocity(x, t)

    def refine(self, x: Any, v: Any, t: float) -> Any:
        self.refined.append((x, v, t))
        return velocity(x, t) - v


def end(schedule: Schedule | str) -> Values:
    """Run a schedule from START and return the last state."""
    if isinstance(schedule, str):
        schedule = Schedule.parse(schedule)
    *_, (x, _) = sample(schedule, ExactField(), START)
    last: Values = x
    return last


def convergence_order(error: Callable[[int], float], steps: Iterable[int] = (16, 32, 64)) -> float:
    """Return the slope of log error against log h."""
    counts = list(steps)
    slope = np.polyfit(np.log([1 / n for n in counts]), np.log([error(n) for n in counts]), 1)[0]
    return float(slope)


def error_at_end(schedule: Schedule | str) -> float:
    return float(np.linalg.norm(end(schedule) - solution(1.0)))


def test_solution_solves_the_equation() -> None:
    e = 1e-6
    for t in (0.0, 0.4, 1.0):
        slope = (solution(t + e) - solution(t - e)) / (2 * e)
        np.testing.assert_allclose(slope, velocity(solution(t), t), rtol=1e-8)
    np.testing.assert_allclose(solution(0.0), START)


@pytest.mark.parametrize(
    ("schedule", "order"),
    [
        ("E{n}", 1),
        ("H{n}", 2),
        ("P{n}", 2),
        ("H1P{m}", 2),
        ("AB2x{n}", 2),
        ("H1AB2x{m}", 2),
    ],
)
def test_order_of_convergence(schedule: str, order: float) -> None:
    measured = convergence_order(lambda n: error_at_end(schedule.format(n=n, m=n - 1)))
    assert measured == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("schedule", ["AB3x{n}", "AB4x{n}"])
def test_short_bootstrap_keeps_higher_multistep_at_order_2(schedule: str) -> None:
    """The first step is Euler's, and its error of h² stays in the result, as steps.py documents."""
    measured = convergence_order(lambda n: error_at_end(schedule.format(n=n)))
    assert measured == pytest.approx(2, abs=0.15)


def multistep_end(order: int, grid: Callable[[float], float], n: int) -> Values:
    """Run AB of an order over grid(0) … grid(1), with exact velocities from before the start."""
    step = adams_bashforth(order)
    before = [grid(-i / n) for i in range(order - 1, 0, -1)]
    passed: Passed = tuple((t, velocity(solution(t), t)) for t in before)
    x: Any = solution(grid(0.0))
    for t, s in pairwise(grid(i / n) for i in range(n + 1)):
        x, passed = step(ExactField(), x, passed, t, s)
    last: Values = x
    return last


def uniform(u: float) -> float:
    return u


def stretched(u: float) -> float:
    """A smooth grid whose last steps are e times as long as its first."""
    return float(np.expm1(u) / np.expm1(1.0))


@pytest.mark.parametrize("grid", [uniform, stretched])
@pytest.mark.parametrize("order", [2, 3, 4])
def test_order_of_multistep_with_exact_start(order: int, grid: Callable[[float], float]) -> None:
    measured = convergence_order(
        lambda n: float(np.linalg.norm(multistep_end(order, grid, n) - solution(1.0))), (48, 96, 192)
    )
    assert measured == pytest.approx(order, abs=0.15)


def test_multistep_weights_on_a_uniform_grid_are_the_textbook_ones() -> None:
    h = 0.1
    for order, textbook in {
        1: [1.0],
        2: [-1 / 2, 3 / 2],
        3: [5 / 12, -16 / 12, 23 / 12],
        4: [-9 / 24, 37 / 24, -59 / 24, 55 / 24],
    }.items():
        times = [0.5 - i * h for i in range(order - 1, -1, -1)]
        np.testing.assert_allclose(multistep_weights(times, 0.5, 0.6), np.multiply(h, textbook), rtol=1e-10)


def test_multistep_weights_integrate_polynomials_on_any_grid() -> None:
    random = np.random.default_rng(1)
    for order in (1, 2, 3, 4):
        times = np.sort(random.random(order) * 0.7)
        t, s = float(times[-1]), float(times[-1]) + 0.2
        polynomial = np.polynomial.Polynomial(random.standard_normal(order))
        integral = polynomial.integ()
        weighted = np.dot(multistep_weights(times.tolist(), t, s), polynomial(times))
        assert weighted == pytest.approx(integral(s) - integral(t), rel=1e-9)


def test_multistep_reuses_only_velocities_from_before_its_start() -> None:
    """Heun passes on a velocity at its right end, which is where the next step starts."""
    x = solution(0.5)
    step = adams_bashforth(4)
    early, late = (0.4, velocity(solution(0.4), 0.4)), (0.5, velocity(x, 0.5) + 1)
    moved, passed = step(ExactField(), x, (early, late), 0.5, 0.6)
    np.testing.assert_array_equal(moved, step(ExactField(), x, (early,), 0.5, 0.6)[0])
    assert [t for t, _ in passed] == [0.4, 0.5]
    np.testing.assert_array_equal(
        step(ExactField(), x, (late,), 0.5, 0.6)[0], x + (0.6 - 0.5) * velocity(x, 0.5)
    )


def test_schedules_on_other_grids_reach_the_solution() -> None:
    grid = tuple(stretched(i / 40) for i in range(41))
    assert error_at_end(Schedule((("H", 10), ("P", 20), ("AB3", 10)), grid)) < 1e-3


def r_step(reading: str, v: Values, t: float = 0.3, s: float = 0.5) -> tuple[Values, Passed, ExactField]:
    """Take one R step from solution(t) with the passed velocity v."""
    field = ExactField()
    x, passed = step_function("R", reading)(field, solution(t), ((t, v),), t, s)
    return x, passed, field


def test_one_refiner_step_of_each_reading_with_an_exact_refiner() -> None:
    t, s = 0.3, 0.5
    h, x = s - t, solution(0.3)
    v = 0.7 * velocity(x, t) + 0.1
    d0 = velocity(x, t)
    right = velocity(x + h * d0, s)
    # What r(·, v, s) = f − v becomes when added to d0 instead of v.
    expected = {
        "reference": x + h / 2 * (d0 + (right - v + d0)),
        "consistent": x + h / 2 * (d0 + right),
        "single": x + h * d0,
    }
    for reading, state in expected.items():
        moved, passed, field = r_step(reading, v)
        np.testing.assert_allclose(moved, state, rtol=1e-13, err_msg=reading)
        np.testing.assert_allclose(passed[-1][1], d0, rtol=1e-13)
        assert passed[-1][0] == t
        conditions = {"reference": [v, v], "consistent": [v, d0], "single": [v]}[reading]
        assert [time for _, _, time in field.refined] == [t, s][: len(conditions)]
        for (_, given, _), condition in zip(field.refined, conditions, strict=True):
            np.testing.assert_allclose(given, condition, rtol=1e-13)


def test_readings_differ() -> None:
    v = velocity(solution(0.3), 0.3) + 0.2
    reference, consistent, single = (r_step(name, v)[0] for name in ("reference", "consistent", "single"))
    for one, other in ((reference, consistent), (reference, single), (consistent, single)):
        assert np.abs(one - other).max() > 1e-3


def test_consistent_reading_with_an_exact_refiner_is_heun() -> None:
    np.testing.assert_allclose(end("H1R15:consistent"), end("H16"), rtol=1e-12)


def test_single_reading_with_an_exact_refiner_is_euler() -> None:
    *_, (euler, _) = sample(Schedule.parse("E4@0.2,0.4,0.6,0.8,1"), ExactField(), end("H1@0,0.2"))
    np.testing.assert_allclose(end("H1R4:single"), euler, rtol=1e-12)


@pytest.mark.parametrize(("reading", "order"), [("reference", 1), ("consistent", 2), ("single", 1)])
def test_order_with_an_exact_refiner(reading: str, order: float) -> None:
    """The reference reading falls to order 1: it adds d0 − v, which is of the order of h, to d1."""
    measured = convergence_order(lambda n: error_at_end(f"H1R{n - 1}:{reading}"), (32, 64, 128))
    assert measured == pytest.approx(order, abs=0.15)


def test_reference_reading_agrees_with_heun_where_the_passed_velocity_is_exact() -> None:
    v = velocity(solution(0.3), 0.3)
    np.testing.assert_allclose(r_step("reference", v)[0], r_step("consistent", v)[0], rtol=1e-13)


def test_steps_pass_on_velocities_with_their_times() -> None:
    x = solution(0.0)
    times = {"E": 0.0, "H": 0.1, "P": 0.1, "AB2": 0.0}
    for kind, time in times.items():
        _, passed = step_function(kind, "reference")(ExactField(), x, (), 0.0, 0.1)
        assert [t for t, _ in passed] == [time]


@pytest.mark.parametrize("text", ["E1P1", "AB2x1P1"])
def test_pseudo_corrector_takes_no_velocity_of_another_time(text: str) -> None:
    """After steps that pass on the left end's velocity it evaluates its own, as a Heun step would."""
    assert Schedule.parse(text).evaluations()["predictor"] == 3
    assert Schedule.parse("H1P1").evaluations()["predictor"] == 3
