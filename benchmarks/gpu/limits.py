"""What a case costs by count, and the least time that a GPU could take for it."""

from dataclasses import dataclass
from typing import Any

from flowturbo_trt.bundle.manifest import Model
from flowturbo_trt.evaluation.cost import hoisting_saving, program_cost
from flowturbo_trt.evaluation.operations import roofline
from flowturbo_trt.sampling.program import Program

# Bytes of a value that networks work on.
ITEMSIZE = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class Limits:
    """What a GPU does at best, measured: 10¹² FLOP/s in 16 bits, 10⁹ bytes/s from and to its memory."""

    tflops: float
    gigabytes_per_second: float


# By the name that the driver gives. Measured with large bf16 products of random numbers, and large copies.
LIMITS = {"NVIDIA H200": Limits(tflops=790, gigabytes_per_second=4300)}


def count(model: Model, program: Program, batch: int, precision: str) -> dict[str, Any]:
    """Return FLOP per image, and the megabytes of weights that a batch reads, fused and hoisted."""
    saving = hoisting_saving(model, program, batch)
    size = ITEMSIZE[precision]
    return {
        "gflop_per_image": saving.having.flop_per_image / 1e9,
        "weight_megabytes_fused": saving.without.total.weight_bytes(size) / 1e6,
        "weight_megabytes_hoisted": saving.having.total.weight_bytes(size) / 1e6,
        "weight_megabytes_saved": saving.weight_bytes(size) / 1e6,
    }


def floors(
    gpu: str | None, model: Model, program: Program, batch: int, precision: str
) -> dict[str, float] | None:
    """Return the least milliseconds of a batch by conditioning; None where the GPU's limits are not known."""
    limits = LIMITS.get(gpu or "")
    if limits is None or ITEMSIZE[precision] != 2:
        return None
    return {
        conditioning: 1000
        * roofline(
            program_cost(model, program, batch, conditioning).total,
            limits.tflops,
            limits.gigabytes_per_second,
        )
        for conditioning in ("hoisted", "fused")
    }
