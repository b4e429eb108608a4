"""The training objective against the reference's intermediate tensors and loss."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowturbo_trt.export.networks import Guided
from flowturbo_trt.models.sit import SiT
from flowturbo_trt.training.objective import RefinerObjective, refiner_objective

Arrays = Mapping[str, NDArray[Any]]
TOLERANCE = 1e-4


@pytest.fixture
def inputs(golden: Arrays) -> dict[str, Tensor]:
    names = {
        "x0": "train_x0",
        "x1": "train_x1",
        "y": "y",
        "t": "fwd_t",
        "delta": "train_dt",
        "drop": "train_drop",
    }
    return {ours: torch.from_numpy(golden[theirs]) for ours, theirs in names.items()}


@pytest.fixture
def objective(golden_predictor: SiT, golden_refiner: SiT, inputs: dict[str, Tensor]) -> RefinerObjective:
    return refiner_objective(golden_predictor, golden_refiner, **inputs)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("x_t", "train_xt"),
        ("v_t", "train_vt"),
        ("student", "train_student"),
        ("teacher", "train_teacher"),
        ("loss", "train_loss"),
    ],
)
def test_golden_step(objective: RefinerObjective, golden: Arrays, ours: str, theirs: str) -> None:
    found, expected = getattr(objective, ours), torch.from_numpy(golden[theirs])
    assert found.shape == expected.shape
    assert float((found - expected).norm() / expected.norm()) <= TOLERANCE


def test_loss_is_the_mean_square_per_sample(objective: RefinerObjective) -> None:
    square = (objective.student - objective.teacher) ** 2
    torch.testing.assert_close(objective.loss, square.mean(dim=(1, 2, 3)))


def test_drop_hides_the_label_from_student_and_second_teacher_only(
    golden_predictor: SiT, golden_refiner: SiT, inputs: dict[str, Tensor]
) -> None:
    """The first velocity always sees the true label."""
    kept = refiner_objective(
        golden_predictor, golden_refiner, **(inputs | {"drop": torch.tensor([False] * 3)})
    )
    dropped = refiner_objective(
        golden_predictor, golden_refiner, **(inputs | {"drop": torch.tensor([False, True, False])})
    )
    assert torch.equal(kept.v_t, dropped.v_t)
    for one, other in ((kept.student, dropped.student), (kept.teacher, dropped.teacher)):
        torch.testing.assert_close(one[[0, 2]], other[[0, 2]])
        assert (one[1] - other[1]).abs().max() > 1e-3


def test_path_runs_from_noise_to_data(
    golden_predictor: SiT, golden_refiner: SiT, inputs: dict[str, Tensor]
) -> None:
    for t, expected in ((0.0, inputs["x0"]), (1.0, inputs["x1"])):
        at_end = inputs | {"t": torch.full((3,), t)}
        x_t = refiner_objective(golden_predictor, golden_refiner, **at_end).x_t
        torch.testing.assert_close(x_t, expected, rtol=0, atol=1e-6)


def test_time_beyond_the_end_is_extrapolated(
    golden_predictor: SiT, golden_refiner: SiT, inputs: dict[str, Tensor]
) -> None:
    """As in the reference: 0.98 + 0.07 is not clamped to 1."""
    late = inputs | {"t": torch.full((3,), 0.98), "drop": torch.zeros(3, dtype=torch.bool)}
    found = refiner_objective(golden_predictor, golden_refiner, **late)
    s = torch.full((3,), 0.98) + inputs["delta"]
    assert s.min() > 1
    teacher = golden_predictor(found.x_t + inputs["delta"] * found.v_t, s, inputs["y"])
    torch.testing.assert_close(found.teacher, teacher)


def test_gradients_reach_the_refiner_only(predictor: SiT, inputs: dict[str, Tensor]) -> None:
    config = predictor.config
    torch.manual_seed(2)
    refiner = SiT(config, refines=True)
    x0, x1 = torch.randn(2, 3, config.in_channels, config.input_size, config.input_size)
    objective = refiner_objective(
        predictor, refiner, x0, x1, torch.tensor([0, 1, 2]), inputs["t"], inputs["delta"], inputs["drop"]
    )
    objective.loss.mean().backward()
    assert refiner.final_layer.linear.weight.grad is not None
    assert all(parameter.grad is None for parameter in predictor.parameters())
    x_t, v_t, student, teacher, loss = (tensor.requires_grad for tensor in vars(objective).values())
    assert (x_t, v_t, student, teacher, loss) == (False, False, True, False, True)


class Oracle(nn.Module):
    """A refiner without error: its offset is the predictor's velocity less the one it is given.

    It has the parts of a SiT, so that the sampler's guidance can be put around it.
    """

    def __init__(self, predictor: SiT) -> None:
        super().__init__()
        self.predictor = predictor
        self.config = predictor.config
        self.t_embedder, self.y_embedder = predictor.t_embedder, predictor.y_embedder
        self.modulations = predictor.modulations

    def forward(self, x: Tensor, t: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return self.trunk(self.tokens(x, v), self.modulations(self.predictor.condition(t, y)))

    def tokens(self, x: Tensor, v: Tensor) -> Tensor:
        return torch.stack([x, v], dim=1)

    def trunk(self, tokens: Tensor, modulations: list[Tensor]) -> Tensor:
        x, v = tokens.unbind(1)
        return self.predictor.trunk(self.predictor.tokens(x), modulations) - v


SCALES = torch.tensor([1.0, 1.5, 4.0])


@pytest.mark.parametrize("guided_channels", [3, 4])
def test_refiner_of_no_loss_samples_the_guided_velocity(
    golden_predictor: SiT, inputs: dict[str, Tensor], guided_channels: int
) -> None:
    """It makes of both halves what the guided predictor would, for any scale."""
    oracle: Any = Oracle(golden_predictor)
    for drop in (False, True):
        given = inputs | {"drop": torch.full((3,), drop)}
        found = refiner_objective(
            golden_predictor, oracle, **given, guidance=SCALES, guided_channels=guided_channels
        )
        assert found.loss.max() < 1e-10
    t, y, delta = inputs["t"], inputs["y"], inputs["delta"]
    guided = Guided(golden_predictor, guided_channels)
    v = guided(found.x_t, t, y, SCALES)
    # The sampler moves the state by the conditional half.
    x = found.x_t + delta * v[:, 0]
    refined = Guided(oracle, guided_channels)(x, t + delta, y, SCALES, v) + v
    torch.testing.assert_close(refined, guided(x, t + delta, y, SCALES), rtol=1e-4, atol=1e-4)
    assert (refined - v).abs().max() > 1e-2


def test_first_velocity_is_the_half_of_the_label(
    golden_predictor: SiT, golden_refiner: SiT, inputs: dict[str, Tensor]
) -> None:
    """Channels that are not guided are conditional for a kept label, unconditional for a dropped one."""
    given = inputs | {"drop": torch.tensor([False, True, False])}
    found = refiner_objective(golden_predictor, golden_refiner, **given, guidance=SCALES, guided_channels=3)
    t, y = inputs["t"], inputs["y"]
    c = golden_predictor(found.x_t, t, y)
    u = golden_predictor(found.x_t, t, torch.full_like(y, golden_predictor.config.null_label))
    expected = u + SCALES[:, None, None, None] * (c - u)
    expected[:, 3] = torch.stack([c[0, 3], u[1, 3], c[2, 3]])
    torch.testing.assert_close(found.v_t, expected, rtol=1e-4, atol=1e-5)
    # The state follows the conditional half, and the teacher is not guided.
    expected[1, 3] = c[1, 3]
    y_dropped = torch.where(given["drop"], golden_predictor.config.null_label, y)
    teacher = golden_predictor(found.x_t + inputs["delta"] * expected, t + inputs["delta"], y_dropped)
    torch.testing.assert_close(found.teacher, teacher, rtol=1e-4, atol=1e-5)


def test_guidance_of_one_is_no_guidance_where_labels_are_kept(
    golden_predictor: SiT, golden_refiner: SiT, inputs: dict[str, Tensor]
) -> None:
    given = inputs | {"drop": torch.zeros(3, dtype=torch.bool)}
    paper = refiner_objective(golden_predictor, golden_refiner, **given)
    guided = refiner_objective(
        golden_predictor, golden_refiner, **given, guidance=torch.ones(3), guided_channels=3
    )
    torch.testing.assert_close(guided.v_t, paper.v_t, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(guided.loss, paper.loss, rtol=1e-4, atol=1e-6)
