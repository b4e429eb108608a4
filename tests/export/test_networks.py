"""Guidance inside the network: the reference's numbers, and the formula for what it does not cover."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowturbo_trt.evaluation.metrics import relative_l2
from flowturbo_trt.export.networks import Guided, Unguided, velocity_halves, velocity_outputs_only
from flowturbo_trt.models.sit import SiT
from flowturbo_trt.tests.bundles import TINY_CONFIG, random_network

Arrays = Mapping[str, NDArray[Any]]
# Float32 with another order of summation.
TOLERANCE = 1e-5


@pytest.fixture
def inputs(golden: Arrays) -> tuple[Tensor, Tensor, Tensor]:
    """State, time and label of the golden forward passes."""
    state, time, label = (torch.from_numpy(golden[name]) for name in ("z", "fwd_t", "y"))
    return state, time, label


@pytest.fixture
def velocity(golden: Arrays) -> Tensor:
    """An earlier velocity (B,2,C,H,W) whose halves differ everywhere."""
    first = torch.from_numpy(golden["fwd_v"])
    return torch.stack([first, 0.5 - first.flip(0)], dim=1)


def halves(doubled: NDArray[Any]) -> NDArray[Any]:
    """Lay (2n,C,H,W), conditional rows first, out as (n,2,C,H,W)."""
    n = len(doubled) // 2
    return np.stack([doubled[:n], doubled[n:]], axis=1)


def assert_close(found: Tensor, expected: Tensor | NDArray[Any]) -> None:
    assert found.shape == expected.shape
    assert relative_l2(found.numpy(), np.asarray(expected)) <= TOLERANCE


def by_formula(c: Tensor, u: Tensor, s: Tensor, channels: int) -> Tensor:
    """Guide the first channels of conditional c and unconditional u (B,C,H,W): (B,2,C,H,W)."""
    both = torch.stack([c, u], dim=1)
    both[:, :, :channels] = (u + s[:, None, None, None] * (c - u))[:, None, :channels]
    return both


@torch.no_grad()
def test_reference_guidance(
    golden: Arrays, golden_predictor: SiT, inputs: tuple[Tensor, Tensor, Tensor]
) -> None:
    guidance = torch.full_like(inputs[1], 1.5)
    found = Guided(golden_predictor, 3)(*inputs, guidance)
    expected = halves(golden["fwd_predictor_cfg"])
    assert_close(found, expected)
    # The guided channels are the same in both halves, the last one is not.
    torch.testing.assert_close(found[:, 0, :3], found[:, 1, :3], rtol=0, atol=0)
    assert relative_l2(expected[:, 0, 3], expected[:, 1, 3]) > 0.01


@torch.no_grad()
def test_unguided_predictor(
    golden: Arrays, golden_predictor: SiT, inputs: tuple[Tensor, Tensor, Tensor]
) -> None:
    found = Unguided(golden_predictor)(*inputs)
    torch.testing.assert_close(found, golden_predictor(*inputs)[:, None], rtol=0, atol=0)
    assert_close(found, golden["fwd_predictor"][:, None])


@torch.no_grad()
def test_unguided_refiner(golden: Arrays, golden_refiner: SiT, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    velocity = torch.from_numpy(golden["fwd_v"])
    found = Unguided(golden_refiner)(*inputs, velocity[:, None])
    torch.testing.assert_close(found, golden_refiner(*inputs, velocity)[:, None], rtol=0, atol=0)
    assert_close(found, golden["fwd_refiner"][:, None])


@torch.no_grad()
def test_guided_refiner_reads_both_halves(
    golden_refiner: SiT, inputs: tuple[Tensor, Tensor, Tensor], velocity: Tensor
) -> None:
    """The conditional evaluation sees the conditional half, the unconditional one the other."""
    state, time, label = inputs
    guidance = torch.tensor([1.5, 0.0, 4.0])
    null = torch.full_like(label, golden_refiner.config.null_label)
    c = golden_refiner(state, time, label, velocity[:, 0])
    u = golden_refiner(state, time, null, velocity[:, 1])
    found = Guided(golden_refiner, 3)(*inputs, guidance, velocity)
    assert_close(found, by_formula(c, u, guidance, 3))


@pytest.mark.parametrize("refines", [False, True])
@torch.no_grad()
def test_all_channels_guided(refines: bool) -> None:
    """With all channels guided both halves of the formula agree, and one is carried."""
    network = random_network(TINY_CONFIG, refines=refines)
    random = torch.Generator().manual_seed(3)
    state = torch.randn(4, 2, 4, 4, generator=random)
    velocity = [torch.randn(4, 1, 2, 4, 4, generator=random)] if refines else []
    time, label = torch.rand(4, generator=random), torch.tensor([0, 1, 2, 0])
    guidance = torch.tensor([1.5, 0.0, 1.0, -2.0])
    plain = [v[:, 0] for v in velocity]
    c = network(state, time, label, *plain)
    u = network(state, time, torch.full_like(label, 3), *plain)
    expected = by_formula(c, u, guidance, 2)
    torch.testing.assert_close(expected[:, 0], expected[:, 1], rtol=0, atol=0)
    found = Guided(network, 2)(state, time, label, guidance, *velocity)
    assert found.shape == (4, 1, 2, 4, 4)
    assert_close(found, expected[:, :1])
    # Scale 0 is unconditional, scale 1 conditional.
    assert_close(found[1, 0], u[1])
    assert_close(found[2, 0], c[2])


@torch.no_grad()
def test_rows_do_not_influence_each_other(
    golden_predictor: SiT, inputs: tuple[Tensor, Tensor, Tensor]
) -> None:
    guided, guidance = Guided(golden_predictor, 3), torch.tensor([1.5, 3.0, 0.5])
    together = guided(*inputs, guidance)
    for row in range(3):
        alone = guided(*(tensor[row : row + 1] for tensor in (*inputs, guidance)))
        assert_close(alone, together[row : row + 1])


@pytest.mark.parametrize("refines", [False, True])
@torch.no_grad()
def test_velocity_outputs_only(
    golden_predictor: SiT,
    golden_refiner: SiT,
    inputs: tuple[Tensor, Tensor, Tensor],
    golden: Arrays,
    refines: bool,
) -> None:
    """The kept rows of the last layer are strided; what remains computes the same to the last bit."""
    network = golden_refiner if refines else golden_predictor
    velocity = [torch.from_numpy(golden["fwd_v"])] if refines else []
    assert network.config.learn_sigma
    pruned = velocity_outputs_only(network)
    assert not pruned.config.learn_sigma
    assert pruned.final_layer.linear.weight.shape == (2 * 2 * 4, 96)
    torch.testing.assert_close(pruned(*inputs, *velocity), network(*inputs, *velocity), rtol=0, atol=0)
    # The network itself stays whole, and its weights are not held twice.
    assert network.final_layer.linear.weight.shape == (2 * 2 * 8, 96)
    for name, tensor in pruned.named_parameters():
        if not name.startswith("final_layer.linear"):
            assert tensor.data_ptr() == network.get_parameter(name).data_ptr()


def test_network_without_other_outputs_is_kept() -> None:
    network = random_network(TINY_CONFIG | {"learn_sigma": False}, refines=False)
    assert velocity_outputs_only(network) is network


@pytest.mark.parametrize(("guided", "latent", "halves"), [(3, 4, 2), (1, 4, 2), (4, 4, 1), (1, 1, 1)])
def test_velocity_halves(guided: int, latent: int, halves: int) -> None:
    assert velocity_halves(guided, latent) == halves
