"""What the schedules of a bundle cost an image, and what the exact speed-ups save of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.evaluation.cost import (
    Conditioning,
    EngineCosts,
    hoisting_saving,
    program_cost,
    unguided_saving,
)
from flowturbo_trt.export.preflight import WEIGHT_BYTES
from flowturbo_trt.runtime.conditioning import plan_conditioning
from flowturbo_trt.runtime.memory_plan import runs_plans
from flowturbo_trt.sampling.program import Program


@dataclass(frozen=True)
class Amount:
    """FLOP, and bytes of weights read from memory, for one image."""

    flop: float
    weight_bytes: float


@dataclass(frozen=True)
class ScheduleCost:
    """What an image of a batch takes, and what is saved of that; a negative saving is a loss.

    `by_hoisting` is the saving of a conditioning that is hoisted: where it is fused, that which would be
    possible. `by_unguided` is the saving of the evaluations that are not guided.
    """

    schedule: str
    variant: str
    batch: int
    conditioning: Conditioning
    image: Amount
    by_hoisting: Amount
    by_unguided: Amount


def schedule_costs(
    manifest: Manifest, programs: Mapping[str, Mapping[str, Program]], batches: Sequence[int], backend: str
) -> tuple[ScheduleCost, ...]:
    """Count programs, by schedule and variant, on a backend's engines; raises BundleError."""
    engines = EngineCosts(manifest.model)
    return tuple(
        _count(manifest, engines, schedule, variant, program, batch, backend)
        for schedule, by_variant in programs.items()
        for variant, program in by_variant.items()
        for batch in batches
    )


def _count(
    manifest: Manifest,
    engines: EngineCosts,
    schedule: str,
    variant: str,
    program: Program,
    batch: int,
    backend: str,
) -> ScheduleCost:
    hoisted = plan_conditioning(manifest, program, batch, backend, pads=runs_plans(backend))
    rows = max((found.fixed_rows for found in hoisted.values()), default=0)
    conditioning: Conditioning = "hoisted" if hoisted else "fused"
    network, evaluated = next(iter(program.evaluations()))
    itemsize = WEIGHT_BYTES[manifest.engine(network, evaluated, backend).precision]
    total = program_cost(engines, program, batch, conditioning, rows).total
    hoisting = hoisting_saving(engines, program, batch, rows)
    unguided = unguided_saving(engines, program, batch, conditioning, rows)
    return ScheduleCost(
        schedule,
        variant,
        batch,
        conditioning,
        Amount(total.flop / batch, total.weight_bytes(itemsize) / batch),
        Amount(hoisting.flop / batch, hoisting.weight_bytes(itemsize) / batch),
        Amount(unguided.flop / batch, unguided.weight_bytes(itemsize) / batch),
    )
