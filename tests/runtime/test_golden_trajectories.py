"""The authors' own trajectories through bundles of either kind on ONNX Runtime, step by step."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flowturbo_trt.evaluation.metrics import relative_l2
from flowturbo_trt.runtime.pipeline import Pipeline, Step
from flowturbo_trt.tests.bundles import SCHEDULES

Arrays = Mapping[str, NDArray[Any]]
TOLERANCE = 1e-4


def halves(doubled: NDArray[Any]) -> NDArray[Any]:
    """Lay the reference's (steps,2n,C,H,W), conditional rows first, out as (steps,n,2,C,H,W)."""
    n = doubled.shape[1] // 2
    return np.stack([doubled[:, :n], doubled[:, n:]], axis=2)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_states_and_velocities(golden_either_pipeline: Pipeline, golden: Arrays, schedule: str) -> None:
    """Every state, and both halves of every velocity passed on."""
    expected_x = halves(golden[f"{schedule}_x"])[1:, :, 0]
    expected_v = halves(golden[f"{schedule}_v"])
    states, velocities = np.full_like(expected_x, np.nan), np.full_like(expected_v, np.nan)

    def record(step: Step) -> None:
        states[step.index, step.rows] = step.state
        velocities[step.index, step.rows] = step.velocity

    golden_either_pipeline(golden["y"], noise=golden["z"], guidance=1.5, schedule=schedule, on_step=record)
    for index in range(len(expected_v)):
        assert relative_l2(states[index], expected_x[index]) <= TOLERANCE
        for half in (0, 1):
            assert relative_l2(velocities[index, :, half], expected_v[index, :, half]) <= TOLERANCE
    # The halves differ, so that none can stand for the other.
    assert relative_l2(expected_v[:, :, 0], expected_v[:, :, 1]) > 100 * TOLERANCE


def test_default_schedule_and_guidance(golden_either_pipeline: Pipeline, golden: Arrays) -> None:
    """The configuration's: H1P5R3 at 1.5."""
    last: list[NDArray[Any]] = []
    golden_either_pipeline(
        golden["y"], noise=golden["z"], on_step=lambda step: last.append(step.state.copy())
    )
    found = np.concatenate([last[8], last[17]])
    assert relative_l2(found, halves(golden["H1P5R3_x"])[-1, :, 0]) <= TOLERANCE
