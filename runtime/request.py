"""Requests: what a caller asks of a pipeline, checked before anything runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowturbo_trt.bundle.manifest import Condition, Model
from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.sampling.noise import MAX_SEED, fill_noise


class RequestError(FlowTurboError):
    """An argument of the wrong type, length or range."""


@dataclass(frozen=True)
class Request:
    """N rows: conditions (N) by name, guidance (N), and either seeds (N) or noise (N,C,H,W)."""

    conditions: Mapping[str, NDArray[np.int64]]
    guidance: NDArray[np.float32]
    seeds: tuple[int, ...]
    noise: NDArray[np.float32] | None

    def __len__(self) -> int:
        return len(self.guidance)

    @property
    def is_unguided(self) -> bool:
        """Whether guidance is 1 everywhere, where the unguided variant computes the same."""
        return bool(np.all(self.guidance == 1))

    def fill_noise(self, rows: slice, out: NDArray[np.float32]) -> None:
        """Write the noise of some rows into `out` (n,C,H,W)."""
        if self.noise is not None:
            out[...] = self.noise[rows]
        else:
            fill_noise(out, self.seeds[rows])


def make_request(
    model: Model,
    conditions: Mapping[str, ArrayLike],
    seeds: Sequence[int] | None,
    guidance: ArrayLike | None,
    noise: NDArray[np.float32] | None,
) -> Request:
    """Check everything a caller gave; raises RequestError."""
    known = {condition.name: condition for condition in model.conditions}
    if set(conditions) != set(known):
        raise RequestError(f"conditions are {sorted(conditions)}, the model takes {sorted(known)}")
    checked = {name: _check_condition(known[name], value) for name, value in conditions.items()}
    rows = len(next(iter(checked.values())))
    if any(len(value) != rows for value in checked.values()):
        raise RequestError(
            f"conditions have {[len(v) for v in checked.values()]} rows, expected equal numbers"
        )
    if noise is not None:
        if seeds is not None:
            raise RequestError("both seeds and noise are given; noise replaces seeds, give one of them")
        noise = _check_noise(noise, (rows, *model.latent))
    checked_seeds = tuple(range(rows)) if seeds is None else _check_seeds(seeds, rows)
    return Request(checked, _check_guidance(guidance, rows, model.guidance.default), checked_seeds, noise)


def _check_condition(condition: Condition, value: ArrayLike) -> NDArray[np.int64]:
    array = _as_array(f"{condition.name}s", value)
    if array.ndim != 1 or len(array) == 0 or array.dtype.kind not in "iu":
        raise RequestError(
            f"{condition.name}s are {array.dtype} of shape {array.shape}, expected one or more integers"
        )
    wrong = array[(array < condition.minimum) | (array > condition.maximum)]
    if len(wrong):
        raise RequestError(
            f"{condition.name} {wrong[0]} is out of range; the model knows {condition.minimum} to "
            f"{condition.maximum}"
        )
    return array.astype(np.int64)


def _check_seeds(seeds: Sequence[int], rows: int) -> tuple[int, ...]:
    values = np.asarray(seeds, dtype=object).ravel().tolist()
    for seed in values:
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed <= MAX_SEED:
            raise RequestError(f"seed {seed!r} is not an integer from 0 to 2^64 - 1")
    if len(values) != rows:
        raise RequestError(f"{len(values)} seeds for {rows} images; give one seed per image")
    return tuple(int(seed) for seed in values)


def _check_guidance(guidance: ArrayLike | None, rows: int, default: float) -> NDArray[np.float32]:
    array = _as_array("guidance", default if guidance is None else guidance)
    scale = _as_float32(array) if array.dtype.kind in "iuf" and array.shape in ((), (rows,)) else None
    if scale is None:
        raise RequestError(f"guidance is {guidance!r}, expected a number, or one for each of {rows} images")
    return np.broadcast_to(scale, (rows,)).copy()


def _check_noise(noise: NDArray[np.float32], expected: tuple[int, ...]) -> NDArray[np.float32]:
    array = _as_array("noise", noise)
    checked = _as_float32(array) if array.dtype.kind == "f" and array.shape == expected else None
    if checked is None:
        raise RequestError(
            f"noise is {array.dtype} of shape {array.shape}, expected finite floats of shape {expected}"
        )
    return checked


def _as_array(name: str, value: ArrayLike) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise RequestError(f"{name}: no array of numbers ({error})") from error


def _as_float32(array: NDArray[Any]) -> NDArray[np.float32] | None:
    """Return a copy as float32, or None where a value is not finite in it."""
    with np.errstate(over="ignore"):
        copy = array.astype(np.float32)
    return copy if np.isfinite(copy).all() else None
