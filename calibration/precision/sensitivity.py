"""How much each group of layers costs in 8 bits: call by call, and at the end of the trajectory.

Teacher-forced, a call's error is of that call alone: it reads what was recorded. Free-running, the whole
schedule is followed with the group quantised, and errors carry on from step to step as they will.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.calibration.endpoints import Progress
from flowturbo_trt.calibration.precision.groups import Group
from flowturbo_trt.calibration.precision.plain_data import plain
from flowturbo_trt.calibration.precision.trials import Trials
from flowturbo_trt.calibration.recording.call_sites import CallSite


@dataclass(frozen=True)
class Sensitivity:
    """Relative L2, means over rows, with one group alone in 8 bits.

    `velocity` (groups, sites) is teacher-forced, NaN where a call is not of the group's network;
    `trajectory` (groups, schedules) is of the latents at the end.
    """

    groups: tuple[Group, ...]
    sites: tuple[CallSite, ...]
    schedules: tuple[str, ...]
    velocity: NDArray[np.float64]
    trajectory: NDArray[np.float64]

    def of(self, group: Group) -> dict[str, float]:
        """Return the error at the end by schedule."""
        return dict(zip(self.schedules, map(float, self.trajectory[self.groups.index(group)]), strict=True))

    def describe(self) -> dict[str, Any]:
        """Return this as plain data."""
        described: dict[str, Any] = plain(
            {
                "unit": "relative L2, mean over rows",
                "calls": [
                    {"schedule": s.schedule, "index": s.index, "network": s.network, "t": s.t}
                    for s in self.sites
                ],
                "groups": [
                    {
                        "name": group.name,
                        "macs": group.macs,
                        "velocity": self.velocity[row].tolist(),
                        "trajectory": self.of(group),
                    }
                    for row, group in enumerate(self.groups)
                ],
            }
        )
        return described


def measure_sensitivity(
    trials: Trials,
    groups: Sequence[Group],
    sites: Sequence[CallSite],
    schedules: Sequence[str],
    progress: Progress = lambda what, done, total: None,
) -> Sensitivity:
    """Quantise one group after the other, alone, and measure both errors.

    Of `schedules` some may have none of the `sites`, which are of the groups' networks.
    """
    velocity = np.full((len(groups), len(sites)), np.nan)
    trajectory = np.empty((len(groups), len(schedules)))
    for row, group in enumerate(groups):
        progress(f"sensitivity of {group.name}", row, len(groups))
        own = [i for i, site in enumerate(sites) if f"{site.network} {site.variant}" in group.layers]
        found = trials.velocity_errors([group], [sites[i] for i in own])
        velocity[row, own] = [found[sites[i]] for i in own]
        errors = trials.trajectory_errors([group])
        # Where the group is never called, what is left is rounding.
        called = {sites[i].schedule for i in own}
        trajectory[row] = [errors[schedule] if schedule in called else 0.0 for schedule in schedules]
    progress("sensitivity measured", len(groups), len(groups))
    return Sensitivity(tuple(groups), tuple(sites), tuple(schedules), velocity, trajectory)
