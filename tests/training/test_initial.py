"""The refiner before its first step: shapes, a warm start, and what cannot be."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from flowturbo_trt.models.sit import SiT, SiTConfig
from flowturbo_trt.training.config import TrainingConfig, TrainingError
from flowturbo_trt.training.initial import initial_refiner, refiner_shape

SHAPE = SiTConfig(8, 2, 4, hidden_size=48, depth=3, num_heads=4, num_classes=5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (1, 48, 4)),
        ({"depth": 3}, (3, 48, 4)),
        ({"width": 24}, (1, 24, 2)),
        ({"width": 96}, (1, 96, 8)),
        ({"width": 32, "heads": 8}, (1, 32, 8)),
        ({"heads": 6}, (1, 48, 6)),
    ],
)
def test_shape(options: dict[str, Any], expected: tuple[int, int, int]) -> None:
    depth, width, heads = expected
    shape = refiner_shape(SHAPE, TrainingConfig(**options))
    assert shape == replace(SHAPE, depth=depth, hidden_size=width, num_heads=heads)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 32}, "width 32 is no multiple of 12, the size of the predictor's attention heads"),
        ({"width": 30, "heads": 2}, "width is 30, expected a multiple of 4 and of the 2 heads"),
        ({"width": 32, "heads": 5}, "width is 32, expected a multiple of 4 and of the 5 heads"),
        (
            {"init": "predictor", "width": 24},
            "refiner is of width 24 with 2 heads and the predictor of width 48",
        ),
        ({"init": "predictor", "heads": 2}, "refiner is of width 48 with 2 heads"),
        ({"init": "predictor", "depth": 4}, "depth is 4 and the predictor has 3 blocks to start from"),
    ],
)
def test_shapes_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        refiner_shape(SHAPE, TrainingConfig(**options))


def test_refiner_that_is_trained_further() -> None:
    """As it was, whatever its shape, and the given one stays as it is."""
    shape = replace(SHAPE, depth=2, hidden_size=24, num_heads=6)
    start = SiT(shape, refines=True)
    with torch.no_grad():
        start.final_layer.linear.bias.fill_(0.5)
    refiner = initial_refiner(some_predictor(), TrainingConfig(init="refiner"), start)
    assert refiner.config == shape
    assert all(torch.equal(tensor, start.state_dict()[key]) for key, tensor in refiner.state_dict().items())
    with torch.no_grad():
        refiner.final_layer.linear.bias.zero_()
    assert start.final_layer.linear.bias.all()


@pytest.mark.parametrize(("init", "given"), [("refiner", False), ("random", True), ("predictor", True)])
def test_refiner_to_start_from_that_is_not_asked_for(init: str, given: bool) -> None:
    start = SiT(SHAPE, refines=True) if given else None
    with pytest.raises(TrainingError, match=f"init is '{init}'; a refiner to start from goes with"):
        initial_refiner(some_predictor(), TrainingConfig(init=init), start)


@pytest.mark.parametrize("init", ["random", "predictor"])
def test_output_is_zero_at_first(init: str) -> None:
    """The refined velocity is then the earlier one."""
    predictor = some_predictor()
    refiner = initial_refiner(predictor, TrainingConfig(init=init))
    x, v = torch.randn(2, 2, 4, 8, 8)
    assert not refiner(x, torch.rand(2), torch.tensor([0, 5]), v).any()


def test_predictors_layers_are_taken_over() -> None:
    """Whatever the velocity, the last block puts out what the predictor's does after as many blocks."""
    predictor = some_predictor()
    refiner = initial_refiner(predictor, TrainingConfig(init="predictor", depth=2))
    x, v = torch.randn(2, 3, 4, 8, 8)
    t, y = torch.rand(3), torch.tensor([0, 4, 5])
    condition = refiner.condition(t, y)
    torch.testing.assert_close(condition, predictor.condition(t, y))
    tokens, expected = refiner.tokens(x, v), predictor.tokens(x)
    torch.testing.assert_close(tokens, expected)
    for block, of_predictor in zip(refiner.blocks, predictor.blocks[:2], strict=True):
        tokens = block(tokens, block.adaLN_modulation(condition))
        expected = of_predictor(expected, of_predictor.adaLN_modulation(condition))
    assert (expected - predictor.tokens(x)).abs().max() > 0.1
    torch.testing.assert_close(tokens, expected)
    assert all(
        parameter.requires_grad for name, parameter in refiner.named_parameters() if name != "pos_embed"
    )


def test_random_start_depends_on_the_seed_alone() -> None:
    predictor = some_predictor()
    before = torch.get_rng_state()
    first, same, other = (initial_refiner(predictor, TrainingConfig(seed=seed)) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    weight = first.blocks[0].mlp.fc1.weight
    assert torch.equal(weight, same.blocks[0].mlp.fc1.weight)
    assert not torch.equal(weight, other.blocks[0].mlp.fc1.weight)


def some_predictor() -> SiT:
    torch.manual_seed(5)
    network = SiT(SHAPE)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network.requires_grad_(False).eval()
