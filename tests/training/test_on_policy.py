"""On-policy distillation: which velocities are compared, where, and that the comparison teaches."""

import pytest
import torch
from torch import Tensor, nn

from flowturbo_trt.export.networks import Guided
from flowturbo_trt.models.sit import SiT
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.trace import trace
from flowturbo_trt.training.on_policy import on_policy_loss

N = 5
SCALES = torch.tensor([1.0, 1.5, 2.0, 3.0, 0.5])


class Spy(nn.Module):
    """A refiner that answers with multiples of the state and records what it is called with."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.calls: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor, y: Tensor, v: Tensor) -> Tensor:
        self.calls.append((x, t, y, v))
        return self.factor * x


class Perfect(nn.Module):
    """A refiner of no error in all channels: the predictor's velocity less the one given, in each half."""

    def __init__(self, predictor: SiT) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, x: Tensor, t: Tensor, y: Tensor, v: Tensor) -> Tensor:
        offset: Tensor = self.predictor(x, t, y) - v
        return offset


@pytest.fixture
def starts(predictor: SiT) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(4)
    return torch.randn(N, 2, 4, 4, generator=random), torch.arange(N) % 3


def test_loss_is_of_the_steps_written_out(predictor: SiT, starts: tuple[Tensor, Tensor]) -> None:
    """H1R1 as the public code computes it, one channel of two guided: both halves of both velocities."""
    x, y = starts
    refiner = Spy(0.3)
    program = trace(Schedule.parse("H1R1"), "guided")
    found = on_policy_loss(predictor, refiner, program, x, y, SCALES, guided_channels=1)

    v, r = Guided(predictor, 1), torch.tensor(0.3)
    zero, half, one = (torch.full((N,), t) for t in (0.0, 0.5, 1.0))
    d0 = v(x, zero, y, SCALES)
    d1 = v(x + d0[:, 0] / 2, half, y, SCALES)
    x = x + (d0 + d1)[:, 0] / 4
    d2 = r * x[:, None] + d1
    x_end = x + d2[:, 0] / 2
    d3 = r * x_end[:, None] + d2
    errors = [(d2 - v(x, half, y, SCALES)), (d3 - v(x_end, one, y, SCALES))]
    expected = torch.stack([error.square().flatten(1).mean(1) for error in errors]).mean(0)
    torch.testing.assert_close(found, expected)

    assert [float(t[0]) for _, t, _, _ in refiner.calls] == [0.5, 1.0]
    for _, _, labels, velocity in refiner.calls:
        assert torch.equal(labels, torch.cat([y, torch.full_like(y, 3)]))
        # The public code conditions both calls on the velocity that H passed on.
        torch.testing.assert_close(velocity, torch.cat([d1[:, 0], d1[:, 1]]))


@pytest.mark.parametrize("schedule", ["H1R2:consistent", "P2R2:single", "H2R2P1R1:single:guided=0.1..0.5"])
def test_perfect_refiner_has_no_loss(predictor: SiT, starts: tuple[Tensor, Tensor], schedule: str) -> None:
    """Where the offset's velocity is the one it is added to, as not in the public code's reading."""
    program = trace(Schedule.parse(schedule), "guided")
    for channels in (1, 2):
        loss = on_policy_loss(predictor, Perfect(predictor), program, *starts, SCALES, channels)
        assert loss.shape == (N,)
        # Where halves agree only their guided sum can be right.
        assert float(loss.max()) < 1e-9
    untaught = on_policy_loss(predictor, Spy(0.0), program, *starts, SCALES, 1)
    assert float(untaught.detach().min()) > 1e-5


def test_without_guidance(predictor: SiT, starts: tuple[Tensor, Tensor]) -> None:
    """Only the label's own velocity is evaluated, and equals that of guidance 1."""
    schedule, refiner = Schedule.parse("H1P1R2"), Spy(0.1)
    alone = on_policy_loss(predictor, refiner, trace(schedule, "unguided"), *starts)
    assert {len(x) for x, *_ in refiner.calls} == {N}
    one = on_policy_loss(predictor, refiner, trace(schedule, "guided"), *starts, torch.ones(N), 2)
    torch.testing.assert_close(alone, one, rtol=1e-4, atol=1e-7)


def test_calls_teach_for_themselves(predictor: SiT, starts: tuple[Tensor, Tensor]) -> None:
    """The gradient is of each call with its inputs held, not through what came of earlier ones."""
    program = trace(Schedule.parse("H1R1"), "unguided")
    refiner = Spy(0.3)
    on_policy_loss(predictor, refiner, program, *starts).sum().backward()
    (x2, t2, _, d1), (x3, t3, _, _) = refiner.calls
    y = starts[1]
    d2 = d1 + 0.3 * x2
    d3 = d2 + 0.3 * x3
    parts = [((d - predictor(x, t, y)) * x).flatten(1) for d, x, t in ((d2, x2, t2), (d3, x3, t3))]
    expected = sum(part.mean(1) for part in parts).sum()
    torch.testing.assert_close(refiner.factor.grad, expected)
