"""What a program and a request write into the `inputs` block, beside noise and guidance."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.runtime.buffers import time_name
from flowturbo_trt.runtime.conditioning import Conditioning
from flowturbo_trt.runtime.launch_plan import LaunchPlan
from flowturbo_trt.sampling.program import Program

Arrays = Mapping[str, NDArray[Any]]


def table_names(plan: LaunchPlan, conditionings: Mapping[str, Conditioning]) -> list[str]:
    """Return the arrays that `write_program` writes."""
    fused = (time_name(call.index) for call in plan.calls if call.network not in conditionings)
    return ["coefficients", *fused, *(f"{network}.time" for network in conditionings)]


def write_program(
    program: Program,
    plan: LaunchPlan,
    conditionings: Mapping[str, Conditioning],
    arrays: Arrays,
    rows: slice | None,
) -> bool:
    """Write a program's coefficients and times for some rows of the batch (None: all).

    Tells whether any time of a hoisted network is new, so that modulations known before are not these.
    """
    chosen = slice(None) if rows is None else rows
    coefficients = np.array(program.coefficients(), dtype=np.float32)
    arrays["coefficients"][:, chosen] = coefficients[:, None]
    times = program.times()
    for call in plan.calls:
        if call.network not in conditionings:
            arrays[time_name(call.index)][chosen] = times[call.index]
    changed = [
        conditioning.spread_times(program, chosen, arrays[f"{network}.time"])
        for network, conditioning in conditionings.items()
    ]
    return any(changed)


def spread_conditions(conditionings: Mapping[str, Conditioning], conditions: Arrays, arrays: Arrays) -> None:
    """Repeat a request's conditions for every time of the hoisted networks."""
    for network, conditioning in conditionings.items():
        for name, values in conditions.items():
            conditioning.spread_condition(values, arrays[f"{network}.{name}"])
