"""The reference sampler over the torch networks against the authors' own trajectories."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowturbo_trt.evaluation.metrics import relative_l2
from flowturbo_trt.models.sit import SiT
from flowturbo_trt.sampling.reference import run, sample
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.trace import trace

Arrays = Mapping[str, NDArray[Any]]
SCHEDULES = ["H1P5R3", "H2P2R2", "H1P1R1", "H1P0R2", "H2P3R0"]
TOLERANCE = 1e-4


class GuidedNetworks:
    """The networks under the reference's guidance of the first channels: velocities (B,2,C,H,W)."""

    def __init__(self, predictor: SiT, refiner: SiT, y: Tensor, config: Mapping[str, Any]) -> None:
        self.predictor, self.refiner = predictor, refiner
        self.labels = torch.cat([y, torch.full_like(y, predictor.config.null_label)])
        self.scale, self.channels = config["cfg_scale"], config["guided_channels"]

    def predict(self, x: Tensor, t: float) -> Tensor:
        return self.guide(self.predictor(self.doubled(x), self.times(t), self.labels))

    def refine(self, x: Tensor, v: Tensor, t: float) -> Tensor:
        earlier = v.transpose(0, 1).flatten(0, 1)
        return self.guide(self.refiner(self.doubled(x), self.times(t), self.labels, earlier))

    def doubled(self, x: Tensor) -> Tensor:
        """Repeat the states, of which only the conditional half counts."""
        return (x[:, 0] if x.ndim == 5 else x).repeat(2, 1, 1, 1)

    def times(self, t: float) -> Tensor:
        return torch.full((len(self.labels),), t)

    def guide(self, both: Tensor) -> Tensor:
        conditional, unconditional = both.chunk(2)
        k = self.channels
        guided = unconditional[:, :k] + self.scale * (conditional[:, :k] - unconditional[:, :k])
        halves = [torch.cat([guided, half[:, k:]], dim=1) for half in (conditional, unconditional)]
        return torch.stack(halves, dim=1)


@pytest.fixture
def field(
    golden: Arrays, golden_config: dict[str, Any], golden_predictor: SiT, golden_refiner: SiT
) -> GuidedNetworks:
    return GuidedNetworks(golden_predictor, golden_refiner, torch.from_numpy(golden["y"]), golden_config)


def halves(doubled: NDArray[Any]) -> NDArray[Any]:
    """Lay the reference's (2n,C,H,W), conditional rows first, out as (n,2,C,H,W)."""
    n = len(doubled) // 2
    return np.stack([doubled[:n], doubled[n:]], axis=1)


def test_config_lists_the_golden_schedules(golden_config: dict[str, Any]) -> None:
    assert golden_config["schedules"] == SCHEDULES


@pytest.mark.parametrize("text", SCHEDULES)
@torch.no_grad()
def test_reference_sampler(text: str, golden: Arrays, field: GuidedNetworks) -> None:
    """Every state's conditional rows, and both halves of every velocity passed on."""
    states, velocities = golden[f"{text}_x"], golden[f"{text}_v"]
    z = golden["z"]
    np.testing.assert_array_equal(halves(states[0])[:, 0], z)
    steps = list(sample(Schedule.parse(text), field, torch.from_numpy(z)[:, None]))
    assert len(steps) == len(velocities) == len(states) - 1
    for (x, v), x_golden, v_golden in zip(steps, states[1:], velocities, strict=True):
        assert relative_l2(x.numpy()[:, 0], halves(x_golden)[:, 0]) <= TOLERANCE
        assert relative_l2(v.numpy(), halves(v_golden)) <= TOLERANCE
        assert (v[:, 0] - v[:, 1]).abs().max() > 1e-3


@torch.no_grad()
def test_program_over_the_networks(golden: Arrays, field: GuidedNetworks) -> None:
    """The traced program reaches the same goldens, reading the conditional half into its states."""
    program = trace(Schedule.parse("H1P5R3"), "guided")
    noise: Any = torch.from_numpy(golden["z"])
    for (x, v), x_golden, v_golden in zip(
        run(program, {"guided": field}, noise), golden["H1P5R3_x"][1:], golden["H1P5R3_v"], strict=True
    ):
        assert relative_l2(np.asarray(x), halves(x_golden)[:, 0]) <= TOLERANCE
        assert relative_l2(np.asarray(v), halves(v_golden)) <= TOLERANCE


@pytest.mark.parametrize("reading", ["consistent", "single"])
@torch.no_grad()
def test_other_readings_leave_the_goldens(reading: str, golden: Arrays, field: GuidedNetworks) -> None:
    z = torch.from_numpy(golden["z"])[:, None]
    *_, (x, _) = sample(Schedule.parse(f"H1P1R1:{reading}"), field, z)
    assert relative_l2(x.numpy()[:, 0], halves(golden["H1P1R1_x"][-1])[:, 0]) > 10 * TOLERANCE
