"""Hoisted conditioning: what depends on time and label alone, evaluated once for all steps of a program.

A hoisted network takes `modulation` (B,M) in place of time and conditions. Its conditioner computes the
modulations of all T different times of a program and all B rows of a request, time by time: row
slot·B + b. Those of the null condition depend on the times alone, and are kept from request to request.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import BundleError, Condition, Engine, Manifest, conditioner_of
from flowturbo_trt.sampling.program import Program


@dataclass(frozen=True)
class Conditioning:
    """One network's modulations in a program: `slots` numbers the time of each of its evaluations.

    `guided`: whether some of its evaluations need the null condition's as well. `fixed_rows` are the
    rows of a call where engines fix them; 0 where one call takes as many as there are.
    """

    network: str
    slots: tuple[int, ...]
    batch: int
    width: int
    guided: bool
    fixed_rows: int = 0

    @property
    def rows(self) -> int:
        """T·B."""
        return (max(self.slots) + 1) * self.batch

    @property
    def calls(self) -> int:
        return -(-self.rows // self.fixed_rows) if self.fixed_rows else 1

    @property
    def padded_rows(self) -> int:
        """Rows that the calls write, and so of all arrays here."""
        return self.calls * self.fixed_rows if self.fixed_rows else self.rows

    @property
    def rows_per_call(self) -> int:
        return self.fixed_rows or self.rows

    def call_rows(self, call: int) -> slice:
        """Return the rows of a call."""
        size = self.rows_per_call
        return slice(call * size, (call + 1) * size)

    def rows_at(self, slot: int) -> slice:
        """Return the rows of a time."""
        return slice(slot * self.batch, (slot + 1) * self.batch)

    def spread_times(self, program: Program, rows: slice, out: NDArray[np.float32]) -> bool:
        """Write a program's times for some rows of the batch into `out`; tell whether any is new there."""
        by_slot, before = out[: self.rows].reshape(-1, self.batch), out.copy()
        for slot, time in zip(self.slots, program.times(self.network), strict=True):
            by_slot[slot, rows] = time
        return not np.array_equal(before, out)

    def spread_condition(self, values: NDArray[Any], out: NDArray[Any]) -> None:
        """Repeat a condition (B) for every time, into `out` (padded_rows)."""
        out[: self.rows].reshape(-1, self.batch)[...] = values


def plan_conditioning(
    manifest: Manifest, program: Program, batch: int, backend: str, *, pads: bool
) -> dict[str, Conditioning]:
    """Return the hoisted networks that a program evaluates on a backend; `pads` if its engines fix rows."""
    found: dict[str, Conditioning] = {}
    variants: dict[str, set[str]] = {}
    for network, variant in program.evaluations():
        variants.setdefault(network, set()).add(variant)
    for network, used in variants.items():
        hoisted = {manifest.engine(network, variant, backend).is_hoisted for variant in used}
        if hoisted == {False}:
            continue
        if hoisted != {True}:
            raise BundleError(f"{network}: some of its variants have their conditioning hoisted, others not")
        engine = manifest.engine(conditioner_of(network), None, backend)
        slots = program.time_slots(network)
        rows = max(engine.batches) if pads else 0
        found[network] = Conditioning(network, slots, batch, _width(engine), "guided" in used, rows)
    return found


def needed_engines(manifest: Manifest, program: Program, backend: str) -> list[tuple[str, str | None]]:
    """Return network and variant of the engines that a program takes, with the decoder if there is one."""
    evaluated: list[tuple[str, str | None]] = [*program.evaluations()]
    hoisted = (
        network for network, variant in evaluated if manifest.engine(network, variant, backend).is_hoisted
    )
    needed = [*evaluated, *((conditioner_of(network), None) for network in dict.fromkeys(hoisted))]
    return needed if manifest.model.image is None else [*needed, ("decoder", None)]


def null_values(conditions: tuple[Condition, ...]) -> Mapping[str, int]:
    """Return what stands for no condition, by name."""
    missing = [condition.name for condition in conditions if condition.null is None]
    if missing:
        raise BundleError(f"the manifest does not say which {missing[0]} stands for none; rebuild the bundle")
    return {condition.name: int(condition.null or 0) for condition in conditions}


def _width(engine: Engine) -> int:
    (output,) = engine.outputs
    return int(output.shape[1])
