"""The training objective against the reference's intermediate tensors and loss."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

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
