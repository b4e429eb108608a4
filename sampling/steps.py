"""The sampler's formulas, each once, over any array type.

A step is a pure function (field, x, passed, t, s) → (x, passed): it moves the state x from time t to
s, h = s − t, and hands on the velocities that later steps may reuse. Called with arrays, the steps
are the sampler; called with symbolic registers, `trace.trace` records what they do.

Sums are written out term by term (x + a·d0 + b·d1): each is then one fused combination on a device,
and floating-point addition in the written order is the same wherever it runs.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

# Velocities passed on with the times they were evaluated for, newest last.
Passed = tuple[tuple[float, Any], ...]


class Field(Protocol):
    """The networks as the formulas see them: velocity fields over an array type."""

    def predict(self, x: Any, t: float) -> Any:
        """Return the velocity at state x and time t."""
        ...

    def refine(self, x: Any, v: Any, t: float) -> Any:
        """Return the offset that the refiner adds to the earlier velocity v."""
        ...


Step = Callable[[Field, Any, Passed, float, float], tuple[Any, Passed]]


def euler(field: Field, x: Any, passed: Passed, t: float, s: float) -> tuple[Any, Passed]:
    """Advance by the velocity at the left end; 1 evaluation, order 1."""
    h = s - t
    d0 = field.predict(x, t)
    return x + h * d0, ((t, d0),)


def heun(field: Field, x: Any, passed: Passed, t: float, s: float) -> tuple[Any, Passed]:
    """Advance by the mean of both ends' velocities; 2 evaluations, order 2. Passes on the right end's."""
    h = s - t
    d0 = field.predict(x, t)
    d1 = field.predict(x + h * d0, s)
    return x + h / 2 * d0 + h / 2 * d1, ((s, d1),)


def pseudo_corrector(field: Field, x: Any, passed: Passed, t: float, s: float) -> tuple[Any, Passed]:
    """Heun's step with the velocity passed on as its left end (FlowTurbo §3.3); 1 evaluation, order 2.

    Only a velocity for time t will do, as H and P pass on; after other steps, or none, it is evaluated.
    """
    h = s - t
    d0 = passed[-1][1] if passed and passed[-1][0] == t else field.predict(x, t)
    d1 = field.predict(x + h * d0, s)
    return x + h / 2 * d0 + h / 2 * d1, ((s, d1),)


def refiner_reference(field: Field, x: Any, passed: Passed, t: float, s: float) -> tuple[Any, Passed]:
    """Heun's step with refined velocities, as the public code computes it; 2 refiner evaluations.

    Both evaluations are conditioned on the velocity v passed on; the second offset is added to d0.
    """
    h = s - t
    v = passed[-1][1]
    d0 = field.refine(x, v, t) + v
    d1 = field.refine(x + h * d0, v, s) + d0
    return x + h / 2 * d0 + h / 2 * d1, ((t, d0),)


def refiner_consistent(field: Field, x: Any, passed: Passed, t: float, s: float) -> tuple[Any, Passed]:
    """As `refiner_reference`, but the second offset is conditioned on d0, to which it is added."""
    h = s - t
    v = passed[-1][1]
    d0 = field.refine(x, v, t) + v
    d1 = field.refine(x + h * d0, d0, s) + d0
    return x + h / 2 * d0 + h / 2 * d1, ((t, d0),)


def refiner_single(field: Field, x: Any, passed: Passed, t: float, s: float) -> tuple[Any, Passed]:
    """Euler's step with the refined velocity; 1 refiner evaluation, as the paper's FLOPs column counts."""
    h = s - t
    v = passed[-1][1]
    d0 = field.refine(x, v, t) + v
    return x + h * d0, ((t, d0),)


def adams_bashforth(order: int) -> Step:
    """Return the explicit linear multistep method of the given order; 1 evaluation a step.

    With fewer than order − 1 earlier velocities it uses the order they allow, so a run starts with
    Euler's step: its error of h² stays in the result, and AB3 and AB4 converge with order 2 unless
    their first steps are made exact.
    """

    def step(field: Field, x: Any, passed: Passed, t: float, s: float) -> tuple[Any, Passed]:
        earlier = tuple((time, v) for time, v in passed if time < t)
        nodes = (*earlier, (t, field.predict(x, t)))[-order:]
        for weight, (_, v) in zip(multistep_weights([time for time, _ in nodes], t, s), nodes, strict=True):
            x = x + weight * v
        return x, nodes

    return step


def linear_multistep(weights: Sequence[float], *, refines: bool = False) -> Step:
    """Return a step by the weighted sum of all velocities so far, of which there are len(weights) − 1.

    1 evaluation: of the predictor, or with `refines` of the refiner, whose offset is added to the newest
    velocity.
    """

    def step(field: Field, x: Any, passed: Passed, t: float, s: float) -> tuple[Any, Passed]:
        if refines:
            v = passed[-1][1]
            d = field.refine(x, v, t) + v
        else:
            d = field.predict(x, t)
        nodes = (*passed, (t, d))
        for weight, (_, v) in zip(weights, nodes, strict=True):
            x = x + weight * v
        return x, nodes

    return step


def multistep_weights(times: list[float], t: float, s: float) -> list[float]:
    """Integrate the polynomial through velocities at `times` from t to s: one weight per velocity.

    The weights reproduce every moment ∫ (τ−t)ᵐ dτ exactly for m < len(times), on any grid.
    """
    h = s - t
    offsets = (np.asarray(times, dtype=np.float64) - t) / h
    moments = 1 / np.arange(1, len(times) + 1)
    weights: list[float] = (h * np.linalg.solve(np.vander(offsets, increasing=True).T, moments)).tolist()
    return weights


STEPS: dict[str, Step] = {
    "E": euler,
    "H": heun,
    "P": pseudo_corrector,
    "AB2": adams_bashforth(2),
    "AB3": adams_bashforth(3),
    "AB4": adams_bashforth(4),
}
REFINER_READINGS: dict[str, Step] = {
    "reference": refiner_reference,
    "consistent": refiner_consistent,
    "single": refiner_single,
}
REFINER = "R"


def step_function(kind: str, reading: str) -> Step:
    """Return the formula of a schedule's step kind; `reading` chooses among those of R."""
    return REFINER_READINGS[reading] if kind == REFINER else STEPS[kind]
